"""What every classical codec gives, and how the highest setting that fits a budget is found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Coded:
    """A file of a classical codec, and what it decodes to.

    Args:
        codec: "JPEG", "JPEG 2000", "WebP", "AVIF", "Opus", "Codec2".
        setting: what was chosen, for people.
        data: the whole file.
        budget: bytes that it was meant to have at most.
        decoded: of the original's extent: (3,H,W) in [0,1], or (1,T).
    """

    codec: str
    setting: str
    data: bytes
    budget: int
    decoded: Tensor

    @property
    def fits(self) -> bool:
        return len(self.data) <= self.budget


class Ladder(ABC):
    """One sample in one codec, at any budget. What was encoded is remembered, because budgets share encodings."""

    @abstractmethod
    def at(self, budget: int) -> dict[str, Coded]:
        """The best file of at most so many bytes, by the way that it was found ("" where there is one way).

        Where none is small enough, the smallest.
        """


def highest(settings: range, budget: int, encode: Callable[[int], bytes]) -> tuple[int, bytes]:
    """The highest setting whose file fits the budget, and the file; the lowest one where none fits.

    Sizes grow with the setting but for small steps back, so that a neighbour a few bytes better may be missed.
    """
    best = settings[0], encode(settings[0])
    low, high = 1, len(settings) - 1
    while len(best[1]) <= budget and low <= high:
        middle = (low + high) // 2
        data = encode(settings[middle])
        if len(data) <= budget:
            best, low = (settings[middle], data), middle + 1
        else:
            high = middle - 1
    return best
