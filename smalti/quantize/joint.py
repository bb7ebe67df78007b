"""Joint: tables that share their index, so that one code means a vector in each of several spaces.

    x = [u | v]      code = argmin_k  |u - a_k|² + w |v - b_k|²        vector = [a_k | b_k]

Source: "TokenFlow: Unified Image Tokenizer for Multimodal Understanding and Generation" (2024), with a semantic table
and a pixel table of unit rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize.base import Alphabet, Noise
from smalti.quantize.neighbours import nearest, nearest_k
from smalti.quantize.table import Table


class Joint(Alphabet):
    """One slot over several tables side by side.

    Args:
        tables: of the same number of codes, each with its own dimensions of x and its own space. Their learning rules
            see the same codes. None may revive codes, nor more than one start from k-means, because each would choose
            its rows without the others.
        weights: of the tables' squared distances; 1 each if None.

    Raises:
        ConfigError: if the tables do not fit together, or a weight is negative.
    """

    def __init__(self, tables: Sequence[Table], *, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not tables or len({table.vocab for table in tables}) != 1:
            raise ConfigError(f"joint tables need as many codes each, got {[table.vocab for table in tables]}")
        if any(table.revive is not None for table in tables):
            raise ConfigError("joint tables cannot revive codes: each would choose its rows without the others")
        if sum(table.learn is not None and table.learn.starts_from_data for table in tables) > 1:
            raise ConfigError("only one of joint tables can start from data")
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(tables)
        if len(self.weights) != len(tables) or min(self.weights) < 0 or max(self.weights) == 0:
            raise ConfigError(f"{len(tables)} tables need as many weights, none negative, got {self.weights}")
        self.tables: Sequence[Table] = nn.ModuleList(tables)  # type: ignore[assignment]
        self.dims = [table.dim for table in tables]
        self.dim, self.vocab = sum(self.dims), tables[0].vocab

    def project(self, x: Tensor) -> Tensor:
        pieces = zip(self.tables, x.split(self.dims, -1), strict=True)
        return torch.cat([table.project(piece) for table, piece in pieces], -1)

    def _weighted(self, x: Tensor) -> Tensor:
        """Vectors whose plain squared distances are the weighted ones."""
        pieces = zip(self.weights, x.split(self.dims, -1), strict=True)
        return torch.cat([weight**0.5 * piece for weight, piece in pieces], -1)

    def nearest(self, x: Tensor) -> Tensor:
        return nearest(self._weighted(x), self._weighted(self.rows().detach()))[:, None]

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        codes, costs = nearest_k(self._weighted(x), self._weighted(self.rows().detach()), k)
        return codes[..., None], costs

    def rows(self) -> Tensor:
        """The tables' effective rows side by side: (codes, dim)."""
        return torch.cat([table.rows() for table in self.tables], -1)

    def chosen(self, codes: Tensor) -> Tensor:
        return torch.cat([table.chosen(codes) for table in self.tables], -1)

    def lookup(self, codes: Tensor) -> Tensor:
        return torch.cat([table.lookup(codes) for table in self.tables], -1)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        return self.lookup(codes)[..., None, :]

    def codebooks(self) -> list[Tensor]:
        return [self.rows()]

    def start(self, x: Tensor, noise: Noise) -> None:
        for table, piece in zip(self.tables, x.split(self.dims, -1), strict=True):
            table.start(piece, noise)

    def observe(self, x: Tensor, codes: Tensor, noise: Noise) -> None:
        for table, piece in zip(self.tables, x.split(self.dims, -1), strict=True):
            table.observe(piece, codes, noise)

    def update(self) -> None:
        for table in self.tables:
            table.update()
