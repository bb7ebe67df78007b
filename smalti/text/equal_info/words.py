"""Words of b bits as tokens of v bits, first bits first."""

from __future__ import annotations

import numpy as np

from smalti.errors import InputError
from smalti.text.base import IdArray
from smalti.text.equal_info.model import WordArray

MAX_NATIVE = 62  # bits of a word that machine integers hold with room for sums


def word_type(bits: int) -> type[np.unsignedinteger] | type[object]:
    """What words of so many bits are held in: the smallest unsigned type, or Python integers."""
    if bits > MAX_NATIVE:
        return object
    types: tuple[type[np.unsignedinteger], ...] = (np.uint8, np.uint16, np.uint32, np.uint64)
    return next(dtype for dtype in types if bits <= np.iinfo(dtype).bits)


def split_words(words: WordArray, bits: int, token_bits: int) -> IdArray:
    """(windows,) words to (windows * bits / token_bits,) tokens, in the smallest unsigned type."""
    small = word_type(token_bits)
    if bits == token_bits:
        return words.astype(small)
    wide = object if words.dtype == object else np.uint64
    shifts = np.arange(bits - token_bits, -1, -token_bits).astype(wide)
    tokens = (words.astype(wide)[:, None] >> shifts) & ((1 << token_bits) - 1)
    return tokens.reshape(-1).astype(small)


def join_words(tokens: IdArray, bits: int, token_bits: int) -> WordArray:
    """The inverse of `split_words`.

    Raises:
        InputError: if the tokens are not those of whole words.
    """
    per_word = bits // token_bits
    if len(tokens) % per_word:
        raise InputError(f"{len(tokens)} tokens are no whole number of windows of {per_word} tokens")
    kind = word_type(bits)
    if per_word == 1:
        return tokens.astype(kind)
    wide = object if kind is object else np.uint64
    shifts = np.arange(bits - token_bits, -1, -token_bits).astype(wide)
    words = (tokens.astype(wide).reshape(-1, per_word) << shifts).sum(1, dtype=wide)
    return words.astype(kind)
