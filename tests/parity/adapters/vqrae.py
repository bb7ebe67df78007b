"""Golden cases of VQRAE: its high-dimensional SimVQ between two linear layers. (The system comes later.)"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from smalti.quantize import Codebook, Commitment, Mapped, Quantize, Table
from tests.parity.adapters.images import asked, shaped
from tests.parity.golden import Case


def run_quantizer(case: Case) -> dict[str, Tensor]:
    config, state = case.config, case.state
    # Official SimVQ has the two weights swapped when it is told to be as it was ("legacy").
    codebook, commitment = (config["beta"], 1.0) if config.get("legacy") else (1.0, config["beta"])
    base = state["quantize.embedding.weight"]
    table = Table(Mapped(base, _linear(state, "quantize.embedding_proj"), base.shape[1]))
    features = case.inputs["features"]
    quantizer = Quantize(
        table,
        before=_linear(state, "pre_proj"),
        after=_linear(state, "post_proj"),
        dim=features.shape[-1],
        terms=[Codebook(codebook), Commitment(commitment)],
    )
    out = quantizer.train()(features)
    with torch.no_grad():
        z, zq = quantizer.before(features), quantizer.lookup(out.codes)[..., 0, :]
    outputs = {
        "z": z,
        "codes": shaped(case, out.codes, "codes"),
        "zq": _map(zq, case.outputs["zq"]),
        "commit_loss": out.loss,
        "bottleneck": out.z,
    }
    if "cotangent" in case.inputs:
        scalar = (out.z * case.inputs["cotangent"]).sum() + out.loss
        weights = dict(quantizer.named_parameters())
        names = {"grad_proj_weight": "alphabet.vectors.network.weight", "grad_pre_weight": "before.weight"}
        gradients = torch.autograd.grad(scalar, [weights[name] for name in names.values()])
        outputs.update(zip(names, gradients, strict=True))
    return asked(outputs, case.quantizer_outputs())


def _linear(state: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def _map(vectors: Tensor, like: Tensor) -> Tensor:
    """Vectors (batch, positions, dim) channel first, on the official grid where there is one."""
    first = vectors.movedim(-1, 1)
    assert math.prod(first.shape) == math.prod(like.shape)
    return first.reshape(like.shape)
