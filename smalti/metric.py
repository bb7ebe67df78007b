"""Metric: one number over a data set, gathered batch by batch and machine by machine.

    metric = PSNR()
    for reference, reconstruction in batches:
        metric.update(reference, reconstruction)
    metric.merge(the_metric_of_another_worker)
    metric.protocol, metric.compute()

The protocol string says everything that changes the number (range, window, averaging, features). Numbers with different
protocol strings are never put in one column, and their metrics do not merge.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from smalti.errors import ConfigError, InputError


class Metric(ABC):
    """The contract: each metric adds an `update` with the inputs that it takes."""

    @property
    @abstractmethod
    def protocol(self) -> str:
        """What is measured and how, in one string without spaces."""

    @abstractmethod
    def compute(self) -> Any:
        """The value over everything gathered.

        Raises:
            InputError: if too little was gathered for a value.
        """

    def merge(self, other: Self) -> None:
        """Takes in what another metric gathered, as if it had been gathered here.

        Raises:
            ConfigError: if the other measures something else.
        """
        if type(other) is not type(self) or other.protocol != self.protocol:
            raise ConfigError(f"{other.protocol} can't be merged into {self.protocol}")
        self._take(other)

    @abstractmethod
    def _take(self, other: Self) -> None:
        """Adds the state of `other`, which is known to measure the same."""


class SampleMean(Metric):
    """A metric that is the mean of one value per sample."""

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0

    @abstractmethod
    def values(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """The value of each sample: (batch,), float64."""

    def update(self, reference: Tensor, reconstruction: Tensor) -> None:
        """Gathers a batch of samples."""
        values = self.values(reference, reconstruction)
        self.total += float(values.sum(dtype=torch.float64))
        self.count += len(values)

    def compute(self) -> float:
        if not self.count:
            raise InputError(f"{self.protocol}: nothing was gathered")
        return self.total / self.count

    def _take(self, other: Self) -> None:
        self.total += other.total
        self.count += other.count
