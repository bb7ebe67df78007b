"""Symbols that a trainer merges in: segments one after another, between borders, merged in place.

    border a b c border d e border ──merge (a,b)──► border X · c border d e border

A token that covers several places stands in the first; the second and the last hold minus their number, so that the
next and the previous token are one look away on both sides. `squeezed` takes such places out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from smalti.bpe.compiled import kernel
from smalti.errors import InputError

BORDER = -1
MAX_PLACES = 2**32 - 1


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
    def of(cls, segments: Iterable[Any], base: Any, weights: Iterable[int] | None = None) -> Corpus:
        """Joins segments.

        Args:
            segments: integer arrays of symbols.
            base: symbol -> token.
            weights: how often each counts; by default once.

        Raises:
            InputError: if a symbol has no token, or there are too many.
        """
        arrays = [np.asarray(segment) for segment in segments]
        size = sum(len(each) for each in arrays) + len(arrays) + 1
        if size > MAX_PLACES:
            raise InputError(f"{size} symbols are more than a trainer takes ({MAX_PLACES}): give it a part of them")
        tokens = np.empty(size, np.int32)
        tokens[0] = BORDER
        place = 1
        for each in arrays:
            tokens[place : place + len(each)] = base[each]
            if len(each) and tokens[place : place + len(each)].min() < 0:
                raise InputError(f"symbol {int(each[np.argmin(base[each])])} has no token")
            place += len(each)
            tokens[place] = BORDER
            place += 1
        counts = None if weights is None else np.fromiter(weights, np.int64)
        if counts is None or (counts == 1).all():
            return cls(tokens)
        owners = np.repeat(np.arange(len(arrays), dtype=np.uint32), [len(each) + 1 for each in arrays])
        return cls(tokens, np.concatenate([owners[:1], owners]), counts)

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
