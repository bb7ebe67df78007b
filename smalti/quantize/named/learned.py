"""Quantizers over explicit codebooks that learn in special ways, by name."""

from __future__ import annotations

from torch import nn

from smalti.errors import ConfigError
from smalti.quantize.base import Quantizer
from smalti.quantize.bridge import LinearBridge, VQBridge
from smalti.quantize.compose import Quantize
from smalti.quantize.directions import Directions
from smalti.quantize.dropout import SampleDropout
from smalti.quantize.entropy import DotEntropy
from smalti.quantize.estimators import CodebookOnly
from smalti.quantize.index_backprop import DoubleQuantization, IndexBackprop
from smalti.quantize.joint import Joint
from smalti.quantize.learning import EMA
from smalti.quantize.multiscale import PartialSums
from smalti.quantize.named.options import Amount, Count, Decay, Natural, Positive, Share, Training, Weight
from smalti.quantize.named.vectors import simvq
from smalti.quantize.normalised_ema import NormalisedEMA
from smalti.quantize.parallel import Parallel
from smalti.quantize.residual import Residual
from smalti.quantize.revivals import BelowMean
from smalti.quantize.sinkhorn import Sinkhorn
from smalti.quantize.table import Table
from smalti.quantize.terms import Codebook, Commitment, Remainder, Term
from smalti.quantize.vectors import Bridged, Trained


def fvq(
    dim: Count,
    codes: Count,
    *,
    patch: Count = 4,
    head_dim: Count = 64,
    depth: Count = 2,
    registers: Natural = 0,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """FVQ: a transformer over the whole codebook gives the codes, so that all of them learn in every step.

    All codes start at the origin: warm the learning rate up. `materialise` makes it an ordinary codebook.
    """
    bridge = VQBridge(codes, dim, patch=patch, head_dim=head_dim, depth=depth, registers=registers)
    table = Table(Bridged(Trained(codes, dim), bridge))
    return Quantize(table, terms=[Codebook(), Commitment(commitment_weight)])


def residual_fvq(
    dim: Count,
    codes: Count,
    *,
    levels: Count = 4,
    patch: Count = 4,
    head_dim: Count = 64,
    depth: Count = 2,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """FVQ's residual form: all levels share one bridged codebook, which learns from the sums of the first levels."""
    bridge = VQBridge(codes, dim, patch=patch, head_dim=head_dim, depth=depth)
    level = Quantize(Table(Bridged(Trained(codes, dim), bridge)), estimator=CodebookOnly())
    return Residual([level] * levels, loss=PartialSums(commitment=commitment_weight))


def linear_bridge(dim: Count, codes: Count, *, layers: Count = 1, commitment_weight: Weight = 0.25) -> Quantizer:
    """FVQ's ablation: linear layers over trained codes, each code alone."""
    table = Table(Bridged(Trained(codes, dim), LinearBridge(dim, layers)))
    return Quantize(table, terms=[Codebook(), Commitment(commitment_weight)])


def ibq(
    dim: Count,
    codes: Count,
    *,
    commitment_weight: Weight = 0.25,
    entropy_weight: Weight = 0.05,
    temperature: Training[Positive] = 0.01,
) -> Quantizer:
    """IBQ: the largest inner product, with the gradient of the softmax over all codes, so that all of them learn."""
    table = Table(Trained(codes, dim, nn.init.normal_))
    terms: list[Term] = [DoubleQuantization(commitment=commitment_weight)]
    if entropy_weight:
        terms.append(DotEntropy(entropy_weight, temperature))
    return Quantize(table, assign=IndexBackprop(), terms=terms)


def normalised_ema(
    dim: Count,
    codes: Count,
    *,
    decay: Training[Decay] = 0.99,
    kmeans_iterations: Training[Natural] = 10,
    commitment_weight: Weight = 1.0,
) -> Quantizer:
    """BEiT v2: unit codes that follow the direction of the mean of what chose them; E-ViLM uses it."""
    rule = NormalisedEMA(decay, kmeans_iterations)
    return Quantize(Table(Trained(codes, dim), space="unit", learn=rule), terms=[Commitment(commitment_weight)])


def residual_normalised_ema(
    dim: Count,
    codes: Count,
    *,
    levels: Count = 8,
    decay: Training[Decay] = 0.99,
    kmeans_iterations: Training[Natural] = 10,
    commitment_weight: Weight = 1.0,
    remainder_weight: Weight = 0.4,
) -> Quantizer:
    """NeuroRVQ: unit codes at every level, each of which normalises what the levels before it left.

    The loss is the mean over levels. One of these quantizes one of NeuroRVQ's four branches.
    """
    terms = [Commitment(commitment_weight / levels), Remainder(remainder_weight / levels)]
    tables = [
        Table(Trained(codes, dim), space="unit", learn=NormalisedEMA(decay, kmeans_iterations)) for _ in range(levels)
    ]
    # As published, nothing is detached but the codes.
    return Residual([Quantize(table, terms=terms) for table in tables], estimator="levels", passed_gradient=1.0)


def vqrae(dim: Count, codes: Count, *, code_dim: Count | None = None, commitment_weight: Weight = 0.25) -> Quantizer:
    """VQRAE: SimVQ in more dimensions than the features have, between two linear layers."""
    wide = dim * 4 // 3 if code_dim is None else code_dim
    inner = simvq(wide, codes, commitment_weight=commitment_weight)
    assert isinstance(inner, Quantize)
    return Quantize(inner.alphabet, before=nn.Linear(dim, wide), after=nn.Linear(wide, dim), dim=dim, terms=inner.terms)


def factorised(dim: Count, codes: Count, *, code_dim: Count = 8, commitment_weight: Weight = 0.25) -> Quantizer:
    """DAC's level: projected to few dimensions, nearest by cosine, the code at its own length projected back."""
    return Quantize(
        Directions(Table(Trained(codes, code_dim, nn.init.normal_), space="unit")),
        before=nn.Linear(dim, code_dim),
        after=nn.Linear(code_dim, dim),
        dim=dim,
        terms=[Codebook(), Commitment(commitment_weight)],
    )


def dac(
    dim: Count,
    codes: Count,
    *,
    levels: Count = 9,
    code_dim: Count = 8,
    dropout: Training[Share] = 0.5,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """DAC: residual levels of factorised cosine codes; `dropout` is the share of samples that use fewer levels."""
    made = [factorised(dim, codes, code_dim=code_dim, commitment_weight=commitment_weight) for _ in range(levels)]
    shortened = SampleDropout(share=dropout) if dropout else None
    # The residual keeps the gradient of what was subtracted, as published.
    return Residual(made, dropout=shortened, estimator="levels", passed_gradient=1.0)


def mimi(
    dim: Count,
    codes: Count,
    *,
    levels: Count = 8,
    code_dim: Count | None = None,
    decay: Training[Decay] = 0.99,
    commitment_weight: Weight = 1.0,
) -> Quantizer:
    """Mimi: a semantic codebook and residual acoustic ones see the same latents through projections of their own.

    `levels` counts both; a teacher draws the vectors of slot 0.
    """
    if levels < 2:
        raise ConfigError(f"the semantic level and at least one acoustic level are needed, got {levels}")
    width = dim // 2 if code_dim is None else code_dim

    def part(count: int) -> Quantizer:
        tables = [
            Table(Trained(codes, width), learn=EMA(decay=decay, kmeans_iterations=10), revive=BelowMean())
            for _ in range(count)
        ]
        made = [Quantize(table, terms=[Commitment(commitment_weight)]) for table in tables]
        before, after = nn.Linear(dim, width, bias=False), nn.Linear(width, dim, bias=False)
        return Residual(made, before=before, after=after, dim=dim)

    return Parallel([part(1), part(levels - 1)], join="sum")


def sinkhorn(
    dim: Count,
    codes: Count,
    *,
    epsilon: Training[Positive] = 0.05,
    iterations: Training[Count] = 50,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """Sinkhorn assignment: in training a batch is spread evenly over all codes; otherwise the nearest."""
    table = Table(Trained(codes, dim, nn.init.normal_))
    return Quantize(table, assign=Sinkhorn(epsilon, iterations), terms=[Codebook(), Commitment(commitment_weight)])


def joint_index(
    dim: Count,
    codes: Count,
    *,
    semantic_dim: Count | None = None,
    pixel_weight: Amount = 1.0,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """TokenFlow: one index into a semantic and a pixel codebook of unit rows, by the sum of their distances."""
    first = dim * 4 // 5 if semantic_dim is None else semantic_dim
    if not 0 < first < dim:
        raise ConfigError(f"the semantic part must leave dimensions of {dim} to the pixels, got {first}")
    tables = [Table(Trained(codes, width), space="unit") for width in (first, dim - first)]
    alphabet = Joint(tables, weights=[1.0, pixel_weight])
    return Quantize(alphabet, terms=[Codebook(), Commitment(commitment_weight)])
