"""How a run is going: means of what it measures, and its speed. Nothing here makes a step wait for the device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor


class Window:
    """Means of terms since the last line of the journal, on the device: reading them there would make steps wait."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, terms: Mapping[str, Tensor | float]) -> None:
        """Adds one value of each; a value per slot counts with its mean."""
        for name, value in terms.items():
            mean = torch.as_tensor(value, dtype=torch.float64).detach().mean()
            self.sums[name] = self.sums[name] + mean if name in self.sums else mean
            self.counts[name] = self.counts.get(name, 0) + 1

    def broken(self) -> list[str]:
        """Terms that are no finite number."""
        return sorted(name for name, total in self.sums.items() if not bool(torch.isfinite(total)))

    def means(self, fabric: Fabric) -> dict[str, float]:
        """The means over all ranks; a new window begins."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        if fabric.world_size > 1:
            everywhere = fabric.all_reduce(torch.stack([each.to(fabric.device) for each in means.values()]))
            means = dict(zip(means, torch.as_tensor(everywhere), strict=True))
        self.sums, self.counts = {}, {}
        return {name: float(value) for name, value in means.items()}

    def state(self) -> dict[str, Any]:
        return {"sums": {name: total.cpu() for name, total in self.sums.items()}, "counts": dict(self.counts)}

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device) -> Window:
        window = cls()
        window.sums = {name: total.to(device) for name, total in state["sums"].items()}
        window.counts = dict(state["counts"])
        return window


class Clock:
    """How fast steps go, pauses left out; who trains adds to `samples`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """What came since the last call was no training."""
        self.since, self.samples = time.monotonic(), 0

    def speed(self) -> dict[str, float]:
        """Samples a second since the last call."""
        line = {"samples_per_second": self.samples / max(time.monotonic() - self.since, 1e-9)}
        self.restart()
        return line
