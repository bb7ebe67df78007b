"""The parts that a quantizer's loss is made of. A schedule may change their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from smalti.errors import ConfigError
from smalti.quantize.assign import Assigned
from smalti.quantize.base import Alphabet
from smalti.quantize.scalars import Scalars

JOINT_BITS = 20  # a joint distribution over more bits is taken in parts of at most this many
SOFT_BUFFER = 2**22  # soft assignments held at once; each chunk is computed again in the backward pass


class Term(ABC):
    """A term of the loss: `name`, `weight`, and the unweighted value of a batch of real rows."""

    name: ClassVar[str]
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
class UniformPrior(Term):
    """Keeps Gumbel logits near uniform: the Kullback-Leibler divergence of their softmax from 1/K."""

    name: ClassVar[str] = "kl"
    weight: float = 5e-4

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        if assigned.logits is None:
            raise ConfigError("UniformPrior needs logits: use it with assign=Sampled(...)")
        q = F.softmax(assigned.logits, dim=1)
        return (q * torch.log(q * q.shape[1] + 1e-10)).sum(1).mean()


@dataclass
class BitEntropy(Term):
    """Certain bits, evenly used codes: mean H(p(code|x)) - diversity * H(mean p(code|x)), for ±1 Scalars.

    Given x the bits are independent, so the first is a sum over bits, and the mean joint distribution of one group is
    one matrix product of two half-code distributions. No softmax over 2^bits is formed. Groups of more than 20 bits
    take the second entropy in parts, whose sum bounds the joint one from above.

    Args:
        weight: of the whole term.
        temperature: of the distribution p over codes, softmax(2 x.c / temperature).
        diversity: weight of the second entropy.
    """

    name: ClassVar[str] = "entropy"
    weight: float = 0.1
    temperature: float = 0.01
    diversity: float = 1.0

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        sample, batch = self.entropies(x, alphabet)
        return sample - self.diversity * batch

    def entropies(self, x: Tensor, alphabet: Alphabet) -> tuple[Tensor, Tensor]:
        """Mean entropy of a row's codes and entropy of the mean distribution, in nats, averaged over groups."""
        if not isinstance(alphabet, Scalars) or set(alphabet.levels) != {2}:
            raise ConfigError("BitEntropy needs Scalars whose levels are all 2")
        bits = len(alphabet.levels)
        logits = 4 * alphabet.scale * x.unflatten(-1, (alphabet.groups, bits)) / self.temperature
        # H(sigmoid(a)) = softplus(a) - a sigmoid(a): exact and stable where log p is not.
        ones = torch.sigmoid(logits)
        sample = (F.softplus(logits) - logits * ones).sum(-1).mean()
        batch = x.new_zeros(())
        for group in range(alphabet.groups):
            for part in ones[:, group].split(JOINT_BITS, dim=-1):
                batch = batch + _entropy(_mean_joint(part))
        return sample, batch / alphabet.groups


@dataclass
class SoftEntropy(Term):
    """The same two entropies for an explicit table, p = softmax(-|x - e|² / temperature) (LlamaGen, MaskGIT).

    Soft assignments of rows to codes are needed here; they are made and dropped in chunks.
    """

    name: ClassVar[str] = "entropy"
    weight: float = 0.0
    temperature: float = 0.01

    EPS: ClassVar[float] = 1e-5  # published: added inside both logarithms

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        if self.weight == 0:
            return x.new_zeros(())
        table = alphabet.codebooks()[0]
        rows = max(1, SOFT_BUFFER // len(table))
        mean, sample = x.new_zeros(len(table)), x.new_zeros(())
        for chunk in x.split(rows):
            part, entropy = _recomputed(self._soft, chunk, table)
            mean, sample = mean + part / len(x), sample + entropy / len(x)
        return sample + (mean * torch.log(mean + self.EPS)).sum()

    def _soft(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        distance = x.square().sum(1, keepdim=True) + table.square().sum(1) - 2 * x @ table.t()
        logits = -distance / self.temperature
        p = F.softmax(logits, dim=1)
        return p.sum(0), -(p * F.log_softmax(logits + self.EPS, dim=1)).sum()


def _recomputed(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    return checkpoint(function, x, table, use_reentrant=False)


def _mean_joint(ones: Tensor) -> Tensor:
    """Mean distribution over all codes of independent bits: (rows, bits) probabilities of 1 -> (2^bits,)."""
    half = ones.shape[1] // 2
    return (_joint(ones[:, :half]).t() @ _joint(ones[:, half:]) / len(ones)).flatten()


def _joint(ones: Tensor) -> Tensor:
    """Distributions over codes of independent bits: (rows, bits) -> (rows, 2^bits)."""
    table = ones.new_ones(len(ones), 1)
    for bit in ones.unbind(1):
        table = torch.cat([table * (1 - bit)[:, None], table * bit[:, None]], dim=1)
    return table


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum()
