"""The points of the integer pyramid {y in Z^l : sum |y_i| = k}, counted and numbered without gaps.

Source: "A Pyramid Vector Quantizer" (1986), as used by "Pyramid Vector Quantization for LLMs" (2024).

    N(l, k) = N(l-1, k) + N(l-1, k-1) + N(l, k-1),     N(l, 0) = 1, N(0, k) = 0

Numbers go through the first dimension in the order 0, +1, -1, +2, -2, ..., each value a block in the order of the rest.
They are Python integers of any size; as codes they are one int64 slot up to 2^63 points, and above that several slots
of 32 bits, the lowest first. (Then not every row of codes is a point: the ones at or above N are refused.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.tokens import MAX_VOCAB

WORD = 32  # bits of a slot where one slot is too small


@cache
def count_table(dim: int, pulses: int) -> tuple[tuple[int, ...], ...]:
    """N(l, k) for l in 0..dim (rows) and k in 0..pulses (columns)."""
    rows = [(1, *[0] * pulses)]
    for _ in range(dim):
        above, row = rows[-1], [1]
        for k in range(1, pulses + 1):
            row.append(above[k] + above[k - 1] + row[k - 1])
        rows.append(tuple(row))
    return tuple(rows)


def count(dim: int, pulses: int) -> int:
    """N(dim, pulses), the number of points of the pyramid."""
    return count_table(dim, pulses)[dim][pulses]


class Enumeration:
    """Points of one pyramid <-> numbers 0..size-1.

    Args:
        dim: l, the number of coordinates.
        pulses: k, the sum of their magnitudes.

    Raises:
        ConfigError: if either is not positive.
    """

    def __init__(self, dim: int, pulses: int) -> None:
        if dim < 1 or pulses < 1:
            raise ConfigError(f"a pyramid needs at least one dimension and one pulse, got {dim} and {pulses}")
        self.dim, self.pulses, self.size = dim, pulses, count(dim, pulses)
        self.bits = (self.size - 1).bit_length()
        table = count_table(dim, pulses)
        self._exact: NDArray[Any] = np.array(table, dtype=object)
        self._exact_below: NDArray[Any] = np.array([list(accumulate(row)) for row in table], dtype=object)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._int64(torch.device("cpu"))  # now, because a traced program must not make it

    @property
    def vocab(self) -> tuple[int, ...]:
        """Values of each slot: one slot up to 2^63 points, else 32-bit words, lowest first."""
        if self.size <= MAX_VOCAB:
            return (self.size,)
        words = -(-self.bits // WORD)
        return (*[2**WORD] * (words - 1), ((self.size - 1) >> (WORD * (words - 1))) + 1)

    def codes(self, points: Tensor) -> Tensor:
        """Codes (rows, slots), int64, of points (rows, dim)."""
        if self.size <= MAX_VOCAB:
            table, below = self._int64(points.device)
            return _number(points, self.pulses, table, below, torch.zeros_like, torch.where)[:, None]
        return to_words(self.numbers(points), len(self.vocab)).to(points.device)

    def points(self, codes: Tensor) -> Tensor:
        """Points (rows, dim) of codes (rows, slots).

        Raises:
            InputError: if a row of several slots is no number below `size`.
        """
        if self.size <= MAX_VOCAB:
            table, below = self._int64(codes.device)
            return torch.stack(_point(codes[:, 0], self.dim, self.pulses, table, below, torch.where, _find), 1)
        return self.from_numbers(from_words(codes)).to(codes.device)

    def numbers(self, points: Tensor) -> list[int]:
        """Exact numbers of points (rows, dim), whatever the size of the pyramid."""
        self.check(points)
        rows = points.cpu().numpy().astype(object)
        return [int(n) for n in _number(rows, self.pulses, self._exact, self._exact_below, np.zeros_like, np.where)]

    def from_numbers(self, numbers: Sequence[int]) -> Tensor:
        """Points (rows, dim), int64, of exact numbers.

        Raises:
            InputError: if a number lies outside 0..size-1.
        """
        if outside := [number for number in numbers if not 0 <= number < self.size]:
            raise InputError(f"{outside[0]} is the number of no point: the pyramid has {self.size}")
        rows: NDArray[Any] = np.array([*numbers, None], dtype=object)[:-1]  # None keeps numpy from choosing int64
        columns = _point(rows, self.dim, self.pulses, self._exact, self._exact_below, np.where, np.searchsorted)
        return torch.from_numpy(np.stack(columns, 1).astype(np.int64))

    def check(self, points: Tensor) -> None:
        """Raises InputError unless points are (rows, dim) integers with the right sum of magnitudes."""
        if points.ndim != 2 or points.shape[1] != self.dim or points.is_floating_point():
            raise InputError(f"points must be integers (rows, {self.dim}), got {points.dtype} {tuple(points.shape)}")
        sums = points.abs().sum(1)
        if bool((sums != self.pulses).any()):
            raise InputError(f"a point's magnitudes must sum to {self.pulses}, got {sums[sums != self.pulses][0]}")

    def _int64(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            # Entries above the pyramid's own size are never asked for; they only have to fit the type.
            whole = [np.minimum(table, MAX_VOCAB - 1).astype(np.int64) for table in (self._exact, self._exact_below)]
            self._tables[device] = (torch.from_numpy(whole[0]).to(device), torch.from_numpy(whole[1]).to(device))
        return self._tables[device]


def to_words(numbers: Sequence[int], words: int) -> Tensor:
    """Numbers as little-endian 32-bit words: (rows, words), int64."""
    mask = 2**WORD - 1
    return torch.tensor(
        [[(number >> (WORD * word)) & mask for word in range(words)] for number in numbers], dtype=torch.int64
    ).view(len(numbers), words)


def from_words(words: Tensor) -> list[int]:
    """What `to_words` was made of."""
    return [sum(word << (WORD * place) for place, word in enumerate(row)) for row in words.tolist()]


# The two maps are written once for int64 tensors and for numpy's arrays of Python integers.


def _number(
    points: Any, pulses: int, table: Any, below: Any, zeros: Callable[..., Any], where: Callable[..., Any]
) -> Any:
    dim = points.shape[1]
    number = zeros(points[:, 0])
    left = number + pulses  # pulses that the remaining dimensions hold
    index = (lambda k: k) if isinstance(points, Tensor) else (lambda k: k.astype(np.int64))
    for place in range(dim):
        rest, y = dim - place - 1, points[:, place]
        a = abs(y)
        after = table[rest][index(left - a)]
        # Blocks before this one: the one of 0, and two each of 1..a-1.
        inner = 2 * (below[rest][index(where(left > 0, left - 1, left))] - below[rest][index(left - a)])
        step = table[rest][index(left)] + inner + where(y < 0, after, 0)
        number = number + where(a > 0, step, 0)
        left = left - a
    return number


def _point(
    number: Any,
    dim: int,
    pulses: int,
    table: Any,
    below: Any,
    where: Callable[..., Any],
    find: Callable[[Any, Any], Any],
) -> list[Any]:
    left = number * 0 + pulses
    index = (lambda k: k) if isinstance(number, Tensor) else (lambda k: k.astype(np.int64))
    columns = []
    for place in range(dim):
        rest = dim - place - 1
        zero = table[rest][index(left)]
        before = below[rest][index(where(left > 0, left - 1, left))]
        # The blocks of 1..a-1 lie before the number; `below` grows, so a is found by bisection.
        least = find(below[rest], before - (number - zero) // 2)
        a = where((number < zero) | (left == 0), 0, left - least)
        after = table[rest][index(left - a)]
        inside = number - where(a > 0, zero + 2 * (before - below[rest][index(left - a)]), 0)
        negative = (a > 0) & (inside >= after)
        number = where(negative, inside - after, inside)
        columns.append(where(negative, -a, a))
        left = left - a
    return columns


def _find(row: Tensor, values: Tensor) -> Tensor:
    return torch.searchsorted(row, values.contiguous())
