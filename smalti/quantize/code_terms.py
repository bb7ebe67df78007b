"""Terms of the loss that look at the codebook, or at all of its codes softly.

    Mutual                      mean |x - q|², drawing latents and codes to each other
    CrossEntropyCommitment      -mean log p(chosen code | x)
    Orthogonal                  codes at right angles
    Diversity                   -mean over positions of the entropy of the mean p at that position
    UnprojectedCommitment       commitment with a published defect

p(code | x) is that of `soft`.

Sources: "Translation-equivariant Image Quantizer for Bi-directional Image-Text Generation" (2021; orthogonal codes);
the others as in vector-quantize-pytorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.assign import Assigned, recomputed
from smalti.quantize.base import DROPPED, Alphabet
from smalti.quantize.soft import SOFT_BUFFER, Searched, searched
from smalti.quantize.terms import Term


@dataclass
class Mutual(Term):
    """Draws latents and codes to each other with equal weight: mean (x - q)²."""

    name: ClassVar[str] = "commitment"
    weight: float = 1.0

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        return F.mse_loss(x, assigned.vectors)


@dataclass
class UnprojectedCommitment(Term):
    """Commitment that compares codes with the latents as they came, before normalisation.

    official weights need this: vector-quantize-pytorch does so where a mask is given, and in beam search.

    Args:
        masked_only: do so only where a mask is given.
    """

    name: ClassVar[str] = "commitment"
    weight: float = 1.0
    masked_only: bool = True

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        rows = assigned.rows
        compared = x if rows is None or (rows.real is None and self.masked_only) else rows.latents
        return F.mse_loss(compared, assigned.vectors.detach())


@dataclass
class CrossEntropyCommitment(Term):
    """Makes the chosen codes likely: -mean log softmax(score)[code]."""

    name: ClassVar[str] = "commitment"
    weight: float = 1.0

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        return code_cross_entropy(x, assigned.codes, alphabet)


def code_cross_entropy(x: Tensor, codes: Tensor, alphabet: Alphabet) -> Tensor:
    """-mean log softmax(score)[code], also for codes that are given from outside (targets of BEST-RQ).

    Args:
        x: (rows, dim), projected latents.
        codes: (rows, slots); -1 counts not.
        alphabet: a Table or Heads of them.
    """
    total = x.new_zeros(())
    for part in searched(x, alphabet):
        own = part.of(codes)
        for span in part.spans():
            total = total + recomputed(_cross_entropy, part, part.x[span], own[span])
    return total / (codes != DROPPED).sum().clamp(min=1)


def _cross_entropy(part: Searched, x: Tensor, codes: Tensor) -> Tensor:
    return F.cross_entropy(part.scores(x), codes, ignore_index=DROPPED, reduction="sum")


@dataclass
class Orthogonal(Term):
    """Codes at right angles: mean over pairs of codes of cos², less the 1/K that each code has with itself.

    Args:
        active_only: look only at codes that the batch chose.
        most_codes: look at no more than so many codes, random ones.
    """

    name: ClassVar[str] = "orthogonal"
    weight: float = 10.0
    active_only: bool = False
    most_codes: int | None = None

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        parts = searched(x, alphabet)
        return torch.stack([self._value(part, assigned.codes) for part in parts]).mean()

    def _value(self, part: Searched, codes: Tensor) -> Tensor:
        table = part.table
        if self.active_only:
            table = table[part.of(codes).unique()]
        if self.most_codes is not None and len(table) > self.most_codes:
            table = table[torch.randperm(len(table), device=table.device)[: self.most_codes]]
        directions = F.normalize(table, dim=-1)
        # The sum of squared cosines over K x K pairs is that over the D x D entries of the other product.
        product = directions.t() @ directions if len(table) > table.shape[1] else directions @ directions.t()
        return product.square().sum() / len(table) ** 2 - 1 / len(table)


@dataclass
class Diversity(Term):
    """All codes in use at every position: the negative entropy of the mean p over samples, averaged over positions.

    Args:
        temperature: multiplies scores.
        pooled_heads: take the mean p over heads too, though each has a codebook of its own.
    """

    name: ClassVar[str] = "diversity"
    weight: float = 1.0
    temperature: float = 100.0
    pooled_heads: bool = False

    LEAST: ClassVar[float] = 1e-5  # published: below it a probability counts as this inside the logarithm

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        if assigned.rows is None:
            raise ConfigError("Diversity needs to know the rows' positions: use it in Quantize")
        place = assigned.rows.positions()
        parts = searched(x, alphabet)
        if self.pooled_heads and len(parts) > 1:
            return self._pooled(parts, place)
        return torch.stack([self._pooled([part], place) for part in parts]).mean()

    def _pooled(self, parts: list[Searched], place: Tensor) -> Tensor:
        """Over positions a few at a time, because every position has a distribution over all codes."""
        positions, groups = torch.unique(place, return_inverse=True)
        rows = len(place) // max(1, len(positions))
        step = max(1, SOFT_BUFFER // (len(parts[0].table) * len(parts[0].slots) * max(1, rows)))
        total = place.new_zeros((), dtype=torch.float32)
        for first in range(0, len(positions), step):
            last = min(first + step, len(positions))
            total = total + recomputed(self._negative_entropy, parts, groups, first, last)
        return total / max(1, len(positions))

    def _negative_entropy(self, parts: list[Searched], groups: Tensor, first: int, last: int) -> Tensor:
        inside = ((groups >= first) & (groups < last)).nonzero()[:, 0]
        mean = parts[0].table.new_zeros(last - first, len(parts[0].table))
        count = mean.new_zeros(last - first)
        for part in parts:
            slots = len(part.slots)
            x = part.x.view(-1, slots, part.x.shape[1])[inside].flatten(0, 1)
            own = (groups[inside] - first).repeat_interleave(slots)
            p = F.softmax(part.scores(x) * self.temperature, dim=1)
            mean = mean.index_add(0, own, p)
            count = count.index_add(0, own, torch.ones_like(own, dtype=torch.float32))
        mean = mean / count[:, None]
        return (mean * mean.clamp(min=self.LEAST).log()).sum()
