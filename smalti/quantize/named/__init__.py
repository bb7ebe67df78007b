"""The quantizers of the field by name: what each composes, in a few lines.

`docs/quantizers.md` says of each where it comes from, when to use it, and against what it is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from smalti.config import Config
from smalti.errors import ConfigError
from smalti.quantize.base import Quantizer
from smalti.quantize.named.added import additive, composite, free_additive, lsq, opq, pyramid, rq_vae
from smalti.quantize.named.codebooks import (
    affine,
    diveq,
    diverse,
    gumbel_straight_through,
    in_place,
    multi_head,
    nsvq,
    orthogonal,
    random_projection,
    rotation_trick,
    stochastic,
    synchronous,
    vit_vqgan,
)
from smalti.quantize.named.combined import (
    beam_residual,
    disentangled,
    grouped_residual,
    product,
    qinco,
    residual,
    residual_diveq,
    residual_simvq,
    sample_dropout_residual,
    shared_residual,
    vq_vla,
)
from smalti.quantize.named.learned import (
    dac,
    factorised,
    fvq,
    ibq,
    joint_index,
    linear_bridge,
    mimi,
    normalised_ema,
    residual_fvq,
    residual_normalised_ema,
    sinkhorn,
    vqrae,
)
from smalti.quantize.named.options import options_of
from smalti.quantize.named.scalars import (
    bernoulli,
    binary_mapper,
    bsq,
    dimension_wise,
    fsp,
    fsq,
    group_wise,
    ifsq,
    latent,
    leech,
    lookup_free,
    residual_fsq,
    residual_lookup_free,
    symmetric_fsq,
)
from smalti.quantize.named.scales import multi_rate, multi_scale
from smalti.quantize.named.vectors import ema, gumbel, simvq, vq

NAMES: dict[str, Callable[..., Quantizer]] = {
    "vq": vq,
    "ema": ema,
    "simvq": simvq,
    "gumbel": gumbel,
    "rotation-trick": rotation_trick,
    "vit-vqgan": vit_vqgan,
    "affine": affine,
    "in-place": in_place,
    "synchronous": synchronous,
    "diveq": diveq,
    "nsvq": nsvq,
    "stochastic": stochastic,
    "gumbel-straight-through": gumbel_straight_through,
    "multi-head": multi_head,
    "random-projection": random_projection,
    "orthogonal": orthogonal,
    "diverse": diverse,
    "fsq": fsq,
    "symmetric-fsq": symmetric_fsq,
    "ifsq": ifsq,
    "residual-fsq": residual_fsq,
    "fsp": fsp,
    "latent": latent,
    "dimension-wise": dimension_wise,
    "lookup-free": lookup_free,
    "group-wise": group_wise,
    "bsq": bsq,
    "residual-lookup-free": residual_lookup_free,
    "bernoulli": bernoulli,
    "binary-mapper": binary_mapper,
    "leech": leech,
    "residual": residual,
    "shared-residual": shared_residual,
    "sample-dropout-residual": sample_dropout_residual,
    "beam-residual": beam_residual,
    "grouped-residual": grouped_residual,
    "residual-simvq": residual_simvq,
    "residual-diveq": residual_diveq,
    "vq-vla": vq_vla,
    "qinco": qinco,
    "product": product,
    "disentangled": disentangled,
    "multi-scale": multi_scale,
    "multi-rate": multi_rate,
    "pyramid": pyramid,
    "additive": additive,
    "free-additive": free_additive,
    "lsq": lsq,
    "composite": composite,
    "opq": opq,
    "rq-vae": rq_vae,
    "fvq": fvq,
    "residual-fvq": residual_fvq,
    "linear-bridge": linear_bridge,
    "ibq": ibq,
    "normalised-ema": normalised_ema,
    "residual-normalised-ema": residual_normalised_ema,
    "vqrae": vqrae,
    "factorised": factorised,
    "dac": dac,
    "mimi": mimi,
    "sinkhorn": sinkhorn,
    "joint-index": joint_index,
}


# What people also call them.
ALIASES: dict[str, str] = {
    "aq": "additive",
    "beit-v2": "normalised-ema",
    "best-rq": "random-projection",
    "cq": "composite",
    "encodec": "residual",
    "factorized": "factorised",
    "fqgan": "disentangled",
    "finite-scalar": "fsq",
    "gfq": "group-wise",
    "group-residual": "grouped-residual",
    "grvq": "grouped-residual",
    "hifi-codec": "grouped-residual",
    "lambda24": "leech",
    "latent-quantization": "latent",
    "lfq": "lookup-free",
    "neurorvq": "residual-normalised-ema",
    "norm-ema": "normalised-ema",
    "optimal-transport": "sinkhorn",
    "pq": "product",
    "pvq": "pyramid",
    "residual-vq": "residual",
    "rotation": "rotation-trick",
    "rvq": "residual",
    "snac": "multi-rate",
    "soundstream": "residual",
    "sync-update": "synchronous",
    "tokenbridge": "dimension-wise",
    "tokenflow": "joint-index",
    "var": "multi-scale",
    "vq-vae": "vq",
    "wetok": "group-wise",
}


def create(name: str, **options: Any) -> Quantizer:
    """A quantizer by name, e.g. create("simvq", dim=32, codes=8192).

    Args:
        name: one of `NAMES`, or of `ALIASES`.
        **options: those of its builder below.

    Raises:
        ConfigError: if there is no such name, or an option does not fit.
    """
    return NAMES[own_name(name)](**dict(checked_options(name, options)))


def own_name(name: str) -> str:
    """The name in `NAMES` that a name or an alias stands for.

    Raises:
        ConfigError: if there is no such name.
    """
    own = ALIASES.get(name, name)
    if own not in NAMES:
        near = get_close_matches(name, [*NAMES, *ALIASES])
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"no quantizer is called {name!r}: {meant}choose one of {', '.join(sorted(NAMES))}")
    return own


def checked_options(name: str, options: Mapping[str, Any]) -> Config:
    """All options of a quantizer's builder, those that are not given with their defaults.

    Raises:
        ConfigError: naming the options that do not fit.
    """
    own = own_name(name)
    return options_of(NAMES[own], own)(**options)
