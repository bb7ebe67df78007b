"""Directions: a table that is searched by cosine and looked up as it is.

    code = argmax cos(x, e_n)        vector = e_n, at its own length

Where a "unit" Table means its unit rows, here rows keep a length that the loss terms give them, and terms see latents
at their own length.

Sources: "High-Fidelity Audio Compression with Improved RVQGAN" (DAC); "Visual Autoregressive Modeling" (using_znorm).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.base import Alphabet, Noise
from smalti.quantize.table import Table


class Directions(Alphabet):
    """The rows of a table, nearest by angle.

    Args:
        table: in space "unit", learned by gradient.
    """

    def __init__(self, table: Table) -> None:
        super().__init__()
        if table.space != "unit" or table.learn is not None:
            raise ConfigError("Directions needs a table in space 'unit' that learns by gradient")
        self.table = table
        self.dim, self.vocab, self.bit_order = table.dim, table.vocab, table.bit_order

    def nearest(self, x: Tensor) -> Tensor:
        return self.table.nearest(self.table.project(x))

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest by angle, with the squared distances of unit vectors."""
        return self.table.candidates(self.table.project(x), k)

    def lookup(self, codes: Tensor) -> Tensor:
        index = codes[..., 0]
        found = F.embedding(index.clamp(min=0), self.table.vectors())
        return found.masked_fill((index < 0)[..., None], 0)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        return self.lookup(codes)[..., None, :]

    def codebooks(self) -> list[Tensor]:
        return [self.table.vectors()]

    def observe(self, x: Tensor, codes: Tensor, noise: Noise) -> None:
        self.table.observe(x, codes, noise)  # dead codes become latents, at their own length

    def update(self) -> None:
        self.table.update()
