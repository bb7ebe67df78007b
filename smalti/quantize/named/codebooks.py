"""Quantizers over one explicit codebook that differ in how codes are chosen or gradients pass, by name."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from smalti.errors import ConfigError
from smalti.quantize.affine import Affine
from smalti.quantize.base import Quantizer
from smalti.quantize.code_terms import Diversity, Mutual, Orthogonal
from smalti.quantize.compose import Quantize
from smalti.quantize.estimators import NSVQ, DiVeQ, Estimator, RawLatent, Rotation, Synchronous
from smalti.quantize.heads import Heads
from smalti.quantize.learning import EMA, Gradient, InPlace
from smalti.quantize.named.options import Amount, Count, Decay, Positive, Share, Training, Weight
from smalti.quantize.projection import FixedLinear
from smalti.quantize.revival import Expire
from smalti.quantize.soft import Drawn, Soft
from smalti.quantize.table import Table
from smalti.quantize.terms import Codebook, Commitment
from smalti.quantize.vectors import Frozen, Trained

KMEANS = 10


def _following(dim: int, codes: int, decay: float, expire: float) -> Table:
    rule = EMA(decay=decay, kmeans_iterations=KMEANS)
    return Table(Trained(codes, dim), learn=rule, revive=Expire(expire) if expire > 0 else None)


def _by_gradient(dim: int, codes: int, expire: float) -> Table:
    return Table(Trained(codes, dim), learn=Gradient(KMEANS), revive=Expire(expire) if expire > 0 else None)


def rotation_trick(
    dim: Count,
    codes: Count,
    *,
    decay: Training[Decay] = 0.99,
    expire: Training[Amount] = 2.0,
    commitment_weight: Weight = 1.0,
) -> Quantizer:
    """Rotation trick: EMA codes whose gradient is turned as the latent is turned onto its code."""
    table = _following(dim, codes, decay, expire)
    return Quantize(table, estimator=Rotation(), terms=[Commitment(commitment_weight)])


def vit_vqgan(dim: Count, codes: Count, *, commitment_weight: Weight = 0.25) -> Quantizer:
    """ViT-VQGAN: unit codes by gradient; the straight-through gradient skips the normalisation of the latent."""
    table = Table(Trained(codes, dim), space="unit")
    return Quantize(table, estimator=RawLatent(), terms=[Codebook(), Commitment(commitment_weight)])


def affine(
    dim: Count,
    codes: Count,
    *,
    decay: Training[Decay] = 0.99,
    expire: Training[Amount] = 0.0,
    commitment_weight: Weight = 1.0,
) -> Quantizer:
    """Affine re-parametrisation: EMA codes that move with the latents' mean and deviation as a whole."""
    vectors = Affine(Trained(codes, dim))
    table = Table(vectors, learn=EMA(decay=decay), revive=Expire(expire) if expire > 0 else None)
    return Quantize(table, terms=[Commitment(commitment_weight)])


def in_place(
    dim: Count,
    codes: Count,
    *,
    rate: Training[Positive] = 1.0,
    expire: Training[Amount] = 2.0,
    commitment_weight: Weight = 1.0,
) -> Quantizer:
    """In-place optimizer: codes take steps of their own SGD between those of the model."""
    rule = InPlace(partial(torch.optim.SGD, lr=rate * codes * dim), kmeans_iterations=KMEANS)
    table = Table(Trained(codes, dim), learn=rule, revive=Expire(expire) if expire > 0 else None)
    return Quantize(table, terms=[Commitment(commitment_weight)])


def synchronous(
    dim: Count, codes: Count, *, share: Training[Share] = 0.2, commitment_weight: Weight = 1.0
) -> Quantizer:
    """Synchronous update: codes follow the model's loss too, by a share of the latents' gradient."""
    return Quantize(_by_gradient(dim, codes, 0.0), estimator=Synchronous(share), terms=[Mutual(commitment_weight)])


def _substituted(dim: int, codes: int, expire: float, estimator: Estimator) -> Quantizer:
    return Quantize(_by_gradient(dim, codes, expire), estimator=estimator)


def diveq(dim: Count, codes: Count, *, variance: Training[Amount] = 5e-3, expire: Training[Amount] = 2.0) -> Quantizer:
    """DiVeQ: the error's length is differentiated, its direction is not; no further loss terms."""
    return _substituted(dim, codes, expire, DiVeQ(variance))


def nsvq(dim: Count, codes: Count, *, expire: Training[Amount] = 2.0) -> Quantizer:
    """NSVQ: in training random noise of the error's length takes the error's place; no further loss terms."""
    return _substituted(dim, codes, expire, NSVQ())


def stochastic(
    dim: Count,
    codes: Count,
    *,
    temperature: Training[Positive] = 1.0,
    decay: Training[Decay] = 0.99,
    expire: Training[Amount] = 2.0,
    commitment_weight: Weight = 1.0,
) -> Quantizer:
    """Stochastic codes: in training drawn by distance instead of the nearest, over an EMA codebook."""
    table = _following(dim, codes, decay, expire)
    return Quantize(table, assign=Drawn(temperature), terms=[Commitment(commitment_weight)])


def gumbel_straight_through(
    dim: Count, codes: Count, *, temperature: Training[Positive] = 1.0, commitment_weight: Weight = 1.0
) -> Quantizer:
    """Gumbel straight-through by distance: codes drawn, the gradient that of the softmax over all codes."""
    table = Table(Trained(codes, dim, nn.init.normal_))
    assign = Soft(Drawn(temperature), temperature)
    return Quantize(table, assign=assign, terms=[Codebook(), Commitment(commitment_weight)])


def multi_head(
    dim: Count,
    codes: Count,
    *,
    heads: Count,
    shared: bool = True,
    decay: Training[Decay] = 0.99,
    expire: Training[Amount] = 2.0,
    commitment_weight: Weight = 1.0,
) -> Quantizer:
    """Multi-head codes: equal parts of the dimensions, one EMA codebook for all of them or one each."""
    if dim % heads:
        raise ConfigError(f"{dim} dimensions do not divide into {heads} heads")
    width = dim // heads
    alphabet = (
        Heads(_following(width, codes, decay, expire), heads)
        if shared
        else Heads([_following(width, codes, decay, expire) for _ in range(heads)])
    )
    return Quantize(alphabet, terms=[Commitment(commitment_weight)])


def random_projection(dim: Count, codes: Count, *, code_dim: Count = 16, heads: Count = 1) -> Quantizer:
    """Random projection (BEST-RQ): frozen projections of normalised latents, frozen directions; targets to predict."""
    project = FixedLinear(nn.init.xavier_normal_(torch.empty(heads * code_dim, dim)))
    tables = [Table(Frozen(torch.randn(codes, code_dim)), space="unit") for _ in range(heads)]
    before = nn.Sequential(nn.LayerNorm(dim, elementwise_affine=False), project)
    return Quantize(Heads(tables), before=before, after=project.preimage(), dim=dim)


def orthogonal(dim: Count, codes: Count, *, weight: Weight = 10.0, commitment_weight: Weight = 0.25) -> Quantizer:
    """Orthogonal codebook: codes by gradient, kept at right angles."""
    terms = [Codebook(), Commitment(commitment_weight), Orthogonal(weight)]
    return Quantize(Table(Trained(codes, dim, nn.init.kaiming_uniform_)), terms=terms)


def diverse(
    dim: Count,
    codes: Count,
    *,
    weight: Weight = 0.1,
    temperature: Training[Positive] = 10.0,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """Diverse codebook: codes by gradient, all of them wanted at every position of the sample."""
    terms = [Codebook(), Commitment(commitment_weight), Diversity(weight, temperature)]
    return Quantize(Table(Trained(codes, dim, nn.init.normal_)), terms=terms)
