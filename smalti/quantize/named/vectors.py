"""Quantizers over one explicit codebook, by name."""

from __future__ import annotations

import torch
from torch import nn

from smalti.quantize.assign import Sampled
from smalti.quantize.base import Quantizer
from smalti.quantize.compose import Quantize
from smalti.quantize.estimators import Rotation, StraightThrough
from smalti.quantize.learning import EMA
from smalti.quantize.named.options import Amount, Count, Decay, Natural, Positive, Training, Weight
from smalti.quantize.revival import Expire
from smalti.quantize.table import Table
from smalti.quantize.terms import Codebook, Commitment, UniformPrior
from smalti.quantize.vectors import Mapped, Trained


def vq(
    dim: Count,
    codes: Count,
    *,
    unit: bool = False,
    rotation: Training[bool] = False,
    commitment_weight: Weight = 0.25,
) -> Quantizer:
    """VQ-VAE: rows learn by gradient. With `unit`, cosine codes as in ViT-VQGAN."""
    table = Table(Trained(codes, dim), space="unit" if unit else "euclidean")
    estimator = Rotation() if rotation else StraightThrough()
    return Quantize(table, estimator=estimator, terms=[Codebook(), Commitment(commitment_weight)])


def ema(
    dim: Count,
    codes: Count,
    *,
    unit: bool = False,
    rotation: Training[bool] = False,
    decay: Training[Decay] = 0.99,
    kmeans_iterations: Training[Natural] = 10,
    expire: Training[Amount] = 2.0,
    commitment_weight: Weight = 1.0,
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


def simvq(dim: Count, codes: Count, *, commitment_weight: Weight = 0.25) -> Quantizer:
    """SimVQ: one linear layer over frozen rows drawn from N(0, 1/dim)."""
    base = torch.randn(codes, dim) * dim**-0.5
    return Quantize(Table(Mapped(base, nn.Linear(dim, dim), dim)), terms=[Codebook(), Commitment(commitment_weight)])


def gumbel(dim: Count, codes: Count, *, temperature: Training[Positive] = 1.0, kl_weight: Weight = 5e-4) -> Quantizer:
    """Codes drawn from logits with the Gumbel-softmax gradient, as in DALL-E and VQGAN-Gumbel."""
    assign = Sampled(nn.Linear(dim, codes), temperature)
    table = Table(Trained(codes, dim, init=nn.init.normal_))
    return Quantize(table, assign=assign, terms=[UniformPrior(kl_weight)])
