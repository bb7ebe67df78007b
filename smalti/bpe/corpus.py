"""Symbols that a trainer merges in: segments one after another, between borders, merged in place.

    border a b c border d e border ──merge (a,b)──► border X · c border d e border

A token that covers several places stands in the first; the second and the last hold minus their number, so that the
next and the previous token are one look away on both sides. `squeeze` takes such places out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from smalti.bpe.compiled import kernel
from smalti.errors import InputError

BORDER = -1
MAX_PLACES = 2**32 - 1


@dataclass(frozen=True, eq=False)
class Pieces:
    """Sequences of symbols one after another.

    Args:
        data: of all, one axis.
        offsets: (pieces + 1,), int64: where each begins.
    """

    data: Any
    offsets: Any

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def views(self) -> list[Any]:
        """The pieces, without copies."""
        return [self.data[start:stop] for start, stop in pairwise(self.offsets.tolist())]

    @classmethod
    def joined(cls, items: Iterable[Any]) -> Pieces:
        """All pieces of some `Pieces`, and of arrays, each of which is one."""
        parts = [each if isinstance(each, Pieces) else np.asarray(each) for each in items]
        data = [each.data if isinstance(each, Pieces) else each for each in parts]
        sizes = [np.diff(each.offsets) if isinstance(each, Pieces) else np.array([len(each)]) for each in parts]
        none = np.zeros(0, np.int64)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([none, *sizes]))])
        return cls(np.concatenate(data) if data else none, offsets)


@dataclass(eq=False)
class Corpus:
    """Segments as one array.

    Args:
        tokens: int32: ids, borders (also first and last), and numbers below -1 inside of merged tokens.
        owners: uint32: the segment of each place; None where every segment counts once.
        weights: int64: how often each segment counts; None likewise.
    """

    tokens: Any
    owners: Any = None
    weights: Any = None

    @classmethod
    def of(cls, pieces: Pieces, base: Any, weights: Any = None) -> Corpus:
        """Lays out segments.

        Args:
            pieces: the segments, of symbols.
            base: symbol -> token.
            weights: (segments,): how often each counts; by default once.

        Raises:
            InputError: if a symbol has no token, or there are too many.
        """
        symbols, offsets = pieces.data, pieces.offsets
        count = len(offsets) - 1
        if len(symbols) + count >= MAX_PLACES:
            raise InputError(f"{len(symbols)} symbols are more than a trainer takes: give it a part of them")
        if len(symbols) and (int(symbols.max()) >= len(base) or int(symbols.min()) < 0 or (base < 0).any()):
            _refuse_unknown(symbols, base)
        tokens = np.empty(len(symbols) + count + 1, np.int32)
        tokens[0] = BORDER
        _lay_out(symbols, offsets, base, tokens)
        if weights is None or (weights == 1).all():
            return cls(tokens)
        owners = np.repeat(np.arange(count, dtype=np.uint32), np.diff(offsets) + 1)
        return cls(tokens, np.concatenate([owners[:1], owners]), weights)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in (self.tokens, self.owners, self.weights) if each is not None)

    def squeeze(self) -> None:
        """Takes out the places inside of merged tokens; every token is one place again."""
        weighted = self.owners is not None
        owners = self.owners if weighted else np.zeros(0, np.uint32)
        size = _squeeze(self.tokens, owners, weighted)
        self.tokens = self.tokens[:size]
        if weighted:
            self.owners = self.owners[:size]


def _refuse_unknown(symbols: Any, base: Any) -> None:
    """Raises InputError if a symbol has no token."""
    known = (symbols >= 0) & (symbols < len(base))
    known[known] = base[symbols[known]] >= 0
    unknown = np.flatnonzero(~known)
    if len(unknown):
        raise InputError(f"symbol {int(symbols[unknown[0]])} has no token")


@kernel
def _lay_out(symbols: Any, offsets: Any, base: Any, tokens: Any) -> None:
    """Writes the tokens of all segments, and a border behind each."""
    place = 1
    for segment in range(offsets.size - 1):
        for index in range(offsets[segment], offsets[segment + 1]):
            tokens[place] = base[symbols[index]]
            place += 1
        tokens[place] = BORDER
        place += 1


@kernel
def _squeeze(tokens: Any, owners: Any, weighted: bool) -> int:
    kept, place = 0, 0
    while place < tokens.size:
        span = 1
        if place + 1 < tokens.size and tokens[place + 1] < BORDER and tokens[place] >= 0:
            span = -tokens[place + 1]
        tokens[kept] = tokens[place]
        if weighted:
            owners[kept] = owners[place]
        kept += 1
        place += span
    return kept
