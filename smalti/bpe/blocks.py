"""Encoding of long input: block by block in little memory, or in parallel; the tokens are those of the whole.

    block ──encode──► tokens | border that is certain | rest ──► goes in front of the next block

A border is certain if the token before it fits what follows, however the text may go on. The last border that the whole
encoding has before the block's end lies within the length of the longest token; so it is enough to try every one of
these ends, and what each makes of the symbols behind the border in question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from smalti.bpe.encoder import Encoder

BLOCK = 1 << 22  # symbols of a block
SEGMENT = 1 << 19  # symbols that a thread gets at least
OVERLAP = 1 << 12  # of which it shares so many with the next


class BlockEncoder:
    """Encodes symbols that come bit by bit.

    Args:
        encoder: of the vocabulary.
        block: how many symbols are waited for before they are encoded.
        threads: how many of them encode a block.

    Attributes:
        position: how many symbols the tokens given so far stand for. An encoder that begins there gives the rest.
    """

    def __init__(self, encoder: Encoder, *, block: int = BLOCK, threads: int = 1) -> None:
        self._encoder, self._block, self._threads = encoder, block, threads
        self._waiting: list[Any] = []
        self._size = 0
        self._needed = block
        self.position = 0

    def push(self, symbols: Any) -> Any:
        """Takes the next symbols; gives the tokens that are certain by now."""
        self._waiting.append(symbols)
        self._size += len(symbols)
        if self._size < self._needed:
            return np.zeros(0, np.int32)
        text = np.concatenate(self._waiting)
        tokens = self._encode(text)
        count, border = certain(self._encoder, text, tokens)
        self._waiting, self._size = [text[border:]], len(text) - border
        self._needed = max(self._block, 2 * self._size)  # a text without certain borders must not be encoded too often
        self.position += border
        return tokens[:count]

    def finish(self) -> Any:
        """Gives the remaining tokens."""
        text = np.concatenate(self._waiting) if self._waiting else np.zeros(0, np.uint8)
        self._waiting, self.position = [], self.position + len(text)
        return self._encode(text)

    def _encode(self, text: Any) -> Any:
        return encode_parallel(self._encoder, text, self._threads)


def certain(encoder: Encoder, text: Any, tokens: Any) -> tuple[int, int]:
    """How many tokens stay whatever follows the text, and where the last of them ends.

    Args:
        encoder: of the vocabulary.
        text: symbols.
        tokens: their encoding.
    """
    borders = np.cumsum(encoder.lengths[tokens])
    distance = 4 * encoder.longest_token
    while len(tokens) and distance < len(text):
        first = int(np.searchsorted(borders, len(text) - distance))
        for count in range(first, max(0, first - 4), -1):
            border = int(borders[count - 1])
            ends = range(max(border + 1, len(text) - encoder.longest_token + 1), len(text) + 1)
            if all(encoder.fits(int(tokens[count - 1]), int(encoder.encode(text[border:end])[0])) for end in ends):
                return count, border
        distance *= 4
    return 0, 0


def encode_parallel(encoder: Encoder, text: Any, threads: int, *, least: int = SEGMENT) -> Any:
    """The tokens of a text, encoded in segments by several threads.

    Args:
        encoder: of the vocabulary.
        text: symbols.
        threads: how many.
        least: symbols that a segment has at least.
    """
    count = min(threads, len(text) // least)
    if count < 2:
        return encoder.encode(text)
    starts = [len(text) * index // count for index in range(count)]
    ends = [min(len(text), start + OVERLAP) for start in starts[1:]] + [len(text)]
    with ThreadPoolExecutor(count) as pool:
        encoded = list(pool.map(lambda span: encoder.encode(text[span[0] : span[1]]), zip(starts, ends, strict=True)))
    return np.concatenate(list(_joined(encoder, text, starts, encoded)))


def _joined(encoder: Encoder, text: Any, starts: Sequence[int], encoded: Sequence[Any]) -> Iterator[Any]:
    """The tokens of overlapping segments, each cut where it and the next have a border in common that fits."""
    begin, tokens = starts[0], encoded[0]
    for start, following in zip(starts[1:], encoded[1:], strict=True):
        place = _common(encoder, begin, tokens, start, following)
        if place is None:  # a run of one symbol, perhaps: the segments are encoded as one
            rest = encoder.encode(text[begin : start + int(encoder.lengths[following].sum())])
            tokens = rest
            continue
        own, other = place
        yield tokens[:own]
        begin, tokens = start + int(encoder.lengths[following[:other]].sum()), following[other:]
    yield tokens


def _common(encoder: Encoder, begin: int, tokens: Any, start: int, following: Any) -> tuple[int, int] | None:
    """After how many tokens of a segment, and of the next one, they may be joined."""
    tail = min(len(tokens), OVERLAP)  # every token is a symbol at least
    ends = begin + int(encoder.lengths[tokens[:-tail]].sum()) + np.cumsum(encoder.lengths[tokens[-tail:]])
    borders = start + np.concatenate([[0], np.cumsum(encoder.lengths[following[:OVERLAP]])])
    for border in np.intersect1d(ends, borders):
        own = len(tokens) - tail + int(np.searchsorted(ends, border)) + 1
        other = int(np.searchsorted(borders, border))
        if other == len(following) or encoder.fits(int(tokens[own - 1]), int(following[other])):
            return own, other
    return None
