"""What happens to codes that nothing chooses any more.

    Expire      a moving average of counts below a threshold: a random latent takes the code's place

More rules are in `revivals` (BelowMean, IntervalRestart, Anchors, RarelyUsed, Unused) and `tiling` (TiledRestart).

A rule sees, once per `Table.update`, the latents since the last one. It gives the dead codes and what they become; the
table then resets every statistic of theirs, so that the next step does not undo the replacement.

Sources: "Jukebox"; "SoundStream: An End-to-End Neural Audio Codec".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smalti.quantize.base import Noise
from smalti.quantize.distributed import active, from_first_rank, gather_rows, random_rows, sum_over_ranks

if TYPE_CHECKING:
    from smalti.quantize.table import Table


class Revive(ABC):
    """A rule for dead codes.

    Attributes:
        decay: weight of the past in the counts, for tables whose learning rule says none.
    """

    decay: float

    def register(self, table: Table) -> None:  # noqa: B027  (most rules keep nothing)
        """Registers buffers that the rule keeps in the table."""

    @abstractmethod
    def apply(self, table: Table, seen: Sequence[Tensor], noise: Noise) -> None:
        """Replaces dead codes, by `table.replace`.

        Args:
            table: its counts and rows are those after the learning rule.
            seen: latents (rows, dim) of every forward since the last update, on this rank.
            noise: named random draws of the latest forward.
        """


@dataclass(frozen=True)
class Expire(Revive):
    """Codes chosen less often than `threshold` (moving average of counts per step) become random latents.

    Args:
        threshold: in choices per step.
        reset: the count that a replaced code starts with; the threshold if None.
        decay: of the moving average, where no learning rule says one.

    Noise:
        replacement_rows: (codes,), numbers of the latents that codes would become.
    """

    threshold: float = 2.0
    reset: float | None = None
    decay: float = 0.99

    def apply(self, table: Table, seen: Sequence[Tensor], noise: Noise) -> None:
        dead = table.ema_count < self.threshold
        count = self.threshold if self.reset is None else self.reset
        # A CPU waits for nothing to learn that no code is dead; a GPU would.
        if dead.device.type == "cpu" and not bool(dead.any()):
            return
        fresh = random_latents(seen, len(dead), noise.get("replacement_rows"))
        if fresh is not None:
            table.replace(dead, fresh, count)


def random_latents(seen: Sequence[Tensor], wanted: int, chosen: Tensor | None = None) -> Tensor | None:
    """Random ones of the latents of all ranks, equal on all of them; None if there are none.

    Args:
        seen: this rank's, (rows, dim) each.
        wanted: how many; without repeats while there are enough.
        chosen: (wanted,), their numbers, instead of random ones.
    """
    device = seen[0].device
    own = sum(len(x) for x in seen)
    counts = gather_rows(torch.tensor([own], device=device)).tolist() if active() else [own]
    if sum(counts) == 0:
        return None
    if chosen is None:
        chosen = random_rows(sum(counts), wanted, device)
    if len(counts) == 1 and len(seen) == 1:
        return seen[0][chosen]
    first = sum(counts[: torch.distributed.get_rank()]) if active() else 0
    fresh = seen[0].new_zeros(len(chosen), seen[0].shape[1])
    for x in seen:
        place = chosen - first
        here = (place >= 0) & (place < len(x))
        if len(x):
            fresh = torch.where(here[:, None], x[place.clamp(0, len(x) - 1)], fresh)
        first += len(x)
    # Each row is one rank's and zero elsewhere; only the same bits keep codebooks equal for ever.
    return from_first_rank(sum_over_ranks(fresh))
