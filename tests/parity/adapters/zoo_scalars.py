"""The scalar and multi-scale classes of quantizer-zoo: a function per class, from options and tensors to outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from smalti.quantize import (
    BitEntropy,
    Commitment,
    MultiScale,
    Parallel,
    Quantize,
    Quantized,
    Quantizer,
    Residual,
    Scalars,
)
from smalti.quantize.bounds import IFSQ_SLOPE, BoundFSQ, SoftClamp
from smalti.quantize.entropy import Softplus
from smalti.quantize.indices import join_codes
from smalti.quantize.vqp.reading import LEGACY
from smalti.quantize.vqp.scalars import READERS

Given = Mapping[str, Any]
Tensors = Mapping[str, Tensor]
Outputs = dict[str, Tensor]


def ramp(quant: Tensor) -> Tensor:
    """What gradients are weighted with."""
    return (torch.arange(quant.numel(), dtype=quant.dtype) / quant.numel()).view(quant.shape)


class Layout:
    """Where theirs has the channels, and which axes codes lack."""

    def __init__(self, options: Given, x: Tensor, quantizer: Quantizer, *, always_first: bool = False) -> None:
        named = options.get("channel_first", options.get("is_channel_first", options.get("accept_image_fmap")))
        self.first = always_first or (x.ndim >= 4 if named is None else bool(named)) or (x.ndim >= 4 and not named)
        if options.get("channel_first") is False and "entropy_loss_weight" in options:
            self.first = always_first
        self.keeps_slots = bool(options.get("keep_num_codebooks_dim")) or len(quantizer.vocab) > 1

    def to_ours(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1) if self.first else x

    def to_theirs(self, z: Tensor) -> Tensor:
        return z.movedim(-1, 1) if self.first else z

    def indices(self, codes: Tensor) -> Tensor:
        return codes if self.keeps_slots else codes[..., 0]


def trained(quantizer: Quantizer, layout: Layout, x: Tensor, noise: Tensors | None = None) -> tuple[Quantized, Outputs]:
    """A training step's outputs and the gradient of sum(quant * ramp) + loss."""
    x = x.clone().requires_grad_()
    out = quantizer.train()(layout.to_ours(x), noise=noise)
    quant = layout.to_theirs(out.z)
    (gradient,) = torch.autograd.grad((quant * ramp(quant)).sum() + out.loss, x)
    return out, {
        "train_quant": quant,
        "train_indices": layout.indices(out.codes),
        "train_loss": out.loss,
        "grad_x": gradient,
    }


def evaluated(quantizer: Quantizer, layout: Layout, x: Tensor) -> Outputs:
    quantizer.eval()
    with torch.no_grad():
        out = quantizer(layout.to_ours(x))
        decoded = layout.to_theirs(quantizer.decode(quantizer.encode(layout.to_ours(x))))
    return {
        "eval_quant": layout.to_theirs(out.z),
        "eval_indices": layout.indices(out.codes),
        "codes_from_indices": decoded,
        "output_from_indices": decoded,
    }


def simple(name: str, *, always_first: bool = False) -> Callable[..., Outputs]:
    """A class without further outputs."""

    def run(options: Given, state: Tensors, inputs: Tensors, wanted: Collection[str]) -> Outputs:
        quantizer = READERS[name]({**options, LEGACY: True}, state)
        layout = Layout(options, inputs["x"], quantizer, always_first=always_first)
        given = evaluated(quantizer, layout, inputs["x"])
        return {**given, **trained(quantizer, layout, inputs["x"])[1]}

    return run


def lfq(options: Given, state: Tensors, inputs: Tensors, wanted: Collection[str]) -> Outputs:
    quantizer = READERS["LFQ"]({**options, LEGACY: True}, state)
    assert isinstance(quantizer, Quantize)
    layout = Layout(options, inputs["x"], quantizer)
    given = evaluated(quantizer, layout, inputs["x"])
    out, more = trained(quantizer, layout, inputs["x"])
    entropy, commitment = quantizer.terms
    inner = entropy.term if isinstance(entropy, Softplus) else entropy
    assert isinstance(inner, BitEntropy) and isinstance(commitment, Commitment)
    with torch.no_grad():
        rows = quantizer.before(layout.to_ours(inputs["x"]).reshape(-1, quantizer.dim))
        sample, batch = inner.entropies(rows, quantizer.alphabet)
    weight = commitment.weight
    commit = out.terms["commitment"].detach() / weight if weight else torch.zeros(())
    return {**given, **more, "per_sample_entropy": sample, "batch_entropy": batch, "commit": commit}


def residual(name: str) -> Callable[..., Outputs]:
    """A residual class, grouped or not."""

    def run(options: Given, state: Tensors, inputs: Tensors, wanted: Collection[str]) -> Outputs:
        quantizer = READERS[name]({**options, LEGACY: True}, state)
        layout = Layout(options, inputs["x"], quantizer)
        layout.keeps_slots = True
        given = evaluated(quantizer, layout, inputs["x"])
        out, more = trained(quantizer, layout, inputs["x"], _dropped_levels(options, inputs))
        groups = len(quantizer.parts) if isinstance(quantizer, Parallel) else 1
        losses = out.terms["level_loss"].view(groups, -1)
        given |= {**more, "train_loss": losses, **_looked_up(options, quantizer, layout, given["eval_indices"])}
        for key in ("eval_indices", "train_indices"):
            given[key] = given[key].unflatten(-1, (groups, -1)).movedim(-2, 0)
            if options.get("is_channel_first"):
                given[key] = given[key].movedim(-1, 2)
        if "FSQ" in name:
            given["train_loss"] = losses.sum()
        if not isinstance(quantizer, Parallel):
            given |= {key: value[0] for key, value in given.items() if key in ONE_GROUP and value.ndim}
        return {**given, "train_losses": given["train_loss"]}

    return run


ONE_GROUP = ("eval_indices", "train_indices", "train_loss", "codes_from_indices")


def _looked_up(options: Given, quantizer: Quantizer, layout: Layout, codes: Tensor) -> Outputs:
    """Vectors of codes as theirs looks them up: without the rotation, and without normalising to the sphere."""
    parts = quantizer.parts if isinstance(quantizer, Parallel) else [quantizer]
    scaled, whole = [], []
    for part, own in zip(parts, codes.split([len(part.vocab) for part in parts], -1), strict=True):
        assert isinstance(part, Residual)
        vectors = []
        for index, level in enumerate(part.levels):
            assert isinstance(level, Quantize) and isinstance(level.alphabet, Scalars)
            scale = torch.ones(())
            if options.get("spherical"):
                scale = torch.tensor(float(len(level.alphabet.levels))).sqrt()
            if options.get("orthogonal_rotation") and "levels" in options:
                scale = torch.tensor(options["levels"]).float() ** -index
            vectors.append(level.alphabet.lookup(own[..., index, None]) * scale)
        scaled.append(torch.stack(vectors))
        whole.append(part.after(scaled[-1].sum(0)))
    return {
        "codes_from_indices": torch.stack(scaled).detach(),
        "output_from_indices": layout.to_theirs(torch.cat(whole, -1)).detach(),
    }


def _dropped_levels(options: Given, inputs: Tensors) -> dict[str, Tensor]:
    seed = inputs.get("rand_quantize_dropout_fixed_seed")
    if seed is None or not options.get("quantize_dropout"):
        return {}
    first, levels = options.get("quantize_dropout_cutoff_index", 0), options["num_quantizers"]
    return {"levels": torch.tensor(Random(int(seed)).randrange(first, levels) + 1)}


def ifsq(options: Given, state: Tensors, inputs: Tensors, wanted: Collection[str]) -> Outputs:
    """iFSQ: factorised groups of dimensions may have different levels, so each is a quantizer of its own."""
    levels, sizes = list(options["levels"]), list(options.get("factorized_bits") or [len(options["levels"])])
    parts = []
    for size in sizes:
        own, levels = levels[:size], levels[size:]
        if options.get("do_simple_bound"):
            bound: nn.Module = SoftClamp(slope=_slope(options["act_fun"]))
            parts.append(Quantize(Scalars(own), before=bound))
        else:
            parts.append(Quantize(Scalars(own, grid="fsq"), before=BoundFSQ(own)))
    quantizer = Parallel(parts)
    x = inputs["x"].clone().requires_grad_()
    out = quantizer(x.movedim(1, -1))
    quant = out.z.movedim(-1, 1)
    (gradient,) = torch.autograd.grad((quant * ramp(quant)).sum(), x)
    return {
        "quant": quant,
        "indices": out.codes,
        "global_index": join_codes(out.codes, quantizer.vocab),
        "codes_from_indices": quantizer.decode(out.codes).movedim(-1, 1),
        "grad_x": gradient,
    }


def _slope(activation: str) -> float:
    """scale_sigmoid_16 is 2 sigmoid(1.6 z) - 1 = tanh(0.8 z)."""
    if activation == "tanh":
        return 1.0
    steepness = activation.removeprefix("scale_sigmoid_")
    slope = int(steepness) / 10 / 2 if steepness != activation else 0.5
    return IFSQ_SLOPE if steepness == "16" else slope


def binary_mapper(options: Given, state: Tensors, inputs: Tensors, wanted: Collection[str]) -> Outputs:
    quantizer = READERS["BinaryMapper"](options, state).eval()
    logits = inputs["logits"].clone().requires_grad_()
    out = quantizer(logits)
    (gradient,) = torch.autograd.grad((out.z * ramp(out.z)).sum() + out.loss, logits)
    assert isinstance(quantizer, Quantize)
    log_p = quantizer.alphabet.log_probabilities(logits)  # type: ignore[operator]
    return {
        "one_hot": out.z,
        "indices": out.codes[..., 0],
        "aux_kl_loss": out.loss,
        "log_prob": log_p.gather(-1, out.codes)[..., 0],
        "grad": gradient,
    }


def hierarchical_vq(options: Given, state: Tensors, inputs: Tensors, wanted: Collection[str]) -> Outputs:
    quantizer = READERS["HierarchicalVQ"]({**options, LEGACY: True}, state).eval()
    assert isinstance(quantizer, MultiScale)
    x = inputs["x"].movedim(1, -1) if options.get("channel_first", True) else inputs["x"]
    with torch.no_grad():
        out = quantizer(x)
        decoded = quantizer.decode(out.codes, extent=tuple(x.shape[1:-1]))
    maps = quantizer.split(out.codes, tuple(x.shape[1:-1]))
    first = options.get("channel_first", True)
    recon = {"recon": out.z, "recon_from_indices": decoded}
    return {
        **{f"indices_{index}": part[..., 0] for index, part in enumerate(maps)},
        **{name: z.movedim(-1, 1) if first else z for name, z in recon.items()},
        "commit_loss": out.loss,
    }


RUNS: dict[str, Callable[[Given, Tensors, Tensors, Collection[str]], Outputs]] = {
    "FSQ": simple("FSQ"),
    "FSP": simple("FSP"),
    "LatentQuantize": simple("LatentQuantize", always_first=True),
    "LFQ": lfq,
    **{name: residual(name) for name in ("ResidualFSQ", "GroupedResidualFSQ", "ResidualLFQ", "GroupedResidualLFQ")},
    "GroupFSQ of Tencent-Hunyuan/iFSQ@e78bd70": ifsq,
    "BinaryMapper": binary_mapper,
    "HierarchicalVQ": hierarchical_vq,
}
