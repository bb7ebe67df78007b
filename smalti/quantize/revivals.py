"""Dead-code rules of published systems, beside `revival.Expire`. Each resets every statistic of what it replaces.

    BelowMean         Mimi          every 5 steps: average count below a tenth of the mean -> a random latent
    IntervalRestart   GLM-4-Voice   every R steps: average count below decay^R             -> a random latent
    Unused            VAT           not chosen for 100 steps                               -> a random latent
    RarelyUsed        Slot-MLLM     chosen in less than 1 % of 1000 steps                  -> a jittered copy
    Anchors           TA-TiTok      every step, all codes, the less used the further       -> towards the nearest latent

A step is a call of `update`. An optimizer's own moments of a replaced row, where rows learn by gradient, stay: no
published version resets them either.

Sources: "Moshi: a speech-text foundation model for real-time dialogue"; "Scaling Speech-Text Pre-training with
Synthetic Interleaved Data"; "VAT"; "Slot-MLLM" and "NSVQ"; "Online Clustered Codebook" (CVQ-VAE), as in "Democratizing
Text-to-Image Masked Generative Models with Compact Text-Aware One-Dimensional Tokens".
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.base import Noise
from smalti.quantize.distributed import from_first_rank, gather_rows
from smalti.quantize.neighbours import nearest
from smalti.quantize.revival import Revive, random_latents
from smalti.quantize.vectors import Bridged

if TYPE_CHECKING:
    from smalti.quantize.table import Table


class Periodic(Revive):
    """A rule that acts every `every` steps.

    State of the table:
        revival_steps: steps since it last acted.
    """

    every: int

    def register(self, table: Table) -> None:
        if self.every < 1:
            raise ConfigError(f"{type(self).__name__} needs a positive number of steps, got {self.every}")
        table.register_buffer("revival_steps", torch.zeros((), dtype=torch.int64))

    def apply(self, table: Table, seen: Sequence[Tensor], noise: Noise) -> None:
        table.revival_steps += 1
        if int(table.revival_steps) >= self.every:
            table.revival_steps.zero_()
            self.act(table, seen, noise)

    @abstractmethod
    def act(self, table: Table, seen: Sequence[Tensor], noise: Noise) -> None:
        """Replaces dead codes."""


@dataclass(frozen=True)
class BelowMean(Periodic):
    """Mimi: codes with an average count below a share of the mean become random latents, which count as the mean.

    Mimi resets sum and count, as here; EnCodec's and WavTokenizer's expiry sets the row alone, which the next step of
    their moving average overwrites.

    Args:
        share: of the mean average count, below which a code is dead.
        every: steps.
        decay: of the moving average, where no learning rule says one.

    Noise:
        replacement_rows: (codes,), numbers of the latents that codes would become.
    """

    share: float = 0.1
    every: int = 5
    decay: float = 0.99

    def act(self, table: Table, seen: Sequence[Tensor], noise: Noise) -> None:
        mean = table.ema_count.mean()
        dead = table.ema_count < self.share * mean
        _to_latents(table, dead, seen, noise, float(mean))


@dataclass(frozen=True)
class IntervalRestart(Periodic):
    """GLM-4-Voice: codes with an average count below decay^every become random latents, which count as one.

    A code that counted as one and was never chosen since is at decay^every, after `every` steps. The published rule
    restarts a slice of the codebook on each process; here all processes restart all codes alike.

    Args:
        every: steps.
        decay: the one of the table's learning rule, or of the moving average where it has none.

    Noise:
        replacement_rows: (codes,), numbers of the latents that codes would become.
    """

    every: int = 100
    decay: float = 0.99

    def act(self, table: Table, seen: Sequence[Tensor], noise: Noise) -> None:
        dead = table.ema_count < self.decay**self.every
        _to_latents(table, dead, seen, noise, 1.0)


@dataclass(frozen=True)
class Unused(Revive):
    """VAT: codes that nothing chose for some steps become random latents, which count as one.

    Args:
        steps: without a choice, after which a code is dead.
        decay: of the moving average, where no learning rule says one.

    State of the table:
        revival_memory: (codes,), steps since each was chosen.

    Noise:
        replacement_rows: (codes,), numbers of the latents that codes would become.
    """

    steps: int = 100
    decay: float = 0.99

    def register(self, table: Table) -> None:
        table.register_buffer("revival_memory", torch.zeros(table.vectors.codes, dtype=torch.float32))

    def apply(self, table: Table, seen: Sequence[Tensor], noise: Noise) -> None:
        memory = table.revival_memory
        memory.copy_(torch.where(table.counts > 0, 0, memory + 1))
        dead = memory >= self.steps
        if _to_latents(table, dead, seen, noise, 1.0):
            memory.masked_fill_(dead, 0)


@dataclass(frozen=True)
class RarelyUsed(Periodic):
    """Slot-MLLM, after NSVQ: codes chosen in few of the steps of a period become copies of others, moved a little.

    Copies take the codes that live in a random order, each equally often. Where no code lives, none is replaced.

    Args:
        share: of the steps of a period in which a code must be chosen. It should be below rows per step / codes.
        every: steps of a period.
        jitter: standard deviation of what a copy is moved by.
        decay: of the moving average, where no learning rule says one.

    State of the table:
        revival_memory: (codes,), in how many steps of this period each was chosen.

    Noise:
        copies: (codes,), numbers of the codes that dead ones become copies of.
        directions: (codes, dim), standard normal.
    """

    share: float = 0.01
    every: int = 1000
    jitter: float = 0.02
    decay: float = 0.99

    def register(self, table: Table) -> None:
        super().register(table)
        table.register_buffer("revival_memory", torch.zeros(table.vectors.codes, dtype=torch.float32))

    def apply(self, table: Table, seen: Sequence[Tensor], noise: Noise) -> None:
        table.revival_memory += table.counts > 0
        super().apply(table, seen, noise)

    def act(self, table: Table, seen: Sequence[Tensor], noise: Noise) -> None:
        dead = table.revival_memory < self.share * self.every
        table.revival_memory.zero_()
        living = (~dead).nonzero()[:, 0]
        if not 0 < len(living) < len(dead):
            return
        rows = table.vectors()
        copies, moved = noise.get("copies"), noise.get("directions")
        if copies is None:
            order = torch.randperm(len(living), device=rows.device)
            copies = living[order].repeat(-(-len(dead) // len(living)))[dead.cumsum(0) - 1]
        moved = torch.randn_like(rows) if moved is None else moved
        fresh = table.spaced(table.spaced(rows[copies]) + self.jitter * moved)
        table.replace(dead, from_first_rank(fresh), 1.0)


@dataclass(frozen=True)
class Anchors(Revive):
    """TA-TiTok, after CVQ-VAE: each code moves to its nearest latent, the less it is chosen the further.

        p <- decay p + (1 - decay) frequency       share = exp(-10 K p / (1 - decay) - 0.001)

    Latents are those in the table's space; TA-TiTok, which compares at length 1, takes them as the encoder gave them.
    Moving averages of a learning rule are set to the moved rows; counts rise to the share at least.

    Args:
        decay: of the frequencies, and of the moving average of counts where no learning rule says one.

    State of the table:
        revival_memory: (codes,), p.
    """

    decay: float = 0.99

    def register(self, table: Table) -> None:
        if isinstance(table.vectors, Bridged):
            raise ConfigError("Anchors moves every effective row, so it needs Trained or Affine vectors, got Bridged")
        table.register_buffer("revival_memory", torch.zeros(table.vectors.codes, dtype=torch.float32))

    def apply(self, table: Table, seen: Sequence[Tensor], noise: Noise) -> None:
        p, counts = table.revival_memory, table.counts
        p.lerp_(counts / counts.sum().clamp(min=1), 1 - self.decay)
        latents = gather_rows(torch.cat(list(seen)))
        if len(latents) == 0:
            return
        rows = table.vectors()
        anchors = latents[nearest(table.spaced(rows), latents)]
        share = torch.exp(-p * (10 * len(p) / (1 - self.decay)) - 1e-3)
        moved = from_first_rank(rows.lerp(anchors, share[:, None]))
        table.stored_rows().copy_(table.vectors.to_stored(moved))
        table.ema_count.copy_(torch.maximum(table.ema_count, share))
        table.adopt_rows()


def _to_latents(table: Table, dead: Tensor, seen: Sequence[Tensor], noise: Noise, count: float) -> bool:
    """Makes dead codes random latents; whether it did, which it can not without latents."""
    # A CPU waits for nothing to learn that no code is dead; a GPU would.
    if dead.device.type == "cpu" and not bool(dead.any()):
        return False
    fresh = random_latents(seen, len(dead), noise.get("replacement_rows"))
    if fresh is None:
        return False
    table.replace(dead, fresh, count)
    return True
