"""How the rows of a table follow the data.

    Gradient    nothing: the model's loss moves them; but they may start from k-means
    EMA         the mean of what chose a row, as an exponential moving average; StepwiseEMA: a step for each batch
    InPlace     an optimizer of the table's own, on the distance between rows and what chose them

A rule sees, once per `Table.update`, how often each row was chosen since the last one and the sum of what chose it,
over all micro-batches and ranks.

Sources: "Neural Discrete Representation Learning" (EMA); "Straightening Out the Straight-Through Estimator" (2023;
in-place steps, alternated with the model's).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from smalti.errors import ConfigError
from smalti.quantize.base import Noise
from smalti.quantize.clustering import kmeans

if TYPE_CHECKING:
    from smalti.quantize.table import Table

RowWeights = Callable[[Tensor, Tensor], Tensor]


class Learning(ABC):
    """A learning rule.

    Attributes:
        sets_rows: whether it sets the rows itself, which then are no parameters of the model's optimizer.
        kmeans_iterations: start from k-means of the first training batch (0: keep the random start).
    """

    sets_rows: ClassVar[bool] = True
    kmeans_iterations: int

    @property
    def keeps(self) -> float:
        """The share of what was gathered since the last step that the next batch leaves of it."""
        return 1.0

    @property
    def starts_from_data(self) -> bool:
        """Whether the rows start from the first training batch."""
        return self.kmeans_iterations > 0

    def register(self, table: Table) -> None:  # noqa: B027  (most rules keep nothing)
        """Registers buffers that the rule keeps in the table."""

    def first_rows(self, table: Table, latents: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """What the rows start from: k-means, unless a rule says otherwise.

        Args:
            table: whose rows.
            latents: (rows, dim), the first training batch of all ranks.
            noise: named random draws.

        Returns:
            rows (codes, dim), and how often each counts as chosen, (codes,).
        """
        start, unit = noise.get("start_rows"), table.space == "unit"
        return kmeans(latents, table.vectors.codes, self.kmeans_iterations, start=start, unit=unit)

    @abstractmethod
    def step(self, table: Table, counts: Tensor, sums: Tensor) -> None:
        """Sets the stored rows, and moves the table's moving average of counts.

        Args:
            table: whose rows.
            counts: (codes,), how often each row was chosen since the last step.
            sums: (codes, dim), of what chose it, in the space of the stored rows; empty if the rule sets no rows.
        """

    def adopt(self, table: Table) -> None:  # noqa: B027
        """Makes the rule's statistics those of the present rows and counts, after something else has set them."""

    def replaced(self, table: Table, dead: Tensor, fresh: Tensor, count: float) -> None:  # noqa: B027
        """Makes the rule's statistics of dead rows those of their replacements.

        Args:
            dead: (codes,), bool.
            fresh: (codes, dim), what dead rows are now.
            count: how often they count as chosen.
        """


@dataclass(frozen=True)
class Gradient(Learning):
    """Rows are parameters of the model, which start from k-means of the first training batch.

    Args:
        kmeans_iterations: of Lloyd's algorithm.
        decay: weight of the past in the counts that dead-code rules look at.
    """

    sets_rows: ClassVar[bool] = False
    kmeans_iterations: int
    decay: float = 0.99

    def step(self, table: Table, counts: Tensor, sums: Tensor) -> None:
        table.average_counts(counts, 1 - self.decay)


@dataclass(frozen=True)
class EMA(Learning):
    """Rows follow the mean of what chose them, as an exponential moving average.

    Args:
        decay: weight of the past.
        eps: Laplace smoothing of the counts.
        kmeans_iterations: start from k-means of the first training batch (0: keep the random start).
        weights: gives (codes,) factors of 1 - decay from counts and sums, so that rows learn at different rates.
    """

    decay: float = 0.99
    eps: float = 1e-5
    kmeans_iterations: int = 0
    weights: RowWeights | None = None

    def register(self, table: Table) -> None:
        table.register_buffer("ema_sum", table.spaced(table.stored_rows().detach()).clone())

    def step(self, table: Table, counts: Tensor, sums: Tensor) -> None:
        if self.weights is None:
            table.average_counts(counts, 1 - self.decay)
            table.ema_sum.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        else:
            share = (1 - self.decay) * self.weights(counts, sums)
            table.average_counts(counts, share)
            table.ema_sum.lerp_(sums, share[:, None])
        self.set_rows(table)

    def set_rows(self, table: Table) -> None:
        """Makes the rows the means that the moving averages say."""
        total = table.ema_count.sum()
        smoothed = (table.ema_count + self.eps) / (total + len(table.ema_count) * self.eps) * total
        table.stored_rows().copy_(table.spaced(table.ema_sum / smoothed[:, None]))

    def adopt(self, table: Table) -> None:
        table.ema_sum.copy_(table.stored_rows() * table.ema_count[:, None])

    def replaced(self, table: Table, dead: Tensor, fresh: Tensor, count: float) -> None:
        table.ema_sum.copy_(torch.where(dead[:, None], fresh * count, table.ema_sum))


@dataclass(frozen=True)
class SmoothedEMA(EMA):
    """EMA that goes on from the smoothed counts, as GLM-4-Voice does, whose dead-code rule looks at these."""

    def set_rows(self, table: Table) -> None:
        total = table.ema_count.sum()
        table.ema_count.copy_((table.ema_count + self.eps) / (total + len(table.ema_count) * self.eps) * total)
        table.stored_rows().copy_(table.spaced(table.ema_sum / table.ema_count[:, None]))


@dataclass(frozen=True)
class StepwiseEMA(EMA):
    """EMA in which every batch between two updates is a step of the moving average; rows are still set once.

    So do the levels of vector-quantize-pytorch's ResidualVQ that share a codebook: later levels weigh more.
    """

    def __post_init__(self) -> None:
        if self.weights is not None:
            raise ConfigError("StepwiseEMA has no weights of rows: use EMA")

    @property
    def keeps(self) -> float:
        return self.decay

    def step(self, table: Table, counts: Tensor, sums: Tensor) -> None:
        past = self.decay**table.observations
        table.ema_count.mul_(past).add_(counts, alpha=1 - self.decay)
        table.ema_sum.mul_(past).add_(sums, alpha=1 - self.decay)
        self.set_rows(table)


@dataclass(frozen=True)
class InPlace(Learning):
    """Rows take steps of their own optimizer on mean |e - sg x|², from the counts and sums alone.

    Args:
        optimizer: makes the optimizer of a list with the rows, e.g. `partial(torch.optim.SGD, lr=0.1)`.
        decay: weight of the past in the counts that dead-code rules look at.
        kmeans_iterations: start from k-means of the first training batch (0: keep the random start).
    """

    optimizer: Callable[[Sequence[Tensor]], Optimizer]
    decay: float = 0.99
    kmeans_iterations: int = 0

    def step(self, table: Table, counts: Tensor, sums: Tensor) -> None:
        table.average_counts(counts, 1 - self.decay)
        rows = table.stored_rows()
        if table.optimizer is None:
            table.optimizer = self.optimizer([rows])
        # The gradient of a mean over all chosen numbers; no row needs the latents themselves.
        rows.grad = 2 * (rows.detach() * counts[:, None] - sums) / (counts.sum().clamp(min=1) * rows.shape[1])
        with torch.enable_grad():
            table.optimizer.step()
        rows.grad = None
        if table.space == "unit":
            rows.copy_(table.spaced(rows))
