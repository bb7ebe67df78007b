"""The common quantizers by name: what each composes, in a few lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from smalti.errors import ConfigError
from smalti.quantize.assign import Sampled
from smalti.quantize.base import Quantizer
from smalti.quantize.compose import Dropout, Parallel, Quantize, Residual
from smalti.quantize.estimators import Rotation, StraightThrough
from smalti.quantize.scalars import BoundFSQ, Scalars
from smalti.quantize.table import EMA, Expire, Mapped, Table, Trained
from smalti.quantize.terms import BitEntropy, Codebook, Commitment, UniformPrior


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


def vq(
    dim: int, codes: int, *, unit: bool = False, rotation: bool = False, commitment_weight: float = 0.25
) -> Quantizer:
    """VQ-VAE: rows learn by gradient. With `unit`, cosine codes as in ViT-VQGAN."""
    table = Table(Trained(codes, dim), space="unit" if unit else "euclidean")
    estimator = Rotation() if rotation else StraightThrough()
    return Quantize(table, estimator=estimator, terms=[Codebook(), Commitment(commitment_weight)])


def ema(
    dim: int,
    codes: int,
    *,
    unit: bool = False,
    rotation: bool = False,
    decay: float = 0.99,
    kmeans_iterations: int = 10,
    expire: float = 2.0,
    commitment_weight: float = 1.0,
) -> Quantizer:
    """Rows follow what chose them; k-means start, dead codes replaced."""
    table = Table(
        Trained(codes, dim),
        space="unit" if unit else "euclidean",
        learn=EMA(decay=decay, kmeans_iterations=kmeans_iterations),
        revive=Expire(expire) if expire > 0 else None,
    )
    estimator = Rotation() if rotation else StraightThrough()
    return Quantize(table, estimator=estimator, terms=[Commitment(commitment_weight)])


def simvq(dim: int, codes: int, *, commitment_weight: float = 0.25) -> Quantizer:
    """SimVQ: one linear layer over frozen rows drawn from N(0, 1/dim)."""
    base = torch.randn(codes, dim) * dim**-0.5
    return Quantize(Table(Mapped(base, nn.Linear(dim, dim), dim)), terms=[Codebook(), Commitment(commitment_weight)])


def gumbel(dim: int, codes: int, *, temperature: float = 1.0, kl_weight: float = 5e-4) -> Quantizer:
    """Codes drawn from logits with the Gumbel-softmax gradient, as in DALL-E and VQGAN-Gumbel."""
    assign = Sampled(nn.Linear(dim, codes), temperature)
    table = Table(Trained(codes, dim, init=nn.init.normal_))
    return Quantize(table, assign=assign, terms=[UniformPrior(kl_weight)])


def fsq(levels: Sequence[int], *, groups: int = 1) -> Quantizer:
    """Finite scalar quantization: every dimension bounded and rounded."""
    return Quantize(Scalars(levels, groups=groups, grid="fsq"), before=BoundFSQ(levels, groups))


def lookup_free(
    bits: int, *, groups: int = 1, entropy_weight: float = 0.1, commitment_weight: float = 0.25
) -> Quantizer:
    """Signs; an entropy term keeps them certain and the codes evenly used."""
    terms = [BitEntropy(entropy_weight), Commitment(commitment_weight)]
    return Quantize(Scalars((2,) * bits, groups=groups), terms=terms)


def residual(dim: int, codes: int, *, levels: int, dropout: bool = False, **options: Any) -> Quantizer:
    """Residual EMA quantization, as in SoundStream and EnCodec."""
    return Residual([ema(dim, codes, **options) for _ in range(levels)], dropout=Dropout() if dropout else None)


def product(dim: int, codes: int, *, parts: int, **options: Any) -> Quantizer:
    """Product quantization: equal parts of the dimensions, an EMA codebook each."""
    if dim % parts:
        raise ConfigError(f"{dim} dimensions do not divide into {parts} parts")
    return Parallel([ema(dim // parts, codes, **options) for _ in range(parts)])


NAMES: dict[str, Callable[..., Quantizer]] = {
    "vq": vq,
    "ema": ema,
    "simvq": simvq,
    "gumbel": gumbel,
    "fsq": fsq,
    "lookup-free": lookup_free,
    "residual": residual,
    "product": product,
}
