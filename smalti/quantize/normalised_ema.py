"""NormalisedEMA: unit rows follow the direction of the mean of what chose them.

    m = unit(mean of the latents that chose e)          e <- unit(decay e + (1 - decay) m)

A row that nothing chose keeps its direction. Rows move by a fixed share, however many latents chose them, and no sums
are kept: the moving average of counts is a statistic, which decides nothing but what a dead-code rule makes of it.

Source: "BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers" (2022); E-ViLM uses it,
and NeuroRVQ in residual levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.learning import Learning

if TYPE_CHECKING:
    from smalti.quantize.table import Table


@dataclass(frozen=True)
class NormalisedEMA(Learning):
    """Unit rows as an exponential moving average on the sphere; needs a table whose space is "unit".

    Args:
        decay: weight of the past.
        kmeans_iterations: start from spherical k-means of the first training batch (0: keep the random start).
    """

    decay: float = 0.99
    kmeans_iterations: int = 10

    def register(self, table: Table) -> None:
        if table.space != "unit":
            raise ConfigError(f"NormalisedEMA needs a table in unit space, got {table.space!r}")

    def step(self, table: Table, counts: Tensor, sums: Tensor) -> None:
        table.average_counts(counts, 1 - self.decay)
        rows = table.stored_rows()
        directions = torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), rows)
        rows.copy_(F.normalize(rows.lerp(directions, 1 - self.decay), dim=1))
