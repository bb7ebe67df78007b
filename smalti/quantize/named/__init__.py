"""The quantizers of the field by name: what each composes, in a few lines.

`docs/quantizers.md` says of each where it comes from, when to use it, and against what it is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smalti.errors import ConfigError
from smalti.quantize.base import Quantizer
from smalti.quantize.named.added import pyramid
from smalti.quantize.named.combined import product, residual
from smalti.quantize.named.scalars import (
    bernoulli,
    binary_mapper,
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
    spherical,
    symmetric_fsq,
)
from smalti.quantize.named.scales import multi_rate, multi_scale
from smalti.quantize.named.vectors import ema, gumbel, simvq, vq

NAMES: dict[str, Callable[..., Quantizer]] = {
    "vq": vq,
    "ema": ema,
    "simvq": simvq,
    "gumbel": gumbel,
    "fsq": fsq,
    "symmetric-fsq": symmetric_fsq,
    "ifsq": ifsq,
    "residual-fsq": residual_fsq,
    "fsp": fsp,
    "latent": latent,
    "dimension-wise": dimension_wise,
    "lookup-free": lookup_free,
    "group-wise": group_wise,
    "spherical": spherical,
    "residual-lookup-free": residual_lookup_free,
    "bernoulli": bernoulli,
    "binary-mapper": binary_mapper,
    "leech": leech,
    "residual": residual,
    "product": product,
    "multi-scale": multi_scale,
    "multi-rate": multi_rate,
    "pyramid": pyramid,
}


def create(name: str, **options: Any) -> Quantizer:
    """A quantizer by name, e.g. create("simvq", dim=32, codes=8192).

    Args:
        name: one of `NAMES`.
        **options: those of its builder below.

    Raises:
        ConfigError: if there is no such name, or an option does not fit.
    """
    if name not in NAMES:
        raise ConfigError(f"no quantizer is called {name!r}: choose one of {sorted(NAMES)}")
    try:
        return NAMES[name](**options)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from None
