"""Heads: several slots of one latent, each with its own dimensions, from one table or from one table each.

    x = [x_0 | x_1 ...]      one Table       every head searches the same table: one search, one set of statistics
                             many            every head has its own

Sources: "Product Quantization for Nearest Neighbor Search"; one table for all heads as in vector-quantize-pytorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize.base import Alphabet, Noise, check_candidates
from smalti.quantize.table import Table


class Heads(Alphabet):
    """Slots side by side, each with its own dimensions of x.

    Args:
        tables: one table for all heads, or one per head, all of one dimension.
        heads: number of slots, where there is one table.
    """

    def __init__(self, tables: Table | Sequence[Table], heads: int | None = None) -> None:
        super().__init__()
        shared = isinstance(tables, Table)
        listed: list[Table] = [tables] if isinstance(tables, Table) else list(tables)
        if shared != (heads is not None) or (heads is not None and heads < 1) or not listed:
            raise ConfigError("give one table and the number of heads, or a list of tables, one per head")
        if len({table.dim for table in listed}) != 1:
            raise ConfigError(f"heads must share one dimension, got {[table.dim for table in listed]}")
        self.tables: Sequence[Table] = nn.ModuleList(listed)  # type: ignore[assignment]
        self.heads = self.parts = len(listed) if heads is None else heads
        self.head_dim = listed[0].dim
        self.dim = self.head_dim * self.heads
        self.vocab = tuple(size for table, count in self.runs() for size in table.vocab * count)

    def runs(self) -> list[tuple[Table, int]]:
        """The tables, and how many heads next to each other each serves."""
        return [(self.tables[0], self.heads)] if len(self.tables) == 1 else [(table, 1) for table in self.tables]

    def _parts(self, values: Tensor, width: int) -> list[tuple[Table, Tensor]]:
        """Values (rows, heads * width) as (rows * heads of a table, width)."""
        pieces = values.split([width * count for _, count in self.runs()], -1)
        return [(table, piece.reshape(-1, width)) for (table, _), piece in zip(self.runs(), pieces, strict=True)]

    def project(self, x: Tensor) -> Tensor:
        return torch.cat([table.project(part) for table, part in self._heads_of(x)], -2).flatten(-2)

    def _heads_of(self, x: Tensor) -> list[tuple[Table, Tensor]]:
        """x (..., dim) as (..., heads of a table, head dim)."""
        pieces = x.unflatten(-1, (self.heads, self.head_dim)).split([count for _, count in self.runs()], -2)
        return [(table, piece) for (table, _), piece in zip(self.runs(), pieces, strict=True)]

    def nearest(self, x: Tensor) -> Tensor:
        found = [table.nearest(part) for table, part in self._parts(x, self.head_dim)]
        pieces = [each.view(-1, count) for each, (_, count) in zip(found, self.runs(), strict=True)]
        return torch.cat(pieces, 1)

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Costs add up over heads, so keeping the k cheapest prefixes at every head loses nothing."""
        check_candidates(k, self.vocab)
        codes, costs = x.new_zeros(len(x), 1, 0, dtype=torch.int64), x.new_zeros(len(x), 1, dtype=torch.float64)
        tables = [table for table, count in self.runs() for _ in range(count)]
        for table, part in zip(tables, x.split(self.head_dim, 1), strict=True):
            found, cost = table.candidates(part, min(k, table.vocab[0]))
            total = (costs[:, :, None] + cost[:, None, :]).flatten(1)
            order = total.argsort(dim=1, stable=True)[:, :k]
            costs = total.gather(1, order)
            before, own = order // cost.shape[1], order % cost.shape[1]
            codes = torch.cat(
                [
                    codes.gather(1, before[..., None].expand(-1, -1, codes.shape[2])),
                    found[..., 0].gather(1, own)[..., None],
                ],
                2,
            )
        return codes, costs

    def chosen(self, codes: Tensor) -> Tensor:
        found = [table.chosen(part[..., None]) for table, part in self._codes_of(codes)]
        return torch.cat(found, -2).flatten(-2)

    def _codes_of(self, codes: Tensor) -> list[tuple[Table, Tensor]]:
        pieces = codes.split([count for _, count in self.runs()], -1)
        return [(table, piece) for (table, _), piece in zip(self.runs(), pieces, strict=True)]

    def lookup(self, codes: Tensor) -> Tensor:
        return self.slot_vectors(codes).flatten(-2)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        return torch.cat([table.lookup(part[..., None]) for table, part in self._codes_of(codes)], -2)

    def codebooks(self) -> list[Tensor]:
        return [rows for table, count in self.runs() for rows in [table.rows()] * count]

    def start(self, x: Tensor, noise: Noise) -> None:
        for table, part in self._parts(x, self.head_dim):
            table.start(part, noise)

    def observe(self, x: Tensor, codes: Tensor, noise: Noise) -> None:
        pairs = zip(self._parts(x, self.head_dim), self._parts(codes, 1), strict=True)
        for (table, part), (_, own) in pairs:
            table.observe(part, own, noise)

    def update(self) -> None:
        for table in self.tables:
            table.update()
