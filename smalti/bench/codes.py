"""What a tokenizer does with its codebooks: usage, entropy, perplexity, per slot and over whole positions.

    codes (..., slots) ──► how often each value came, per slot and per tuple of all slots ──► CodeReport

Usage depends on how many codes were seen: N codes of a uniform source reach 1-(1-1/V)^N of V values. So `count` and
`expected_usage` always stand beside it. The joint entropy of several slots is an estimate from below for the same
reason; the sum of the slots' entropies bounds it from above.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1, log1p, log2, prod
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from smalti.errors import InputError
from smalti.metric import Metric

DENSE_LIMIT = 2**24  # vocabularies up to this have a counter per value; larger ones one per value that came
ACTIVE_SHARE = 0.01  # a code is active if it comes more often than this share of what a uniform source would give it

Values = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class SlotStatistics:
    """How one alphabet (a slot, or all slots together) was used.

    Args:
        vocab: number of values that could come.
        count: N, codes seen.
        used: how many different values came.
        usage: used / vocab.
        expected_usage: usage of a uniform source after N codes.
        active: share of values that came more often than 1 % of N / vocab.
        entropy: -sum p log2 p, bits.
        perplexity: 2^entropy.
        efficiency: entropy / log2 vocab; 1 for a single-valued alphabet.
    """

    vocab: int
    count: int
    used: int
    usage: float
    expected_usage: float
    active: float
    entropy: float
    perplexity: float
    efficiency: float


@dataclass(frozen=True)
class CodeReport:
    """Statistics of every slot, and of positions as a whole.

    Args:
        slots: one per slot.
        joint: of tuples over all slots; None if it was not gathered. With one slot it is that slot's.
        bits_nominal: sum of log2 V over the slots, what a position costs without entropy coding.
        bits_entropy: sum of the slots' entropies, an upper bound of what an ideal coder of single positions needs.
    """

    slots: tuple[SlotStatistics, ...]
    joint: SlotStatistics | None
    bits_nominal: float
    bits_entropy: float


class CodeStatistics(Metric):
    """Counts codes over a data set.

    Args:
        vocab: number of values of each slot.
        joint: count tuples over all slots too; it needs memory for each different tuple.
    """

    def __init__(self, vocab: Sequence[int], joint: bool = True) -> None:
        if not vocab or any(size < 1 for size in vocab):
            raise InputError(f"every slot needs a vocabulary of 1 or more, got {tuple(vocab)}")
        self.vocab = tuple(int(size) for size in vocab)
        self._slots = [_counter(size) for size in self.vocab]
        self._joint = _Tuples(self.vocab) if joint and len(self.vocab) > 1 else None
        self._with_joint = joint

    @property
    def protocol(self) -> str:
        return f"codes/{'x'.join(map(str, self.vocab))}/{'joint' if self._with_joint else 'slots'}"

    def update(self, codes: Tensor, mask: Tensor | None = None) -> None:
        """Gathers codes.

        Args:
            codes: (..., slots), int64.
            mask: (...), bool, True where a position is real (Tokens with lengths: `stream.rows()`, `stream.valid()`).

        Raises:
            InputError: if the number of slots is another, or a code is outside its vocabulary.
        """
        if codes.shape[-1:] != (len(self.vocab),) or codes.is_floating_point():
            raise InputError(
                f"codes must be whole numbers (..., {len(self.vocab)}), got {codes.dtype} {tuple(codes.shape)}"
            )
        rows = codes.reshape(-1, len(self.vocab)) if mask is None else codes[mask]
        array = rows.cpu().numpy().astype(np.int64)
        if not len(array):
            return
        outside = (array < 0) | (array > np.array([size - 1 for size in self.vocab], dtype=np.int64))
        if outside.any():
            row, slot = np.argwhere(outside)[0]
            raise InputError(f"code {array[row, slot]} of slot {slot} is outside 0..{self.vocab[slot] - 1}")
        for slot, counter in enumerate(self._slots):
            counter.add(array[:, slot])
        if self._joint is not None:
            self._joint.add_rows(array)

    def _take(self, other: Self) -> None:
        for mine, theirs in zip(self._slots, other._slots, strict=True):
            mine.merge(theirs)
        if self._joint is not None and other._joint is not None:
            self._joint.merge(other._joint)

    def compute(self) -> CodeReport:
        slots = tuple(
            _statistics(counter.counts(), size) for counter, size in zip(self._slots, self.vocab, strict=True)
        )
        joint = slots[0] if self._with_joint and len(slots) == 1 else None
        if self._joint is not None:
            joint = _statistics(self._joint.counts(), prod(self.vocab))
        return CodeReport(
            slots=slots,
            joint=joint,
            bits_nominal=sum(log2(size) for size in self.vocab),
            bits_entropy=sum(slot.entropy for slot in slots),
        )


def expected_usage(vocab: int, count: int) -> float:
    """Share of `vocab` values that `count` draws of a uniform source reach: 1 - (1 - 1/V)^N."""
    if vocab == 1:
        return float(count > 0)
    return -expm1(count * log1p(-1 / vocab))


def agreement(first: Tensor, second: Tensor) -> float:
    """Share of equal codes, as when an image is encoded, decoded and encoded again, or recompressed in between."""
    if first.shape != second.shape or not first.numel():
        raise InputError(f"codes to compare must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    return float((first == second).to(torch.float64).mean())


# --- counters --------------------------------------------------------------------------------------------------------


class _Counter(ABC):
    """How often values of one slot came."""

    @abstractmethod
    def add(self, values: Values) -> None:
        """Counts a batch of values."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Adds the counts of another counter of the same kind."""

    @abstractmethod
    def counts(self) -> Values:
        """The counts above 0, in no promised order."""


class _Dense(_Counter):
    """A counter per value of a vocabulary."""

    def __init__(self, size: int) -> None:
        self._counts = np.zeros(size, dtype=np.int64)

    def add(self, values: Values) -> None:
        self._counts += np.bincount(values, minlength=len(self._counts))

    def merge(self, other: Any) -> None:
        self._counts += other._counts

    def counts(self) -> Values:
        return self._counts[self._counts > 0]


class _Sparse(_Counter):
    """A counter per value that came, kept sorted; for vocabularies that no array can hold."""

    def __init__(self) -> None:
        self._values = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros(0, dtype=np.int64)

    def add(self, values: Values) -> None:
        self._join(*np.unique(values, return_counts=True))

    def merge(self, other: Any) -> None:
        self._join(other._values, other._counts)

    def _join(self, values: Values, counts: Values) -> None:
        self._values, place = np.unique(np.concatenate([self._values, values]), return_inverse=True)
        together = np.zeros(len(self._values), dtype=np.int64)
        np.add.at(together, place, np.concatenate([self._counts, counts]))
        self._counts = together

    def counts(self) -> Values:
        return self._counts


class _Tuples:
    """A counter per tuple over all slots that came.

    Tuples are counted as one number in mixed radix where that fits 63 bits, else as bytes.
    """

    def __init__(self, vocab: tuple[int, ...]) -> None:
        self._radix = np.array([prod(vocab[slot + 1 :]) for slot in range(len(vocab))], dtype=object)
        self._fits = prod(vocab) < 2**63
        self._numbers = _Sparse()
        self._bytes: dict[bytes, int] = {}

    def add_rows(self, rows: Values) -> None:
        if self._fits:
            self._numbers.add(rows @ self._radix.astype(np.int64))
            return
        unique, counts = np.unique(rows, axis=0, return_counts=True)
        for row, count in zip(unique, counts.tolist(), strict=True):
            key = row.tobytes()
            self._bytes[key] = self._bytes.get(key, 0) + count

    def merge(self, other: Self) -> None:
        self._numbers.merge(other._numbers)
        for key, count in other._bytes.items():
            self._bytes[key] = self._bytes.get(key, 0) + count

    def counts(self) -> Values:
        return self._numbers.counts() if self._fits else np.fromiter(self._bytes.values(), dtype=np.int64)


def _counter(size: int) -> _Counter:
    return _Dense(size) if size <= DENSE_LIMIT else _Sparse()


def _statistics(counts: Values, vocab: int) -> SlotStatistics:
    total = int(counts.sum())
    if not total:
        raise InputError("no codes were gathered")
    shares = counts / total
    entropy = max(0.0, float(-(shares * np.log2(shares)).sum()))
    return SlotStatistics(
        vocab=vocab,
        count=total,
        used=len(counts),
        usage=len(counts) / vocab,
        expected_usage=expected_usage(vocab, total),
        active=int((counts > ACTIVE_SHARE * (total / vocab)).sum()) / vocab,
        entropy=entropy,
        perplexity=2.0**entropy,
        efficiency=entropy / log2(vocab) if vocab > 1 else 1.0,
    )
