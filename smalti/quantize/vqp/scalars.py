"""vector-quantize-pytorch's classes of levels as compositions of ours: FSQ, its residuals, FSP, LatentQuantize.

`READERS` has all scalar and multi-scale classes; those of bits are in `bits`, HierarchicalVQ is in `hierarchical`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from smalti.quantize.base import Noise, Quantized, Quantizer
from smalti.quantize.bounds import BoundFSQ, Cumulative, HardClamp, SoftClamp, Standardise
from smalti.quantize.compose import Quantize
from smalti.quantize.estimators import StraightThrough, Synchronous
from smalti.quantize.levels import Levels, even_levels
from smalti.quantize.moments import PRESETS
from smalti.quantize.scalar_noise import NoiseDropout, Perturbed, level_widths
from smalti.quantize.scalars import Scalars
from smalti.quantize.vqp import bits, hierarchical
from smalti.quantize.vqp.around import DROPOUT, LAYOUT, Around, Given, grouped, projections, residual, rotation
from smalti.quantize.vqp.reading import LEGACY, REQUIRED, Options, State
from smalti.quantize.warped import Through, Warped

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
    (before, after), dim = projections(s, o["dim"], len(levels) * groups, o["projection_has_bias"])
    turned, back = rotation(o, s, groups)
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
    around, dim = projections(s, o["dim"], len(levels))
    clamp = [] if limit is None else [SoftClamp(limit)]
    parts = [_residual_fsq_level(o, s.under(f"layers.{i}."), levels, i) for i in range(o["num_quantizers"])]
    return residual(o, parts, ([*around[0], *clamp], around[1]), dim)


def _residual_fsq_level(o: Options, s: State, levels: Sequence[int], index: int) -> Quantizer:
    scale = [float(level) ** -index for level in levels]
    turned, back = rotation(o, s)
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
    (before, after), dim = projections(s, o["dim"], len(levels), o["projection_has_bias"])
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
    around, dim = projections(s, o["dim"], len(counts) * groups)
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


READERS: dict[str, Callable[[Given, Mapping[str, Tensor]], Quantizer]] = {
    "FSQ": fsq,
    "ResidualFSQ": residual_fsq,
    "GroupedResidualFSQ": grouped("GroupedResidualFSQ", RESIDUAL_FSQ, _residual_fsq),
    "FSP": fsp,
    "LatentQuantize": latent_quantize,
    **bits.READERS,
    **hierarchical.READERS,
}
