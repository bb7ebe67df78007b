"""HierarchicalVQ of vector-quantize-pytorch as a composition of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from smalti.quantize.base import Quantizer
from smalti.quantize.compose import Quantize
from smalti.quantize.multiscale import MultiScale, Prefixes
from smalti.quantize.scales import Interpolate, Sizes, Smoothing
from smalti.quantize.vqp.reading import REQUIRED, Options, State
from smalti.quantize.vqp.vectors import LEVEL, codebook, level

OWN: Mapping[str, Any] = {
    "dim": REQUIRED,
    "codebook_size": REQUIRED,
    "scales": REQUIRED,
    "shared_codebook": True,
    "channel_first": True,
    "quant_resi": 0.5,
    "share_quant_resi": 1,
    "nested_dropout": 0.0,
    "nested_dropout_min_levels": 1,
    "accept_image_fmap": False,
    "accept_3d_fmap": False,
}
# Options of its codebooks, with its own defaults.
INNER: Mapping[str, Any] = {
    "decay": 0.99,
    "commitment_weight": 1.0,
    "rotation_trick": False,
    "kmeans_init": True,
    "kmeans_iters": 10,
    "threshold_ema_dead_code": 2,
    "stochastic_sample_codes": False,
    "sample_codebook_temp": 0.1,
    "orthogonal_reg_weight": 0.0,
    "orthogonal_reg_max_codes": 128,
    "orthogonal_reg_active_codes_only": False,
    "sync_codebook": None,
}


def hierarchical_vq(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Quantizer:
    """HierarchicalVQ, for latents of as many axes as its convolutions have."""
    o, s = Options("HierarchicalVQ", options, {**OWN, **INNER}), State(state)
    axes = s.take(f"{'phi_shared' if o['share_quant_resi'] == 1 else 'phi_levels.0'}.conv.weight").ndim - 2
    scales = Sizes(o["scales"], axes=axes)
    levels = _levels(o, s, len(scales))
    smooth = _smoothings(o, s, axes, len(scales))
    s.finish()
    drops = o["nested_dropout"] > 0 and o["nested_dropout_min_levels"] < len(scales)
    return MultiScale(
        levels,
        scales,
        down=Interpolate("area"),
        up=Interpolate("linear"),
        smooth=smooth,
        estimator="levels",
        detach=False,
        prefixes=Prefixes(o["nested_dropout_min_levels"], o["nested_dropout"]) if drops else None,
    )


def _levels(o: Options, s: State, count: int) -> list[Quantizer]:
    sizes = (o["codebook_size"],) * count if isinstance(o["codebook_size"], int) else tuple(o["codebook_size"])
    if len(sizes) != count or len(set(sizes)) != 1:
        o.refuse("codebook_size", "must be the same for every scale")
    # The loss is a mean over scales, and ours adds up.
    inner = {**o.only(INNER), "dim": o["dim"], "codebook_size": sizes[0]}
    inner["commitment_weight"] = o["commitment_weight"] / count
    inner["orthogonal_reg_weight"] = o["orthogonal_reg_weight"] / count
    own = Options("VectorQuantize", inner, LEVEL)
    if o["shared_codebook"]:
        return [_level(own, s.under("vq."))] * count
    return [_level(own, s.under(f"vqs.{index}.")) for index in range(count)]


def _level(own: Options, s: State) -> Quantize:
    return level(own, codebook(own, s.under("_codebook.")))


def _smoothings(o: Options, s: State, axes: int, scales: int) -> list[nn.Module]:
    shared = o["share_quant_resi"]
    count = 1 if shared == 1 else scales if shared <= 0 else min(scales, int(shared))
    made: list[nn.Module] = []
    for index in range(count):
        here = s.under("phi_shared.") if shared == 1 else s.under(f"phi_levels.{index}.")
        smoothing = here.load(Smoothing(o["dim"], o["quant_resi"], axes=axes))
        made.append(smoothing if o["quant_resi"] else nn.Identity())
    # Theirs rounds half to even here, where VAR looks for the nearest tick.
    return [made[round(scale / max(scales - 1, 1) * (count - 1))] for scale in range(scales)]


READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], Quantizer]] = {
    "HierarchicalVQ": hierarchical_vq,
}
