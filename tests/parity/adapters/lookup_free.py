"""Golden cases of lookup-free: several quantizers in one file, told apart by their configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from smalti.quantize import (
    BitEntropy,
    Commitment,
    DotEntropy,
    DoubleQuantization,
    IndexBackprop,
    Quantize,
    Scalars,
    StraightThrough,
    Table,
    Trained,
)
from smalti.quantize.entropy import log_added
from smalti.quantize.estimators import Amplified
from smalti.quantize.indices import split_codes
from tests.parity.adapters.images import channels_first
from tests.parity.adapters.zoo_scalars import ramp
from tests.parity.golden import Case

Given = Mapping[str, Any]
LFQ_EPS, BSQ_EPS = 1e-5, 1e-8  # what the official logarithms add


def run_quantizer(case: Case) -> dict[str, Tensor]:
    given: dict[str, Tensor] = {}
    for name, config in case.config.items():
        tensors = {**_below(case.inputs, name), **_below(case.outputs, name)}
        found = _run(config, tensors, _below(case.state, name))
        given |= {f"{name}/{key}": value for key, value in found.items()}
    return {key: value for key, value in given.items() if key in case.quantizer_outputs()}


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}/")}


def _run(config: Given, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "vitconfig" in config:
        return _bsq_of_vit(config, tensors["pre_quant"])
    if "n_e" in config:
        return _ibq(config, tensors["z"], state["embedding.weight"])
    return _bsq(config, tensors["z"]) if "embed_dim" in config else _lfq(config, tensors["x"])


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def _like(z: Tensor, x: Tensor) -> Tensor:
    return channels_first(z) if x.ndim == 4 else z


def _lfq(config: Given, x: Tensor) -> dict[str, Tensor]:
    certainty, diversity = (float(weight) for weight in config.get("weights", "1.0/1.0").split("/"))
    entropy = BitEntropy(0.1, certainty=certainty, diversity=diversity, logarithm=log_added(LFQ_EPS))
    vq = Quantize(Scalars((2,) * config["dim"]), terms=[entropy, Commitment(0.25)])
    tenfold = (10 * x).requires_grad_()
    latents = _channels_last(0.1 * tenfold)
    out = vq(latents)
    quant = _like(out.z, x)
    sample, batch = entropy.entropies(latents.reshape(-1, config["dim"]), vq.alphabet)
    codes = out.codes.flatten()
    factors = split_codes(codes, [2**bits for bits in config.get("factorized_bits") or [config["dim"]]])
    return {
        "quant": quant,
        "indices": codes,
        "indices_pre": factors[..., 0],
        "indices_post": factors[..., -1],
        "sample_entropy": sample,
        "batch_entropy": batch,
        "entropy_aux": out.terms["entropy"] / 0.1,
        "commit": out.terms["commitment"] / 0.25,
        "grad_10x": torch.autograd.grad(out.loss + (quant * ramp(quant)).sum(), tenfold)[0],
    }


def _bsq(config: Given, z: Tensor) -> dict[str, Tensor]:
    bits, size, sharpness = config["embed_dim"], config["group_size"], config["inv_temperature"]
    scale = bits**-0.5 if config["l2_norm"] else 1.0
    entropy = BitEntropy(
        config.get("zeta", 1) / sharpness,
        temperature=1 / sharpness,
        certainty=config.get("gamma0", 1),
        diversity=config.get("gamma", 1),
        joint=2**size,
        logarithm=log_added(BSQ_EPS),
    )
    alphabet = Scalars((2,) * bits, order="big", scale=scale)
    vq = Quantize(
        alphabet,
        estimator=Amplified(scale, StraightThrough()),
        terms=[entropy, Commitment(config.get("beta", 0.0) * bits)],
    )
    z = z.clone().requires_grad_()
    latents = _channels_last(z)
    out = vq(latents)
    quant = _like(out.z, z)
    rows = latents.reshape(-1, bits)
    means = entropy.mean_distributions(rows, alphabet)
    return {
        "quant": quant,
        "loss": out.loss,
        "H": entropy.entropies(rows, alphabet)[1],
        "indices": out.codes[..., 0],
        "group_indices": split_codes(out.codes[..., 0], (2**size,) * (bits // size), "big"),
        "avg_prob": torch.cat(means),
        "grad": torch.autograd.grad(out.loss + (quant * ramp(quant)).sum(), z)[0],
    }


def _bsq_of_vit(config: Given, latents: Tensor) -> dict[str, Tensor]:
    bits = config["embed_dim"]
    scale = bits**-0.5 if config["l2_norm"] and config.get("post_q_l2_norm", True) else 1.0
    out = Quantize(Scalars((2,) * bits, order="big", scale=scale))(latents)
    return {"quant": out.z, "indices": out.codes[..., 0]}


def _ibq(config: Given, z: Tensor, embedding: Tensor) -> dict[str, Tensor]:
    rows = Trained(config["n_e"], config["e_dim"], init=lambda weight: weight.copy_(embedding))
    table = Table(rows, space="unit" if config.get("l2_normalize") else "euclidean")
    loss = DoubleQuantization(commitment=config["beta"])
    entropy = DotEntropy(0.05, config["entropy_temperature"])
    vq = Quantize(table, assign=IndexBackprop(), terms=[loss, entropy])
    z = z.clone().requires_grad_()
    latents = _channels_last(z)
    out = vq(latents)
    quant = _like(out.z, z)
    sample, batch = entropy.entropies(latents.reshape(-1, config["e_dim"]), table)
    gradients = torch.autograd.grad(out.loss + (quant * ramp(quant)).sum(), [z, rows.weight])
    return {
        "quant": quant,
        "indices": out.codes.flatten(),
        "quant_loss": out.terms["codebook"],
        "sample_entropy": sample,
        "avg_entropy": batch,
        "entropy_loss": out.terms["entropy"] / 0.05,
        "grad_z": gradients[0],
        "grad_embedding": gradients[1],
    }
