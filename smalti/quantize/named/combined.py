"""Quantizers put together from several, by name."""

from __future__ import annotations

from typing import Any

from smalti.errors import ConfigError
from smalti.quantize.base import Quantizer
from smalti.quantize.dropout import Dropout
from smalti.quantize.named.vectors import ema
from smalti.quantize.parallel import Parallel
from smalti.quantize.residual import Residual


def residual(dim: int, codes: int, *, levels: int, dropout: bool = False, **options: Any) -> Quantizer:
    """Residual EMA quantization, as in SoundStream and EnCodec."""
    return Residual([ema(dim, codes, **options) for _ in range(levels)], dropout=Dropout() if dropout else None)


def product(dim: int, codes: int, *, parts: int, **options: Any) -> Quantizer:
    """Product quantization: equal parts of the dimensions, an EMA codebook each."""
    if dim % parts:
        raise ConfigError(f"{dim} dimensions do not divide into {parts} parts")
    return Parallel([ema(dim // parts, codes, **options) for _ in range(parts)])
