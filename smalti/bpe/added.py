"""Added tokens of a tokenizer.json, found in text before anything else: the leftmost, of those the longest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from smalti.bpe.characters import Bytes
from smalti.bpe.compiled import kernel
from smalti.bpe.splitters import white_space
from smalti.bpe.tokenizer_json import Added
from smalti.bpe.trie import longest, trie_of


class Search:
    """Finds added tokens as `tokenizers` does.

    Args:
        added: the tokens, none of which must be a single word.
        special: whether special ones count; if not, text that spells one is text.

    Attributes:
        longest: bytes of the longest of them.
        strips: whether any takes white space beside it along.
    """

    def __init__(self, added: Sequence[Added], special: bool) -> None:
        active = [each for each in added if special or not each.special]
        self._rounds = []
        for normalized in (False, True):
            tokens = [each for each in active if each.normalized == normalized and each.content]
            if tokens:
                self._rounds.append((tokens, *_trie_of([each.content.encode() for each in tokens])))
        self.longest = max((len(each.content.encode()) for each in active), default=1)
        self.strips = any(each.lstrip or each.rstrip for each in active)

    def find(self, data: Bytes) -> Any:
        """(found, 3), int64: where each begins and ends, and its id, in the order of places."""
        found = np.zeros((0, 3), np.int64)
        for tokens, trie, lengths in self._rounds:
            begin, new = 0, []
            for start, stop in [*found[:, :2].tolist(), [len(data), len(data)]]:
                new += self._within(data, begin, start, tokens, _find(data[begin:start], trie, lengths))
                begin = stop
            found = np.concatenate([found, np.array(new, np.int64).reshape(-1, 3)])
            found = found[np.argsort(found[:, 0], kind="stable")]
        return found

    def _within(self, data: Bytes, begin: int, end: int, tokens: Sequence[Added], places: Any) -> list[list[int]]:
        """What counts of the strings found between two places, with the white space that tokens take along."""
        found, done = [], begin
        for start, number in places.tolist():
            token = tokens[number]
            start += begin
            stop = start + len(token.content.encode())
            if token.lstrip:
                start = max(done, start - _spaces(data[begin:start], backwards=True))
            if token.rstrip:
                stop += _spaces(data[stop:end], backwards=False)
            found.append([start, stop, token.id])
            done = stop
        return found


def _spaces(data: Bytes, *, backwards: bool) -> int:
    """How many bytes of white space data begins with, or ends with."""
    size = 64
    while True:
        other = np.flatnonzero(~white_space(data[-size:] if backwards else data[:size], unicode=True))
        if len(other) or size >= len(data):
            break
        size *= 8
    if not len(other):
        return len(data)
    return min(size, len(data)) - 1 - int(other[-1]) if backwards else int(other[0])


def _trie_of(strings: Sequence[bytes]) -> tuple[Any, Any]:
    lengths = np.array([len(each) for each in strings], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    symbols = np.frombuffer(b"".join(strings), np.uint8).astype(np.int32)
    return trie_of(symbols, offsets, np.arange(len(strings)), 256), lengths


@kernel
def _find(data: Any, trie: Any, lengths: Any) -> Any:
    """(found, 2): place and number of the strings of a trie, leftmost and longest first, none overlapping."""
    out = np.empty((16, 2), np.int64)
    count, place = 0, 0
    while place < data.size:
        number = longest(trie, data, place, data.size)
        if number < 0:
            place += 1
            continue
        if count == len(out):
            more = np.empty((2 * len(out), 2), np.int64)
            more[:count] = out
            out = more
        out[count, 0], out[count, 1] = place, number
        place += lengths[number]
        count += 1
    return out[:count]
