"""vector-quantize-pytorch's classes of bits as compositions of ours: LFQ, its residuals, BinaryMapper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log2

import torch.nn.functional as F
from torch import Tensor, nn

from smalti.quantize.base import Quantizer
from smalti.quantize.bounds import SoftClamp, UnitSphere
from smalti.quantize.compose import Quantize
from smalti.quantize.entropy import BitEntropy, FreeBits, Softplus, log, log_clamped
from smalti.quantize.one_hot import BinaryMapping, OneHot
from smalti.quantize.scalars import Scalars
from smalti.quantize.terms import Commitment, Term
from smalti.quantize.vqp.around import DROPOUT, LAYOUT, Around, Given, grouped, projections, residual, rotation
from smalti.quantize.vqp.reading import LEGACY, REQUIRED, Options, State

LOG_FLOOR = 1e-5  # their logarithm of the mean distribution stops here

LFQ: Given = {
    **LAYOUT,
    "dim": None,
    "codebook_size": None,
    "entropy_loss_weight": 0.1,
    "commitment_loss_weight": 0.0,
    "diversity_gamma": 1.0,
    "num_codebooks": 1,
    "codebook_scale": 1.0,
    "frac_per_sample_entropy": 1.0,
    "has_projections": None,
    "projection_has_bias": True,
    "soft_clamp_input_value": None,
    "cosine_sim_project_in": False,
    "cosine_sim_project_in_scale": None,
    "experimental_softplus_entropy_loss": False,
    "entropy_loss_offset": 5.0,
    "spherical": False,
    "orthogonal_rotation": False,
    "straight_through_activation": None,
}


def lfq(options: Given, state: Mapping[str, Tensor]) -> Quantizer:
    """LFQ. Its inv_temperature, which theirs takes in every call, is 100; `terms[0].temperature` changes it."""
    o, s = Options("LFQ", options, LFQ), State(state)
    quantizer = _lfq(o, s)
    s.finish()
    return quantizer


def _lfq(o: Options, s: State) -> Quantizer:
    if not isinstance(o["straight_through_activation"], nn.Identity | None):
        o.refuse("straight_through_activation", "is not supported, only the identity")
    bits, groups, size = _bits(o), o["num_codebooks"], o["codebook_scale"]
    (before, after), dim = _lfq_projections(o, s, bits * groups)
    turned, back = rotation(o, s, groups)
    s.ignore("mask")
    if o["soft_clamp_input_value"] is not None:
        before.append(SoftClamp(o["soft_clamp_input_value"]))
    sphere = [UnitSphere(groups, size)] if o["spherical"] else []
    scale = size / bits**0.5 if o["spherical"] else size
    return Quantize(
        Scalars((2,) * bits, groups=groups, order="big", scale=scale),
        before=nn.Sequential(*before, *turned, *sphere),
        after=nn.Sequential(*back, *after),
        dim=dim,
        terms=[_lfq_entropy(o), Commitment(o["commitment_loss_weight"])],
    )


def _lfq_projections(o: Options, s: State, width: int) -> tuple[Around, int]:
    dim, wanted = width if o["dim"] is None else o["dim"], o["has_projections"]
    if not (dim != width if wanted is None else wanted):
        return ([], []), dim
    bias = o["projection_has_bias"]
    into: nn.Module
    if o["cosine_sim_project_in"]:
        scale = o["cosine_sim_project_in_scale"]
        into = CosineLinear(s.take("project_in.weight"), o["codebook_scale"] if scale is None else scale)
    else:
        into = s.linear("project_in", bias=bias)
    return ([into], [s.linear("project_out", bias=bias)]), dim


def _bits(o: Options) -> int:
    if o["codebook_size"] is None and o["dim"] is None:
        o.refuse("dim", "is needed where there is no codebook_size")
    bits = o["dim"] if o["codebook_size"] is None else log2(o["codebook_size"])
    if bits != int(bits):
        o.refuse("codebook_size", "is no power of 2")
    return int(bits)


def _lfq_entropy(o: Options) -> Term:
    weight, offset = o["entropy_loss_weight"], o["entropy_loss_offset"]
    entropy = BitEntropy(
        weight,
        diversity=o["diversity_gamma"],
        share=o["frac_per_sample_entropy"],
        # official training needs this: rare codes get no gradient to be used more
        logarithm=log_clamped(LOG_FLOOR) if o[LEGACY] else log,
    )
    return Softplus(entropy, offset, weight) if o["experimental_softplus_entropy_loss"] else entropy


class CosineLinear(nn.Module):
    """Cosines of the latents with the columns of a matrix, times a scale.

    Args:
        weight: (dim in, dim out).
        scale: multiplies the cosines.
    """

    def __init__(self, weight: Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(weight.clone()), scale

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) @ F.normalize(self.weight, dim=0) * self.scale


RESIDUAL_LFQ: Given = {**LFQ, **DROPOUT, "dim": REQUIRED, "codebook_size": REQUIRED, "num_quantizers": REQUIRED}


def residual_lfq(options: Given, state: Mapping[str, Tensor]) -> Quantizer:
    """ResidualLFQ: level i has signs of 2^-i."""
    o, s = Options("ResidualLFQ", options, RESIDUAL_LFQ), State(state)
    quantizer = _residual_lfq(o, s)
    s.finish()
    return quantizer


def _residual_lfq(o: Options, s: State) -> Quantizer:
    # Theirs sets these itself, or stops at levels that have them.
    for name, value in {"num_codebooks": 1, "codebook_scale": 1.0, "has_projections": None}.items():
        if o[name] != value:
            o.refuse(name, "is set by ResidualLFQ itself")
    bits, parts = _bits(o), []
    for index in range(o["num_quantizers"]):
        limit = o["soft_clamp_input_value"]
        changed = {
            "dim": bits,
            "codebook_scale": 2.0**-index,
            "soft_clamp_input_value": None if limit is None else limit * 0.5**index,
        }
        own = Options("LFQ", {**o.only(LFQ), **changed}, LFQ)
        parts.append(_lfq(own, s.under(f"layers.{index}.")))
    around, dim = projections(s, o["dim"], bits)
    return residual(o, parts, around, dim)


# --- BinaryMapper ----------------------------------------------------------------------------------------------------

BINARY_MAPPER: Given = {"bits": 1, "kl_loss_threshold": FreeBits().free, "deterministic_on_eval": False}


def binary_mapper(options: Given, state: Mapping[str, Tensor]) -> Quantizer:
    """BinaryMapper: latents are logits, vectors one-hot. Evaluation takes the likelier bits; theirs may draw them."""
    o, s = Options("BinaryMapper", options, BINARY_MAPPER), State(state)
    s.finish()
    return Quantize(OneHot(o["bits"]), assign=BinaryMapping(), terms=[FreeBits(1.0, o["kl_loss_threshold"])])


READERS: dict[str, Callable[[Given, Mapping[str, Tensor]], Quantizer]] = {
    "LFQ": lfq,
    "ResidualLFQ": residual_lfq,
    "GroupedResidualLFQ": grouped("GroupedResidualLFQ", RESIDUAL_LFQ, _residual_lfq),
    "BinaryMapper": binary_mapper,
}
