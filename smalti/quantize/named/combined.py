"""Quantizers put together from several, by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from smalti.errors import ConfigError
from smalti.quantize.base import Quantizer
from smalti.quantize.beam import Beam
from smalti.quantize.code_terms import Mutual
from smalti.quantize.compose import Quantize
from smalti.quantize.conditional import Conditional, ResidualMLP
from smalti.quantize.disentanglement import Disentanglement
from smalti.quantize.dropout import Dropout, SampleDropout
from smalti.quantize.estimators import CodebookOnly, DiVeQ
from smalti.quantize.learning import Gradient
from smalti.quantize.named.options import Amount, Count, Decay, Natural, Share, Training, Weight, hands_on
from smalti.quantize.named.vectors import ema, simvq, vq
from smalti.quantize.parallel import Parallel
from smalti.quantize.residual import Residual
from smalti.quantize.revival import Expire
from smalti.quantize.table import Table
from smalti.quantize.vectors import Trained


@hands_on(ema)
def residual(dim: Count, codes: Count, *, levels: Count, dropout: Training[bool] = False, **options: Any) -> Quantizer:
    """Residual EMA quantization, as in SoundStream and EnCodec."""
    return Residual([ema(dim, codes, **options) for _ in range(levels)], dropout=Dropout() if dropout else None)


def vq_vla(
    dim: Count = 128,
    codes: Count = 256,
    *,
    levels: Count = 4,
    decay: Training[Decay] = 0.8,
    kmeans_iterations: Training[Natural] = 10,
    expire: Training[Amount] = 0.0,
    commitment_weight: Weight = 1.0,
) -> Quantizer:
    """VQ-VLA: residual EMA quantization that forgets fast, each level with the gradient of the rotation trick.

    No dead code is replaced, as published; trained from scratch that can collapse, which `expire` = 2 prevents.
    """

    def level() -> Quantizer:
        return ema(
            dim,
            codes,
            rotation=True,
            decay=decay,
            kmeans_iterations=kmeans_iterations,
            expire=expire,
            commitment_weight=commitment_weight,
        )

    return Residual([level() for _ in range(levels)], estimator="levels")


@hands_on(ema)
def product(dim: Count, codes: Count, *, parts: Count, **options: Any) -> Quantizer:
    """Product quantization: equal parts of the dimensions, an EMA codebook each."""
    if dim % parts:
        raise ConfigError(f"{dim} dimensions do not divide into {parts} parts")
    return Parallel([ema(dim // parts, codes, **options) for _ in range(parts)])


def disentangled(dim: Count, codes: Count, *, parts: Count = 2, weight: Weight = 0.1) -> Quantizer:
    """FQGAN: cosine codebooks side by side, whose vectors are drawn to right angles."""
    if dim % parts:
        raise ConfigError(f"{dim} dimensions do not divide into {parts} parts")
    books = [vq(dim // parts, codes, unit=True) for _ in range(parts)]
    return Parallel(books, terms=[Disentanglement(weight)])


@hands_on(ema)
def shared_residual(
    dim: Count, codes: Count, *, levels: Count, dropout: Training[bool] = False, **options: Any
) -> Quantizer:
    """One codebook for all levels, as in RQ-VAE: what all levels chose is gathered, and applied once."""
    return Residual([ema(dim, codes, **options)] * levels, dropout=Dropout() if dropout else None)


@hands_on(ema)
def sample_dropout_residual(
    dim: Count,
    codes: Count,
    *,
    levels: Count,
    at_least: Training[Count] = 1,
    share: Training[Share] = 0.5,
    **options: Any,
) -> Quantizer:
    """Residual EMA quantization whose number of levels is drawn for each sample, as in DAC."""
    return Residual(
        [ema(dim, codes, **options) for _ in range(levels)], dropout=SampleDropout(at_least=at_least, share=share)
    )


@hands_on(ema)
def beam_residual(
    dim: Count, codes: Count, *, levels: Count, beam: Training[Count] = 4, eval_beam: Count = 4, **options: Any
) -> Quantizer:
    """Residual EMA quantization by a beam search, of width `beam` in training and `eval_beam` in encoding."""
    return Residual([ema(dim, codes, **options) for _ in range(levels)], search=Beam(beam, eval_beam))


@hands_on(ema)
def grouped_residual(
    dim: Count, codes: Count, *, groups: Count, levels: Count, dropout: Training[bool] = False, **options: Any
) -> Quantizer:
    """Group-residual quantization, as in HiFi-Codec: equal parts of the dimensions, residual levels each."""
    if dim % groups:
        raise ConfigError(f"{dim} dimensions do not divide into {groups} groups")
    parts = [residual(dim // groups, codes, levels=levels, dropout=dropout, **options) for _ in range(groups)]
    return Parallel(parts, dropout=Dropout() if dropout else None)


@hands_on(simvq)
def residual_simvq(
    dim: Count, codes: Count, *, levels: Count, dropout: Training[bool] = False, **options: Any
) -> Quantizer:
    """Residual levels of SimVQ."""
    return Residual([simvq(dim, codes, **options) for _ in range(levels)], dropout=Dropout() if dropout else None)


def residual_diveq(
    dim: Count,
    codes: Count,
    *,
    levels: Count,
    variance: Training[Amount] = 5e-3,
    expire: Training[Amount] = 2.0,
    eval_beam: Count = 1,
) -> Quantizer:
    """Residual levels with one DiVeQ estimate of their sum; encoding may search with a beam, training is greedy.

    What a beam finds is near with all levels; the first levels alone decode to something farther than greedy ones do.
    """
    revive = Expire(expire) if expire > 0 else None
    parts = [
        Quantize(Table(Trained(codes, dim), learn=Gradient(10), revive=revive), estimator=CodebookOnly())
        for _ in range(levels)
    ]
    return Residual(parts, estimator=DiVeQ(variance), search=Beam(1, eval_beam))


def qinco(
    dim: Count, codes: Count, *, levels: Count, hidden: Count | None = None, depth: Count = 4, beam: Count | None = None
) -> Quantizer:
    """QINCo: each level's codebook is computed from the sum of the levels before it."""
    terms = [Mutual()]
    first = Quantize(Table(Trained(codes, dim, nn.init.normal_)), terms=terms)
    rest = [
        Quantize(Conditional(Trained(codes, dim, nn.init.normal_), ResidualMLP(dim, hidden, depth)), terms=terms)
        for _ in range(levels - 1)
    ]
    return Residual([first, *rest], search=None if beam is None else Beam(beam))
