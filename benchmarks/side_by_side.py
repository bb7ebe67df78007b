"""What benchmarks of one process share: a row of the table, and timing engines that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """A line of a benchmark.

    Args:
        case: what is measured.
        ratio: ours over the peer's, or over a limit.
        goal: the least ratio that is wanted.
        peer, ours: both, in the case's own unit.
        peak: bytes of memory that ours took, where that is measured.
    """

    case: str
    ratio: float
    goal: float
    peer: float
    ours: float
    peak: float | None = None


def best(*actions: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Seconds of the processor for each, the best of several rounds in which they take turns."""
    seconds = [float("inf")] * len(actions)
    for _ in range(rounds):
        for place, action in enumerate(actions):
            began = time.process_time()
            action()
            seconds[place] = min(seconds[place], time.process_time() - began)
    return seconds
