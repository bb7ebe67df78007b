"""The parts that a quantizer's loss is made of; entropies are in `entropy`. A schedule may change their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.assign import Assigned
from smalti.quantize.base import Alphabet


class Term(ABC):
    """A term of the loss: `name`, `weight`, and the unweighted value of a batch of real rows.

    Attributes:
        over_ranks: whether ranks exchange something for it, so that those without rows must take part.
    """

    name: ClassVar[str]
    over_ranks: ClassVar[bool] = False
    weight: float

    @abstractmethod
    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        """A scalar from projected latents x (rows, dim) and what they were assigned."""


@dataclass
class Commitment(Term):
    """Draws latents to their codes: mean (x - sg q)²."""

    name: ClassVar[str] = "commitment"
    weight: float = 0.25

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        return F.mse_loss(x, assigned.vectors.detach())


@dataclass
class Codebook(Term):
    """Draws codes to their latents: mean (q - sg x)²."""

    name: ClassVar[str] = "codebook"
    weight: float = 1.0

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        return F.mse_loss(assigned.vectors, x.detach())


@dataclass
class Remainder(Term):
    """Draws a level's vector to what it leaves of the latent r: mean (q - sg (r - q))², gradient straight through.

    Of a unit table, whose x is unit(r), r is the latent at its own length.

    Source: NeuroRVQ (2025), as its code has it.
    """

    name: ClassVar[str] = "remainder"
    weight: float = 0.4

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        if assigned.rows is None or assigned.rows.latents.shape != x.shape:
            raise ConfigError("Remainder needs latents of the dimension that the alphabet compares")
        left = assigned.rows.latents - assigned.vectors
        return F.mse_loss(x + (assigned.vectors - x).detach(), left.detach())


@dataclass
class UniformPrior(Term):
    """Keeps Gumbel logits near uniform: the Kullback-Leibler divergence of their softmax from 1/K."""

    name: ClassVar[str] = "kl"
    weight: float = 5e-4

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        if assigned.logits is None:
            raise ConfigError("UniformPrior needs logits: use it with assign=Sampled(...)")
        return assigned.logits.mean(self._divergence)

    def _divergence(self, logits: Tensor) -> Tensor:
        q = F.softmax(logits, dim=1)
        return (q * torch.log(q * q.shape[1] + 1e-10)).sum(1)
