"""Rows that start from, and restart as, latents of a batch; a batch smaller than the codebook is repeated with jitter.

    tiled = latents, or copies of them, each moved by 0.01 / sqrt(dim) times a random number, and K random ones of these

Sources: "OmniTokenizer" (the codebook of VideoGPT; normal jitter); "Autoregressive Image Generation using Residual
Quantization" (RQ-VAE; uniform jitter).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smalti.quantize.base import Noise
from smalti.quantize.distributed import from_first_rank, gather_rows, random_rows
from smalti.quantize.learning import EMA
from smalti.quantize.revival import Revive

if TYPE_CHECKING:
    from smalti.quantize.table import Table

Jitter = Callable[[Tensor], Tensor]  # random numbers in the shape of a tensor: torch.randn_like, torch.rand_like
MOVED = 0.01  # published: the jitter's size times sqrt(dim)


def tiled(latents: Tensor, wanted: int, jitter: Jitter, noise: Noise) -> Tensor:
    """Random ones of the latents (rows, dim) of all ranks, or, if they are too few, of jittered copies: (wanted, dim).

    Noise:
        replacement_rows: (wanted,), which of the latents or of their copies, one round of copies after another.
        tiled_jitter: (rows of all copies, dim), replaces the drawn numbers.
    """
    if len(latents) < wanted:
        latents = latents.repeat(-(-wanted // len(latents)), 1)
        drawn = noise.get("tiled_jitter")
        moved = jitter(latents) if drawn is None else drawn
        latents = latents + moved * (MOVED * latents.shape[1] ** -0.5)
    chosen = noise.get("replacement_rows")
    chosen = random_rows(len(latents), wanted, latents.device) if chosen is None else chosen
    return from_first_rank(latents[chosen])


@dataclass(frozen=True)
class TiledEMA(EMA):
    """EMA whose rows start as latents of the first training batch, each of which counts as chosen once.

    Args: those of EMA (`kmeans_iterations` has no effect), and
        jitter: torch.randn_like (OmniTokenizer) or torch.rand_like (RQ-VAE).
    """

    jitter: Jitter = torch.randn_like

    @property
    def starts_from_data(self) -> bool:
        return True

    def first_rows(self, table: Table, latents: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        rows = tiled(latents, table.vectors.codes, self.jitter, noise)
        return rows, torch.ones(len(rows), dtype=torch.float32, device=rows.device)


@dataclass(frozen=True)
class TiledRestart(Revive):
    """In every step, codes whose moving average of counts is below the threshold become latents; they count as one.

    RQ-VAE resets sums and counts, as here. VideoGPT and OmniTokenizer reset the row alone, so that the next step of
    their moving averages brings the dead row back.

    Args:
        threshold: in choices per step.
        jitter: torch.randn_like (OmniTokenizer) or torch.rand_like (RQ-VAE).
        decay: of the moving average, where no learning rule says one.

    Noise: as of `tiled`.
    """

    threshold: float = 1.0
    jitter: Jitter = torch.randn_like
    decay: float = 0.99

    def apply(self, table: Table, seen: Sequence[Tensor], noise: Noise) -> None:
        latents = gather_rows(torch.cat(list(seen)))
        if len(latents):
            dead = table.ema_count < self.threshold
            table.replace(dead, tiled(latents, len(dead), self.jitter, noise), 1.0)
