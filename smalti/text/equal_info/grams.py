"""Counting every substring of up to seven bytes, by sorting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from smalti.text.base import Sample, as_bytes
from smalti.text.equal_info.model import ByteArray

KeyArray = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]
CountArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

MAX_ORDER = 6  # a key holds seven bytes, and in its last one how many of them are real
BLOCK = 1 << 22  # positions that are sorted at once


@dataclass(frozen=True)
class Grams:
    """The substrings that begin at every position, with their counts.

    Args:
        keys: sorted, all different: the bytes from the most significant end, zeros, and in the lowest byte how many
            are real (fewer than order + 1 at the end of a sample).
        counts: how often each occurs.
    """

    keys: KeyArray
    counts: CountArray

    @classmethod
    def of(cls, samples: Iterable[Sample], order: int) -> Grams:
        """The grams of order + 1 bytes. No gram crosses the border between samples."""
        parts: list[Grams] = []
        for keys in _keys(samples, order + 1):
            parts.append(cls._counted(np.sort(keys)))
            while len(parts) > 1 and 2 * len(parts[-1].keys) > len(parts[-2].keys):
                parts.append(parts.pop()._with(parts.pop()))
        while len(parts) > 1:
            parts.append(parts.pop()._with(parts.pop()))
        return parts[0] if parts else cls(np.zeros(0, np.uint64), np.zeros(0, np.int64))

    def prefixes(self, length: int) -> tuple[KeyArray, CountArray]:
        """The substrings of so many bytes as numbers, most significant byte first, sorted, and their counts."""
        real = (self.keys & np.uint64(0xFF)) >= length
        return _summed(self.keys[real] >> np.uint64(64 - 8 * length), self.counts[real])

    @classmethod
    def _counted(cls, keys: KeyArray) -> Grams:
        return cls(*_summed(keys, np.ones(len(keys), np.int64)))

    def _with(self, other: Grams) -> Grams:
        keys = np.concatenate([self.keys, other.keys])
        order = np.argsort(keys, kind="stable")
        return Grams(*_summed(keys[order], np.concatenate([self.counts, other.counts])[order]))


def _summed(keys: KeyArray, counts: CountArray) -> tuple[KeyArray, CountArray]:
    """Equal neighbours of a sorted row as one, their counts added."""
    if not len(keys):
        return keys, counts
    firsts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[firsts], np.add.reduceat(counts, firsts)


def _keys(samples: Iterable[Sample], length: int) -> Iterator[KeyArray]:
    """Keys of blocks of positions, in the order of the samples."""
    for data, real in _blocks(samples, length):
        keys = np.minimum(real, length).astype(np.uint64)
        for place in range(length):
            byte = np.where(real > place, data[place : place + len(real)], 0).astype(np.uint64)
            keys |= byte << np.uint64(56 - 8 * place)
        yield keys[real > 0]


def _blocks(samples: Iterable[Sample], length: int) -> Iterator[tuple[ByteArray, CountArray]]:
    """Bytes, followed by `length` zeros, and how many bytes of its sample each position has before it (0: skip it)."""
    pieces: list[ByteArray] = []
    reals: list[CountArray] = []
    size = 0
    for sample in samples:
        data = np.frombuffer(as_bytes(sample), np.uint8)
        for start in range(0, len(data), BLOCK):
            piece = data[start : start + BLOCK + length]
            real = len(data) - start - np.arange(len(piece), dtype=np.int64)
            real[BLOCK:] = 0  # these positions begin the next piece
            pieces.append(piece)
            reals.append(real)
            size += len(piece)
            if size >= BLOCK:
                yield _joined(pieces, length), np.concatenate(reals)
                pieces, reals, size = [], [], 0
    if pieces:
        yield _joined(pieces, length), np.concatenate(reals)


def _joined(pieces: list[ByteArray], length: int) -> Any:
    return np.concatenate([*pieces, np.zeros(length, np.uint8)])
