"""Quantizers whose codebook is implicit in a grid of scalars, by name."""

from __future__ import annotations

from torch import nn

from smalti.quantize.base import BitOrder, Quantizer
from smalti.quantize.bounds import (
    IFSQ_SLOPE,
    BoundFSQ,
    Cumulative,
    Distribution,
    HardClamp,
    Rescale,
    SoftClamp,
    Standardise,
    UnitSphere,
)
from smalti.quantize.compose import Quantize
from smalti.quantize.entropy import BitEntropy, FreeBits
from smalti.quantize.estimators import Amplified, StraightThrough
from smalti.quantize.lattice import leech_codebook
from smalti.quantize.levels import Levels, even_levels, normal_levels
from smalti.quantize.moments import Moments
from smalti.quantize.named.options import Count, LevelCounts, Number, Positive, Share, Training, Weight
from smalti.quantize.one_hot import BinaryMapping, OneHot
from smalti.quantize.residual import Residual
from smalti.quantize.scalar_noise import Bernoulli, Perturbed
from smalti.quantize.scalars import Scalars
from smalti.quantize.table import Table
from smalti.quantize.terms import Codebook, Commitment
from smalti.quantize.vectors import Frozen
from smalti.quantize.warped import Through, Warped

# --- levels ----------------------------------------------------------------------------------------------------------


def fsq(levels: LevelCounts, *, groups: Count = 1) -> Quantizer:
    """Finite scalar quantization: every dimension bounded and rounded."""
    return Quantize(Scalars(levels, groups=groups, grid="fsq"), before=BoundFSQ(levels, groups))


def symmetric_fsq(levels: LevelCounts, *, groups: Count = 1) -> Quantizer:
    """FSQ whose levels reach from -1 to 1 for even counts too; with levels of 2, bits."""
    return Quantize(Scalars(levels, groups=groups), before=SoftClamp())


def ifsq(levels: LevelCounts, *, groups: Count = 1) -> Quantizer:
    """iFSQ: FSQ whose bound uses all levels about evenly where latents are normal."""
    return Quantize(Scalars(levels, groups=groups), before=SoftClamp(slope=IFSQ_SLOPE))


def residual_fsq(levels: LevelCounts, *, stages: Count) -> Quantizer:
    """Residual FSQ: each stage has the same grid, as much smaller as it has levels."""
    limit = [1 + 1 / (level - 1) for level in levels]
    scales = [[float(level) ** -stage for level in levels] for stage in range(stages)]
    parts = [Quantize(Scalars(levels, scale=scale), before=HardClamp(scale)) for scale in scales]
    return Residual(parts, before=SoftClamp(limit))


def fsp(levels: LevelCounts, *, distribution: Distribution = "tanh", rounded: Training[Share] = 0.0) -> Quantizer:
    """FSP: rounds probabilities; in training, all but the share `rounded` get noise instead, and moments are kept."""
    variance = {"tanh": 0.8225, "sigmoid": 3.29, "normal": 1.0, "laplace": 2.0, "cauchy": 1.0}[distribution]
    bound = Cumulative(distribution)
    return Quantize(
        Warped(Scalars(levels, grid="centres"), bound),
        after=Standardise(),
        assign=Perturbed(rounded, levels, bound),
        estimator=Through(bound),
        terms=[Moments(variance=variance)],
    )


def latent(levels: LevelCounts, *, codebook_weight: Weight = 0.1, commitment_weight: Weight = 0.1) -> Quantizer:
    """Latent quantization: each dimension chooses among a few trained numbers."""
    alphabet = Levels([even_levels(level) for level in levels], trained=True)
    return Quantize(alphabet, terms=[Codebook(codebook_weight), Commitment(commitment_weight)])


def dimension_wise(
    dim: Count, *, bits: Count = 6, low: Number = -5.0, high: Number = 5.0, deviations: Positive = 3.0
) -> Quantizer:
    """TokenBridge: after training, a code for each dimension, from a normal distribution cut at ±deviations.

    [low, high] is what latents of that range are.
    """
    scale = Rescale(low, high, deviations)
    table = normal_levels(bits, deviations=deviations)
    return Quantize(Levels([table] * dim, slots=(1,) * dim), before=scale, after=scale.back())


# --- bits ------------------------------------------------------------------------------------------------------------


def lookup_free(
    bits: Count,
    *,
    groups: Count = 1,
    order: BitOrder = "little",
    entropy_weight: Weight = 0.1,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """LFQ: signs; an entropy term keeps them certain and the codes evenly used."""
    terms = [BitEntropy(entropy_weight), Commitment(commitment_weight)]
    return Quantize(Scalars((2,) * bits, groups=groups, order=order), terms=terms)


def group_wise(
    bits: Count,
    groups: Count,
    *,
    pooled: Training[bool] = False,
    entropy_weight: Weight = 0.1,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """WeTok: LFQ in groups. `pooled` lets groups share one mean distribution, as published."""
    terms = [BitEntropy(entropy_weight, pooled=pooled), Commitment(commitment_weight)]
    return Quantize(Scalars((2,) * bits, groups=groups), terms=terms)


def bsq(
    bits: Count,
    *,
    group_bits: Training[Count] = 1,
    entropy_weight: Weight = 0.1,
    sharpness: Training[Positive] = 1.0,
) -> Quantizer:
    """BSQ: signs of a unit vector, at length 1; the entropy over groups of `group_bits`."""
    scale = bits**-0.5
    entropy = BitEntropy(entropy_weight / sharpness, temperature=1 / sharpness, joint=2**group_bits)
    return Quantize(
        Scalars((2,) * bits, order="big", scale=scale),
        before=UnitSphere(),
        estimator=Amplified(scale, StraightThrough()),
        terms=[entropy],
    )


def residual_lookup_free(
    bits: Count, *, stages: Count, entropy_weight: Weight = 0.1, commitment_weight: Weight = 0.25
) -> Quantizer:
    """Residual LFQ: signs of 1, 1/2, 1/4 ..."""
    parts = [
        Quantize(
            Scalars((2,) * bits, order="big", scale=2.0**-stage),
            terms=[BitEntropy(entropy_weight), Commitment(commitment_weight)],
        )
        for stage in range(stages)
    ]
    return Residual(parts)


def bernoulli(
    bits: Count, *, groups: Count = 1, temperature: Training[Positive] = 1.0, prior_weight: Weight = 0.0
) -> Quantizer:
    """Bits drawn with probability sigmoid(z) in training; `prior_weight` draws them to 1/2."""
    terms = [FreeBits(prior_weight, free=0.0)] if prior_weight else []
    return Quantize(Scalars((2,) * bits, groups=groups), assign=Bernoulli(temperature), terms=terms)


def binary_mapper(dim: Count, *, bits: Count, prior_weight: Weight = 1.0) -> Quantizer:
    """Free Transformer's binary mapper between linear layers: bits are drawn, and one-hot among 2^bits."""
    return Quantize(
        OneHot(bits),
        before=nn.Linear(dim, bits),
        after=nn.Linear(2**bits, dim),
        dim=dim,
        assign=BinaryMapping(),
        terms=[FreeBits(prior_weight)],
    )


# --- a lattice -------------------------------------------------------------------------------------------------------


def leech() -> Quantizer:
    """Λ24: the Leech lattice's 196 560 minimal vectors at length 1; nothing is learned, the nearest direction wins."""
    return Quantize(Table(Frozen(leech_codebook()), space="unit"))
