"""Beam search over residual levels: the path whose sum lies nearest, not the nearest code level by level.

    level i:  each of B partial sums ──k candidates──► B k ends ──keep the B cheapest──► level i + 1

Sources: "Improved Residual Vector Quantization for High-dimensional Approximate Nearest Neighbor Search" (2015);
"Residual Quantization with Implicit Neural Codebooks" (QINCo, 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.base import Quantizer
from smalti.quantize.compose import Quantize, take
from smalti.quantize.sums import folded_sum

HELD = 2**22  # numbers of ends held at once


@dataclass(frozen=True)
class Beam:
    """How many partial sums are kept.

    Args:
        width: in training; 1 is the greedy choice.
        eval_width: in encoding; the same if None.
        level_weights: a path costs the weighted sum of its squared errors after every level, one weight per level;
            None: its squared error at the end alone.
    """

    width: int
    eval_width: int | None = None
    level_weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or (self.eval_width is not None and self.eval_width < 1):
            raise ConfigError(f"a beam keeps at least one path, got {self.width} and {self.eval_width}")

    def check(self, levels: Sequence[Quantizer]) -> None:
        """Raises ConfigError unless it can search these levels."""
        if not all(isinstance(level, Quantize) for level in levels):
            raise ConfigError("a search needs levels of the class Quantize")
        if self.level_weights is not None and len(self.level_weights) != len(levels):
            raise ConfigError(f"{len(levels)} levels need as many weights, got {len(self.level_weights)}")

    def width_in(self, training: bool) -> int:
        """Paths that are kept in training, or in encoding."""
        return self.width if training or self.eval_width is None else self.eval_width

    def path(self, levels: Sequence[Quantizer], x: Tensor, training: bool) -> Tensor:
        """Codes of the cheapest path found through the first levels for each row of x (rows, dim): (rows, slots)."""
        width = self.width_in(training)
        weights = None if self.level_weights is None else self.level_weights[: len(levels)]
        return search(levels, x, width, weights, paths=1)[0][:, 0]


@torch.no_grad()
def search(
    levels: Sequence[Quantizer],
    x: Tensor,
    width: int,
    level_weights: Sequence[float] | None = None,
    *,
    paths: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The cheapest paths found, cheapest first.

    Args:
        levels: residual levels; conditional ones see the sum so far.
        x: (rows, dim).
        width: number of paths that are kept after every level.
        level_weights: as in Beam.
        paths: how many to give; as many as are kept if None. Few cost less, because each partial sum needs no more
            candidates than that at the last level.

    Returns:
        codes (rows, paths, slots), sums of vectors (rows, paths, dim), costs (rows, paths), float64.
    """
    size = max(1, HELD // (x.shape[1] * width * min(width, max(_size(level) for level in levels))))
    if torch.compiler.is_compiling():  # a compiled program knows no number of rows, so none of parts
        return _search(levels, x, width, level_weights, paths or width)
    parts = [_search(levels, rows, width, level_weights, paths or width) for rows in x.split(size)]
    codes, sums, costs = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(sums), torch.cat(costs)


def _search(
    levels: Sequence[Quantizer], x: Tensor, width: int, weights: Sequence[float] | None, paths: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows, dim = x.shape
    total = x.new_zeros(rows, 1, dim)
    codes = x.new_zeros(rows, 1, 0, dtype=torch.int64)
    spent = x.new_zeros(rows, 1, dtype=torch.float64)
    costs = spent
    for index, level in enumerate(levels):
        kept = paths if index == len(levels) - 1 else width
        options = min(kept, _size(level))
        context = total if level.conditional else None
        found, values, _ = level.candidates(x[:, None] - total, options, context=context)
        ends = (total[:, :, None] + values).flatten(1, 2)
        costs = folded_sum((x[:, None].double() - ends.double()).square())
        if weights is not None:
            costs = spent.repeat_interleave(options, 1) + weights[index] * costs
        order = costs.argsort(dim=1, stable=True)[:, :kept]
        spent = costs = costs.gather(1, order)
        total = take(ends, order)
        codes = torch.cat([take(codes, order // options), take(found.flatten(1, 2), order)], -1)
    return codes, total, costs


def _size(level: Quantizer) -> int:
    size = 1
    for each in level.vocab:
        size *= each
    return size
