"""What a piece of work costs: seconds on the clock, seconds of all processors, and how far memory grew.

    meter = Meter(tokenizer.device)
    tokens, cost = meter(lambda: tokenizer.encode(images))

Memory is that of the process (its largest resident size while the work ran, above its size when the meter was made),
on a GPU that of torch's allocator.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

_PROC = Path("/proc/self")  # Linux's; other systems can't forget a peak, so they can't tell one work from another


@dataclass(frozen=True)
class Cost:
    """What was spent.

    Args:
        seconds: on the clock.
        cpu_seconds: of all threads together.
        peak: bytes that memory grew by; None where that can't be told.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak: int | None = None

    def __add__(self, other: Cost) -> Cost:
        """One after the other: times add up, of the peaks the higher one counts."""
        peaks = [peak for peak in (self.peak, other.peak) if peak is not None]
        return Cost(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds, max(peaks) if peaks else None)


class Meter:
    """Runs work and says what it cost.

    Args:
        device: where the work happens; a GPU is waited for.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        _return_free_memory()
        self._start = self._allocated() if self.device.type == "cuda" else _resident("VmRSS")

    def __call__(self, work: Callable[[], T]) -> tuple[T, Cost]:
        """The work's result, and its cost."""
        self._settle()
        self._forget_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self._settle()
        cost = Cost(time.perf_counter() - wall, time.process_time() - cpu, self._growth())
        return result, cost

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self._start is not None:
            try:
                (_PROC / "clear_refs").write_text("5")
            except OSError:
                self._start = None  # an earlier peak would be taken for this work's

    def _growth(self) -> int | None:
        if self._start is None:
            return None
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _resident("VmHWM")
        return None if peak is None else max(0, peak - self._start)

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device)


def _return_free_memory() -> None:
    """Gives the system what earlier work has freed; the C library keeps it, and work that fits in would seem free."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc's alone
        trim(0)


def _resident(field: str) -> int | None:
    """A size of this process in bytes, by its name in Linux's status file."""
    try:
        lines = (_PROC / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
