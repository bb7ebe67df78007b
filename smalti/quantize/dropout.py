"""Dropping residual levels in training, so that every prefix of the levels is a code of its own.

    Dropout             one number of levels for the batch
    SampleDropout       one for each sample

Sources: "SoundStream: An End-to-End Neural Audio Codec" (per batch); "High-Fidelity Audio Compression with Improved
RVQGAN" (DAC; per sample, and only in a share of them).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.base import Noise
from smalti.quantize.distributed import from_first_rank


class LevelDropout(ABC):
    """Draws how many levels a training batch uses.

    Attributes:
        at_least: the smallest number.
        multiple_of: numbers are rounded up to a multiple of this.

    Noise:
        levels: the number of levels, a scalar or one per sample; replaces the draw.
    """

    at_least: int
    multiple_of: int

    @abstractmethod
    def draw(self, levels: int, batch: int, device: torch.device) -> Tensor:
        """How many of so many levels are used: a scalar, or (batch,)."""

    def used(self, levels: int, batch: int, device: torch.device, noise: Noise) -> Tensor:
        """The same, rounded, or what `noise` says."""
        drawn = noise.get("levels")
        if drawn is None:
            drawn = self.draw(levels, batch, device)
        return (-(-drawn // self.multiple_of) * self.multiple_of).clamp(max=levels)

    def check(self, levels: int) -> None:
        """Raises ConfigError unless it can drop some of so many levels."""
        if not 1 <= self.at_least <= levels or self.multiple_of < 1:
            raise ConfigError(
                f"dropout keeps at least {self.at_least} of {levels} levels, a multiple of {self.multiple_of}: choose "
                f"1..{levels} and at least 1"
            )


@dataclass(frozen=True)
class Dropout(LevelDropout):
    """In each training batch only the first n levels are used, n drawn evenly, equal on all ranks.

    Args:
        at_least: smallest n.
        multiple_of: n is rounded up to a multiple of this.
    """

    at_least: int = 1
    multiple_of: int = 1

    def draw(self, levels: int, batch: int, device: torch.device) -> Tensor:
        return from_first_rank(torch.randint(self.at_least, levels + 1, (), device=device))

    def from_seed(self, seed: int, levels: int) -> Tensor:
        """The n that vector-quantize-pytorch draws from a seed, for the noise "levels"."""
        return torch.tensor(Random(seed).randrange(self.at_least - 1, levels) + 1)


@dataclass(frozen=True)
class SampleDropout(LevelDropout):
    """Each sample of a training batch uses its own first n levels; the others' codes are -1.

    Args:
        at_least: smallest n.
        multiple_of: n is rounded up to a multiple of this.
        share: of the samples that drop levels at all; DAC uses 0.5 in its last version.
    """

    at_least: int = 1
    multiple_of: int = 1
    share: float = 1.0

    def draw(self, levels: int, batch: int, device: torch.device) -> Tensor:
        drawn = torch.randint(self.at_least, levels + 1, (batch,), device=device)
        return torch.where(torch.rand(batch, device=device) < self.share, drawn, levels)

    def check(self, levels: int) -> None:
        super().check(levels)
        if not 0 < self.share <= 1:
            raise ConfigError(f"share of samples that drop levels must lie in (0, 1], got {self.share}")
