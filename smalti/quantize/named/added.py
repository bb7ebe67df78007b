"""Quantizers on lattices, sums of codewords and rotations, by name."""

from __future__ import annotations

from smalti.errors import ConfigError
from smalti.quantize.additive import Additive, Beam, ConstantProducts, LeastSquares, LocalSearch, Ordered
from smalti.quantize.base import Quantizer
from smalti.quantize.compose import Quantize
from smalti.quantize.learning import EMA
from smalti.quantize.named.options import Amount, Count, Decay, Training, Weight
from smalti.quantize.named.vectors import ema
from smalti.quantize.parallel import Parallel
from smalti.quantize.pyramid import Pyramid, Search
from smalti.quantize.residual import Residual
from smalti.quantize.revival import Expire
from smalti.quantize.rotated import Rotated
from smalti.quantize.rq_codes import Stochastic
from smalti.quantize.table import Table
from smalti.quantize.terms import Codebook, Commitment
from smalti.quantize.vectors import Trained


def pyramid(dim: Count, pulses: Count, *, search: Search = "exact", commitment_weight: Weight = 0.25) -> Quantizer:
    """Pyramid vector quantization: the direction of a point of the integer pyramid; nothing is stored."""
    return Quantize(Pyramid(dim, pulses, search=search), terms=[Commitment(commitment_weight)])


def additive(
    dim: Count, codes: Count, *, levels: Count, beam: Count = 4, commitment_weight: Weight = 0.25
) -> Quantizer:
    """Additive quantization as a layer: sums of codewords found by a beam; codebooks learn by gradient."""
    alphabet = Additive(dim, levels, codes, encoder=Ordered(beam))
    return Quantize(alphabet, terms=[Codebook(), Commitment(commitment_weight)])


def free_additive(
    dim: Count, codes: Count, *, levels: Count, beam: Count = 16, commitment_weight: Weight = 0.25
) -> Quantizer:
    """Additive quantization with the published beam, which takes codebooks in any order."""
    alphabet = Additive(dim, levels, codes, encoder=Beam(beam))
    return Quantize(alphabet, terms=[Codebook(), Commitment(commitment_weight)])


def lsq(
    dim: Count,
    codes: Count,
    *,
    levels: Count,
    rounds: Count = 8,
    decay: Training[Decay] = 0.99,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """Local search quantization (LSQ): codes by local search, codebooks by least squares in every update."""
    alphabet = Additive(dim, levels, codes, encoder=LocalSearch(rounds), learn=LeastSquares(decay))
    return Quantize(alphabet, terms=[Commitment(commitment_weight)])


def composite(
    dim: Count,
    codes: Count,
    *,
    levels: Count,
    beam: Count = 4,
    products_weight: Weight = 0.1,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """Composite quantization (CQ): additive codes whose inner products are drawn to one constant."""
    terms = [Codebook(), Commitment(commitment_weight), ConstantProducts(products_weight)]
    return Quantize(Additive(dim, levels, codes, encoder=Ordered(beam)), terms=terms)


def opq(
    dim: Count, codes: Count, *, parts: Count, decay: Training[Decay] = 0.99, commitment_weight: Weight = 1.0
) -> Rotated:
    """Optimised product quantization: product codes behind a rotation, both set by `fit`; tables then follow by EMA."""
    if dim % parts:
        raise ConfigError(f"{dim} dimensions do not divide into {parts} parts")
    tables = [
        ema(dim // parts, codes, decay=decay, kmeans_iterations=0, expire=0.0, commitment_weight=commitment_weight)
        for _ in range(parts)
    ]
    return Rotated(Parallel(tables))


def rq_vae(
    dim: Count,
    codes: Count,
    *,
    levels: Count,
    temperature: Training[Amount] = 0.0,
    decay: Training[Decay] = 0.99,
    expire: Training[Amount] = 1.0,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """RQ-VAE: one EMA codebook for all levels; with a temperature, codes are drawn by squared distance in training."""
    table = Table(Trained(codes, dim), learn=EMA(decay), revive=Expire(expire) if expire > 0 else None)
    level = Quantize(table, assign=Stochastic(temperature), terms=[Commitment(commitment_weight / levels)])
    return Residual([level] * levels)
