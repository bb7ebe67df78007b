"""vector-quantize-pytorch's scalar classes as compositions of ours: FSQ, FSP, LFQ, their residuals, LatentQuantize."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log2
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.quantize.base import Noise, Quantized, Quantizer
from smalti.quantize.bounds import BoundFSQ, Cumulative, HardClamp, SoftClamp, Standardise, Turn, UnitSphere
from smalti.quantize.compose import Quantize
from smalti.quantize.dropout import Dropout
from smalti.quantize.entropy import BitEntropy, FreeBits, Softplus, log, log_clamped
from smalti.quantize.estimators import StraightThrough, Synchronous
from smalti.quantize.levels import Levels, even_levels
from smalti.quantize.moments import PRESETS
from smalti.quantize.one_hot import BinaryMapping, OneHot
from smalti.quantize.parallel import Parallel
from smalti.quantize.residual import Residual
from smalti.quantize.scalar_noise import NoiseDropout, Perturbed, level_widths
from smalti.quantize.scalars import Scalars
from smalti.quantize.terms import Commitment, Term
from smalti.quantize.vqp import hierarchical
from smalti.quantize.vqp.reading import LEGACY, REQUIRED, Options, State
from smalti.quantize.warped import Through, Warped

Given = Mapping[str, Any]
Around = tuple[list[nn.Module], list[nn.Module]]  # what stands before an alphabet and after it

LOG_FLOOR = 1e-5  # their logarithm of the mean distribution stops here
# Options that say how latents lie in memory or what is returned.
LAYOUT: Given = dict.fromkeys(
    (
        "accept_image_fmap",
        "allowed_dtypes",
        "channel_first",
        "force_quantization_f32",
        "is_channel_first",
        "keep_num_codebooks_dim",
        "return_indices",
    )
)
DROPOUT: Given = {"quantize_dropout": False, "quantize_dropout_cutoff_index": 0, "quantize_dropout_multiple_of": 1}


def _projections(s: State, dim: int | None, inner: int, bias: bool = True) -> tuple[Around, int]:
    """The linear layers around a codebook, which exist where its dimension is another one; and the outer dimension."""
    if dim is None or dim == inner:
        return ([], []), inner
    return ([s.linear("project_in", bias=bias)], [s.linear("project_out", bias=bias)]), dim


def _rotation(o: Options, s: State, groups: int = 1) -> Around:
    if not o["orthogonal_rotation"]:
        return [], []
    turn = Turn(s.take("orthogonal_rot"), groups)
    return [turn], [turn.back()]


# --- FSQ -------------------------------------------------------------------------------------------------------------

FSQ: Given = {
    **LAYOUT,
    "levels": REQUIRED,
    "dim": None,
    "num_codebooks": 1,
    "scale": None,  # theirs stores it and uses it nowhere
    "projection_has_bias": True,
    "preserve_symmetry": False,
    "noise_dropout": 0.0,
    "bound_hard_clamp": False,
    "orthogonal_rotation": False,
}


def fsq(options: Given, state: Mapping[str, Tensor]) -> Quantizer:
    """FSQ."""
    o, s = Options("FSQ", options, FSQ), State(state)
    levels, groups, symmetric = tuple(o["levels"]), o["num_codebooks"], o["preserve_symmetry"]
    if not symmetric and o["noise_dropout"]:
        o.refuse("noise_dropout", "needs preserve_symmetry=True")
    if not symmetric and 2 in levels:
        o.refuse("levels", "of 2 need preserve_symmetry=True")
    (before, after), dim = _projections(s, o["dim"], len(levels) * groups, o["projection_has_bias"])
    turned, back = _rotation(o, s, groups)
    s.finish()
    alphabet = Scalars(levels, groups=groups, grid="symmetric" if symmetric else "fsq")
    bound = _symmetric_bound(o) if symmetric else BoundFSQ(levels, groups, hard=o["bound_hard_clamp"])
    return Quantize(
        alphabet,
        before=nn.Sequential(*before, *turned, bound),
        after=nn.Sequential(*back, *after),
        dim=dim,
        assign=_noise_dropout(o, alphabet),
    )


def _symmetric_bound(o: Options, scale: float | Sequence[float] = 1.0) -> nn.Module:
    return HardClamp(scale) if o["bound_hard_clamp"] else SoftClamp(scale)


def _noise_dropout(o: Options, alphabet: Scalars) -> NoiseDropout | None:
    if not o["noise_dropout"]:
        return None
    scales = alphabet.scales * alphabet.groups
    # official training needs this: their noise is half the grid wide, whatever the number of levels
    return NoiseDropout(o["noise_dropout"], scales if o[LEGACY] else level_widths(alphabet), scales)


RESIDUAL_FSQ: Given = {
    **LAYOUT,
    **DROPOUT,
    "levels": REQUIRED,
    "num_quantizers": REQUIRED,
    "dim": None,
    "scale": None,
    "soft_clamp_input_value": None,
    "bound_hard_clamp": True,
    "noise_dropout": 0.0,
    "orthogonal_rotation": False,
}


def residual_fsq(options: Given, state: Mapping[str, Tensor]) -> Quantizer:
    """ResidualFSQ: level i has the same symmetric grid, L^-i as large."""
    o, s = Options("ResidualFSQ", options, RESIDUAL_FSQ), State(state)
    quantizer = _residual_fsq(o, s)
    s.finish()
    return quantizer


def _residual_fsq(o: Options, s: State) -> Quantizer:
    levels, limit = tuple(o["levels"]), o["soft_clamp_input_value"]
    if o["bound_hard_clamp"]:
        if limit is not None:
            o.refuse("soft_clamp_input_value", "needs bound_hard_clamp=False")
        limit = [1 + 1 / (level - 1) for level in levels]
    around, dim = _projections(s, o["dim"], len(levels))
    clamp = [] if limit is None else [SoftClamp(limit)]
    parts = [_residual_fsq_level(o, s.under(f"layers.{i}."), levels, i) for i in range(o["num_quantizers"])]
    return _residual(o, parts, ([*around[0], *clamp], around[1]), dim)


def _residual_fsq_level(o: Options, s: State, levels: Sequence[int], index: int) -> Quantizer:
    scale = [float(level) ** -index for level in levels]
    turned, back = _rotation(o, s)
    if not turned:
        alphabet = Scalars(levels, scale=scale)
        return Quantize(alphabet, before=_symmetric_bound(o, scale), assign=_noise_dropout(o, alphabet))
    # Dimensions of different scales turn where all are 1.
    alphabet = Scalars(levels)
    return Quantize(
        alphabet,
        before=nn.Sequential(Stretch([1 / factor for factor in scale]), *turned, _symmetric_bound(o)),
        after=nn.Sequential(*back, Stretch(scale)),
        assign=_noise_dropout(o, alphabet),
    )


class Stretch(nn.Module):
    """Each dimension times its own factor."""

    def __init__(self, factors: Sequence[float]) -> None:
        super().__init__()
        self.factors = tuple(factors)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor(self.factors, dtype=x.dtype, device=x.device)


def _residual(o: Options, parts: Sequence[Quantizer], around: Around, dim: int) -> Quantizer:
    before, after = around
    return Residual(
        parts,
        before=nn.Sequential(*before),
        after=nn.Sequential(*after),
        dim=dim,
        estimator="levels",
        dropout=_dropout(o, len(parts)),
    )


def _dropout(o: Options, levels: int) -> Dropout | None:
    if not o["quantize_dropout"] or levels < 2:
        return None
    return Dropout(o["quantize_dropout_cutoff_index"] + 1, o["quantize_dropout_multiple_of"])


# --- FSP -------------------------------------------------------------------------------------------------------------

FSP: Given = {
    **LAYOUT,
    "levels": REQUIRED,
    "dim": None,
    "projection_has_bias": True,
    "act_name": "tanh",
    "quantize_rate": 0.0,
    "need_inv_act": False,
    "vector_norm": "var_tanh",
}


def fsp(options: Given, state: Mapping[str, Tensor]) -> Quantizer:
    """FSP."""
    o, s = Options("FSP", options, FSP), State(state)
    if o["vector_norm"] not in PRESETS:
        o.refuse("vector_norm", f"is none of {sorted(PRESETS)}")
    levels = tuple(o["levels"])
    (before, after), dim = _projections(s, o["dim"], len(levels), o["projection_has_bias"])
    s.finish()
    bound = Cumulative(o["act_name"])
    back = bound.inverse if o["need_inv_act"] else None
    return Quantize(
        Warped(Scalars(levels, grid="centres"), bound, back),
        before=nn.Sequential(*before),
        after=nn.Sequential(*([] if back else [Standardise()]), *after),
        dim=dim,
        assign=Perturbed(o["quantize_rate"], levels, bound, back),
        estimator=StraightThrough() if back else Through(bound),
        terms=[replace(PRESETS[o["vector_norm"]])],
    )


# --- LFQ -------------------------------------------------------------------------------------------------------------

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
    turned, back = _rotation(o, s, groups)
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
    around, dim = _projections(s, o["dim"], bits)
    return _residual(o, parts, around, dim)


def _grouped(name: str, known: Given, read: Callable[[Options, State], Quantizer]) -> Any:
    """A residual quantizer for each of equal parts of the dimensions; they drop the same levels."""

    def grouped(options: Given, state: Mapping[str, Tensor]) -> Quantizer:
        o, s = Options(name, options, {**known, "dim": REQUIRED, "groups": 1}), State(state)
        groups = o["groups"]
        if o["dim"] % groups:
            o.refuse("groups", f"does not divide dim={o['dim']}")
        own = Options(name, {**o.only(known), "dim": o["dim"] // groups}, known)
        parts = [read(own, s.under(f"rvqs.{group}.")) for group in range(groups)]
        s.finish()
        return Parallel(parts, dropout=_dropout(o, o["num_quantizers"]))

    return grouped


# --- LatentQuantize --------------------------------------------------------------------------------------------------

LATENT_QUANTIZE: Given = {
    **LAYOUT,
    "levels": REQUIRED,
    "dim": REQUIRED,
    "commitment_loss_weight": 0.1,
    "quantization_loss_weight": 0.1,
    "num_codebooks": 1,
    "codebook_dim": -1,
    "optimize_values": True,
    "in_place_codebook_optimizer": None,
}


def latent_quantize(options: Given, state: Mapping[str, Tensor]) -> Quantizer:
    """LatentQuantize. Codes are the nearest levels, also where trained values make the published index wrong."""
    o, s = Options("LatentQuantize", options, LATENT_QUANTIZE), State(state)
    if o["in_place_codebook_optimizer"] is not None:
        o.refuse("in_place_codebook_optimizer", "is not supported: values learn from the loss")
    counts = (o["levels"],) * o["codebook_dim"] if isinstance(o["levels"], int) else tuple(o["levels"])
    trained, groups = o["optimize_values"], o["num_codebooks"]
    tables = [s.take(f"values_per_latent.{i}") if trained else even_levels(count) for i, count in enumerate(counts)]
    if [len(table) for table in tables] != list(counts):
        o.refuse("levels", f"are not those of the state, {[len(table) for table in tables]}")
    around, dim = _projections(s, o["dim"], len(counts) * groups)
    s.finish()
    alphabet = Levels(tables * groups, slots=(len(counts),) * groups, trained=trained)
    return LatentQuantize(alphabet, around, dim, o["commitment_loss_weight"], o["quantization_loss_weight"])


class LatentQuantize(Quantize):
    """Levels whose losses compare what goes into the projections with what comes out of them, as published.

    Unlike theirs, trained values learn: there the straight-through estimator cuts their gradient off.
    """

    def __init__(self, alphabet: Levels, around: Around, dim: int, values_weight: float, latents_weight: float) -> None:
        before, after = nn.Sequential(*around[0]), nn.Sequential(*around[1])
        super().__init__(alphabet, before=before, after=after, dim=dim, estimator=Synchronous(1.0))
        self.values_weight, self.latents_weight = values_weight, latents_weight

    def forward(
        self,
        z: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        noise: Noise | None = None,
    ) -> Quantized:
        out = super().forward(z, mask=mask, context=context, noise=noise)
        given, got = (z.float(), out.z.float()) if mask is None else (z[mask].float(), out.z[mask].float())
        elements = max(1, given.numel())
        terms = {
            "codebook": self.values_weight * (given.detach() - got).square().sum() / elements,
            "commitment": self.latents_weight * (given - got.detach()).square().sum() / elements,
        }
        return Quantized(out.z, out.codes, terms["codebook"] + terms["commitment"], {**terms, **out.terms})


# --- BinaryMapper ----------------------------------------------------------------------------------------------------

BINARY_MAPPER: Given = {"bits": 1, "kl_loss_threshold": FreeBits().free, "deterministic_on_eval": False}


def binary_mapper(options: Given, state: Mapping[str, Tensor]) -> Quantizer:
    """BinaryMapper: latents are logits, vectors one-hot. Evaluation takes the likelier bits; theirs may draw them."""
    o, s = Options("BinaryMapper", options, BINARY_MAPPER), State(state)
    s.finish()
    return Quantize(OneHot(o["bits"]), assign=BinaryMapping(), terms=[FreeBits(1.0, o["kl_loss_threshold"])])


READERS: dict[str, Callable[[Given, Mapping[str, Tensor]], Quantizer]] = {
    "FSQ": fsq,
    "ResidualFSQ": residual_fsq,
    "GroupedResidualFSQ": _grouped("GroupedResidualFSQ", RESIDUAL_FSQ, _residual_fsq),
    "FSP": fsp,
    "LFQ": lfq,
    "ResidualLFQ": residual_lfq,
    "GroupedResidualLFQ": _grouped("GroupedResidualLFQ", RESIDUAL_LFQ, _residual_lfq),
    "LatentQuantize": latent_quantize,
    "BinaryMapper": binary_mapper,
    **hierarchical.READERS,
}
