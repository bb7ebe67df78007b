"""Different pieces of data and how often each comes, by hashing; text has few, of which most are short.

A piece of up to seven bytes is a number together with its size: its key, which nothing else has. Longer ones have a
hash, and are compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from smalti.bpe.characters import Bytes
from smalti.bpe.compiled import inlined, kernel
from smalti.bpe.corpus import Pieces
from smalti.bpe.hashing import mix

SHORT = 7  # bytes of a piece that are a number
TOP = 56  # the bits above them
KEY, START, SIZE, COUNT = 0, 1, 2, 3  # columns of the table, whose rows without a count are free


def distinct(data: Bytes, ends: Any) -> tuple[Pieces, Any]:
    """Different pieces of data in the order of their first appearance, and how often each appears.

    Args:
        data: uint8.
        ends: (pieces,): where each ends.
    """
    kinds = _kinds(data, ends)
    kinds = kinds[np.lexsort((kinds[:, SIZE], kinds[:, START]))]
    sizes = kinds[:, SIZE]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    places = np.repeat(kinds[:, START] - offsets[:-1], sizes) + np.arange(offsets[-1])
    return Pieces(data[places], offsets), kinds[:, COUNT]


@kernel
def _kinds(data: Any, ends: Any) -> Any:
    """(kinds, 4): the rows of the table that are taken. The search stands in the loop, because numba counts references
    to an array that may be replaced whenever it is handed on."""
    table = np.zeros((1 << 16, 4), np.int64)
    mask, kinds, start = np.int64(len(table) - 1), 0, np.int64(0)
    for piece in range(ends.size):
        size = ends[piece] - start
        key = _key(data, start, size)
        row = mix(key) & mask
        while table[row, COUNT] > 0:
            if table[row, KEY] == key and (
                size <= SHORT or _same(data, start, size, table[row, START], table[row, SIZE])
            ):
                break
            row = (row + 1) & mask
        if table[row, COUNT] == 0:
            table[row, KEY], table[row, START], table[row, SIZE] = key, start, size
            kinds += 1
        table[row, COUNT] += 1
        if 2 * kinds > len(table):
            table = _doubled(table)
            mask = np.int64(len(table) - 1)
        start += size
    return table[table[:, COUNT] > 0]


@inlined
def _key(data: Any, start: Any, size: Any) -> Any:
    """The number of a short piece, or a hash whose top byte no short piece has."""
    if size > SHORT:
        total = np.int64(0)
        for place in range(start, start + size):
            total = (total ^ np.int64(data[place])) * 0x100000001B3
        return total | (np.int64(SHORT + 1) << TOP)
    number, here = np.uint64(0), np.uint64(start)
    if start + 8 <= data.size:  # one load and a mask, where a loop over the bytes would be foretold wrongly
        for byte in range(8):
            number |= np.uint64(data[here + np.uint64(byte)]) << np.uint64(8 * byte)
        return np.int64(number & _ones(size) | (np.uint64(size) << np.uint64(TOP)))
    for byte in range(size):
        number |= np.uint64(data[start + byte]) << np.uint64(8 * byte)
    return np.int64(number | (np.uint64(size) << np.uint64(TOP)))


@inlined
def _ones(size: Any) -> Any:
    """As many bytes of one bits."""
    return (np.uint64(1) << np.uint64(8 * size)) - np.uint64(1)


@inlined
def _same(data: Any, start: Any, size: Any, other: Any, other_size: Any) -> bool:
    """Whether two pieces are equal."""
    same = np.int64(0)
    while same < size and size == other_size and data[start + same] == data[other + same]:
        same += 1
    return same == size


@kernel
def _doubled(table: Any) -> Any:
    """A table of twice the size. No two kinds are the same, so nothing is compared."""
    larger = np.zeros((2 * len(table), 4), np.int64)
    for old in range(len(table)):
        if table[old, COUNT] > 0:
            row = mix(table[old, KEY]) & (len(larger) - 1)
            while larger[row, COUNT] > 0:
                row = (row + 1) & (len(larger) - 1)
            larger[row] = table[old]
    return larger
