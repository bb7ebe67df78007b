"""Count models of the next byte, all in integers: the same weights on every machine.

    samples ──Grams──► counts of every context of up to `order` bytes ──back-off──► CountModel

A context with n occurrences that was followed by t different bytes gives byte j (Witten-Bell)

    P(j) = (c_j + t P_shorter(j)) / (n + t)

and the shortest, empty one backs off to all bytes alike. Sums run in 30-bit fixed point, products are cut off, and a
weight is max(1, P(j) * 2^20 cut off): the recipe of 3.4 of the sheet, without a float.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from smalti.bpe.compiled import kernel
from smalti.errors import CheckpointError, ConfigError
from smalti.text.base import Sample
from smalti.text.equal_info.grams import MAX_ORDER, Grams
from smalti.text.equal_info.model import (
    BYTES,
    MAX_TOTAL,
    SCALE_BITS,
    ByteArray,
    Cursor,
    NextByte,
    WeightArray,
    check_weights,
)

FIXED_BITS = 30  # of fixed-point probabilities
KEEP_BITS = 31  # of the share that a longer context leaves to a shorter one: at most a half, so that it fits int32
SHIFT = FIXED_BITS - SCALE_BITS
NEVER = 2**62  # a depth that no window reaches
ARRAYS = {
    "link": "int32",
    "keep": "int32",
    "first": "int32",
    "symbols": "uint8",
    "amounts": "int32",
    "targets": "int32",
}
Int32Array = np.ndarray[tuple[int, ...], np.dtype[np.int32]]


@dataclass(frozen=True, eq=False)
class CountModel(NextByte):
    """Contexts as an automaton: a node per context, the empty one first, every one after its `link`.

    The weights of a node are those of its link, times `keep` / 2^31, plus `amounts` at its `symbols`.

    Args:
        link: (nodes,): the context without its first byte.
        keep: (nodes,): what remains of the shorter context's weights.
        first: (nodes + 1,): where a node's entries begin.
        symbols: (entries,): bytes that followed, ascending within a node.
        amounts: (entries,): what each adds.
        targets: (entries,): the node of the longest context after that byte.
        shift: weights are cut by so many bits in the end.
        longest: as in `NextByte`.
    """

    link: Int32Array
    keep: Int32Array
    first: Int32Array
    symbols: ByteArray
    amounts: Int32Array
    targets: Int32Array
    shift: int = SHIFT
    longest: int | None = None

    @classmethod
    def fit(cls, samples: Iterable[Sample], order: int = 5, *, least: int = 1, longest: int | None = 192) -> Self:
        """Counts bytes.

        Args:
            samples: of text; no context crosses from one to the next. Without any, all bytes weigh the same.
            order: bytes of the longest context.
            least: contexts that occur less often are left out.
            longest: as in `NextByte`.

        Raises:
            ConfigError: if the order is out of range, or there are more than 2^31 different contexts.
        """
        if not 0 <= order <= MAX_ORDER or least < 1:
            raise ConfigError(f"order must be in 0..{MAX_ORDER} and least at least 1, got {order} and {least}")
        return cls(**_backed_off(Grams.of(samples, order), order, least), longest=longest)

    @classmethod
    def of_counts(cls, counts: WeightArray, longest: int | None = None) -> Self:
        """The model whose weights are counts as they are.

        Args:
            counts: (256,), of order 0; or (256, 256), of order 1: a row per previous byte, the first byte of a window
                having the sum of all rows.
            longest: as in `NextByte`.

        Raises:
            ConfigError: if a count is below 1, or a sum too large.
        """
        if counts.shape not in ((BYTES,), (BYTES, BYTES)):
            raise ConfigError(f"counts must be (256,) or (256, 256), got {counts.shape}")
        table = check_weights(counts).reshape(-1, BYTES)
        rows = np.concatenate([check_weights(table.sum(0))[None], table[: BYTES * (counts.ndim - 1)]])
        targets = np.arange(1, BYTES + 1) if len(rows) > 1 else np.zeros(BYTES)
        return cls(
            link=np.zeros(len(rows), np.int32),
            keep=np.zeros(len(rows), np.int32),
            first=np.arange(len(rows) + 1, dtype=np.int32) * BYTES,
            symbols=np.tile(np.arange(BYTES, dtype=np.uint8), len(rows)),
            amounts=rows.astype(np.int32).reshape(-1),
            targets=np.tile(targets.astype(np.int32), len(rows)),
            shift=0,
            longest=longest,
        )

    def weights(self, contexts: ByteArray) -> WeightArray:
        return _weights_after(self.arrays, np.ascontiguousarray(contexts, np.uint8))

    def cursor(self) -> Cursor:
        return _CountCursor(self)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What the kernels take: the six arrays, `shift` and `longest`."""
        return (*self.tensors().values(), self.shift, NEVER if self.longest is None else self.longest)

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays by name, as they are saved."""
        return {name: getattr(self, name) for name in ARRAYS}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray[Any, Any]], longest: int | None) -> Self:
        """A fitted model from what `tensors` gave.

        Raises:
            CheckpointError: if arrays are missing, or do not fit together.
        """
        types = {name: str(array.dtype) for name, array in tensors.items()}
        if types != ARRAYS or any(array.ndim != 1 for array in tensors.values()):
            raise CheckpointError(f"a count model has {ARRAYS}, got {types}")
        given: dict[str, Any] = dict(tensors)
        model = cls(**given, longest=longest)
        if not model._whole():
            raise CheckpointError("the arrays of the count model do not fit together")
        return model

    def _whole(self) -> bool:
        """Whether every index of the automaton is inside its arrays, and no weight can be too large."""
        nodes, entries, sizes = len(self.link), len(self.symbols), np.diff(self.first)
        return (
            nodes > 0
            and (len(self.keep), len(self.first), len(self.amounts), len(self.targets))
            == (nodes, nodes + 1, entries, entries)
            and (self.first[0], self.first[-1], self.link[0]) == (0, entries, 0)
            and bool((sizes >= 0).all() and (sizes <= BYTES).all())
            and bool((self.link[1:] < np.arange(1, nodes)).all() and (self.link >= 0).all())
            and not self._ancestors(MAX_ORDER).any()
            and bool((self.targets >= 0).all() and (self.targets < nodes).all())
            and bool((self.keep >= 0).all() and (self.amounts >= 0).all() and (self.amounts <= 1 << FIXED_BITS).all())
        )

    def _ancestors(self, steps: int) -> Int32Array:
        """(nodes,): where so many links lead from each node."""
        nodes = np.arange(len(self.link), dtype=np.int32)
        for _ in range(steps):
            nodes = self.link[nodes]
        return nodes


class _CountCursor(Cursor):
    def __init__(self, model: CountModel) -> None:
        self._arrays = model.arrays
        self._node, self._depth = 0, 0
        self._row = np.zeros(BYTES, np.int64)

    @property
    def weights(self) -> WeightArray:
        fill_weights(self._arrays, self._node, self._depth, self._row)
        return self._row

    def push(self, byte: int) -> None:
        self._node = step(self._arrays, self._node, byte)
        self._depth += 1


# --- fitting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Level:
    """The contexts of one length.

    Args:
        contexts: their bytes as sorted numbers.
        followed: context * 256 + byte, sorted, and how often that byte followed.
        kinds: (contexts,): how many different bytes followed each.
    """

    contexts: np.ndarray[Any, np.dtype[np.uint64]]
    followed: np.ndarray[Any, np.dtype[np.uint64]]
    counts: np.ndarray[Any, np.dtype[np.int64]]
    kinds: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def of(cls, grams: Grams, length: int, least: int) -> Self:
        followed, counts = grams.prefixes(length + 1)
        if not len(followed):
            return cls(followed, followed, counts, counts)
        contexts, first, kinds = np.unique(followed >> np.uint64(8), return_index=True, return_counts=True)
        often = (np.add.reduceat(counts, first) >= least) | (length == 0)
        kept = np.repeat(often, kinds)
        return cls(contexts[often], followed[kept], counts[kept], kinds[often])

    @property
    def totals(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(contexts,): how often each occurred."""
        return np.add.reduceat(self.counts, np.cumsum(self.kinds) - self.kinds) if len(self.kinds) else self.kinds


def _backed_off(grams: Grams, order: int, least: int) -> dict[str, Any]:
    """The automaton's arrays, shorter contexts first."""
    levels = [_Level.of(grams, length, least) for length in range(order + 1)]
    if not len(levels[0].contexts):  # nothing was counted: the empty context, after which nothing was seen
        return _arrays([np.zeros(1)], [np.full(1, 2**31 - 1)], [np.zeros(1)], [], [], [])
    starts = np.cumsum([0] + [len(level.contexts) for level in levels])  # the number of each level's first node
    if starts[-1] > MAX_TOTAL or sum(len(level.counts) for level in levels) > MAX_TOTAL:
        raise ConfigError(f"{starts[-1]:,} contexts are too many: choose a lower order or a larger `least`")
    columns: list[list[Any]] = [[] for _ in range(6)]
    for length, level in enumerate(levels):
        divisors = level.totals + level.kinds
        found = (
            _nodes(levels, starts, level.contexts, length - 1),
            (level.kinds << KEEP_BITS) // divisors - (level.kinds == divisors),
            level.kinds,
            (level.followed & np.uint64(0xFF)),
            (level.counts << FIXED_BITS) // np.repeat(divisors, level.kinds),
            _nodes(levels, starts, level.followed, min(length + 1, order)),
        )
        for column, values in zip(columns, found, strict=True):
            column.append(values)
    return _arrays(*columns)


def _arrays(*columns: list[Any]) -> dict[str, Any]:
    """Columns of all levels, the third being numbers of entries, as the automaton's arrays."""
    joined = [np.concatenate([np.zeros(0, np.int64), *column]) for column in columns]
    joined[2] = np.concatenate([[0], np.cumsum(joined[2])])
    return {name: values.astype(kind) for (name, kind), values in zip(ARRAYS.items(), joined, strict=True)}


def _nodes(levels: list[_Level], starts: Any, strings: Any, length: int) -> Any:
    """The node of the longest context that each string ends with, among those of at most `length` bytes."""
    nodes = np.zeros(len(strings), np.int64)
    rest = np.arange(len(strings))
    for size in range(length, 0, -1):
        contexts = levels[size].contexts
        if not len(contexts):
            continue
        ends = strings[rest] & np.uint64((1 << (8 * size)) - 1)
        places = np.minimum(np.searchsorted(contexts, ends), len(contexts) - 1)
        found = contexts[places] == ends
        nodes[rest[found]] = starts[size] + places[found]
        rest = rest[~found]
    return nodes


# --- kernels ---------------------------------------------------------------------------------------------------------


@kernel
def step(model: Any, node: Any, byte: Any) -> Any:
    """The node of the longest context after one more byte; `model` is `CountModel.arrays`."""
    link, _, first, symbols, _, targets, _, _ = model
    here = np.int64(node)
    while True:
        low, end = first[here], first[here + 1]
        high = end
        while low < high:
            middle = (low + high) >> 1
            if symbols[middle] < byte:
                low = middle + 1
            else:
                high = middle
        if low < end and symbols[low] == byte:
            return np.int64(targets[low])
        if here == 0:
            return here
        here = np.int64(link[here])


@kernel
def fill_weights(model: Any, node: Any, depth: Any, row: Any) -> None:
    """Writes the weights at a node, at some depth of a window, into row: (256,), int64."""
    link, keep, first, symbols, amounts, _, shift, longest = model
    if depth >= longest:
        row[:] = 1
        return
    path = np.empty(MAX_ORDER + 1, np.int64)
    path[0], size = node, 1
    while path[size - 1] > 0:
        path[size] = link[path[size - 1]]
        size += 1
    row[:] = 1 << (FIXED_BITS - 8)
    for index in range(size - 1, -1, -1):
        here = path[index]
        share = np.int64(keep[here])
        for byte in range(BYTES):
            row[byte] = (row[byte] * share) >> KEEP_BITS
        for entry in range(first[here], first[here + 1]):
            row[symbols[entry]] += amounts[entry]
    for byte in range(BYTES):
        row[byte] = max(1, row[byte] >> shift)


@kernel
def _weights_after(model: Any, contexts: Any) -> Any:
    rows = np.empty((contexts.shape[0], BYTES), np.int64)
    for index in range(contexts.shape[0]):
        node = np.int64(0)
        for place in range(contexts.shape[1]):
            node = step(model, node, contexts[index, place])
        fill_weights(model, node, contexts.shape[1], rows[index])
    return rows
