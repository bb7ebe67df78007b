"""Numba kernels of the encoder and the decoder: bytes to symbols, symbols to tokens, tokens to bytes.

Symbols are the tokens of single characters. From `size` on they are the token `symbol - size`, which no rule may join.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from smalti.bpe.compiled import kernel
from smalti.bpe.ranks import merge_long, merge_short

UNKNOWN, ESCAPE, BYTE = 0, 1, 2  # what becomes of characters that have no token
REPLACEMENT = 0xFFFD
LONE = 0xDC00  # byte b that is no UTF-8 is escaped as if it were the character LONE + b
SHORT = 32  # symbols up to which looking at all pairs again is quicker than a heap


@kernel
def read_character(data: Any, place: int, stop: int) -> tuple[int, int]:
    """The character at a place of data[:stop], and how many bytes it has.

    Returns:
        (code point, bytes); (-1, bytes) for bytes that can't begin or go on; (-2, bytes) where the data ends inside a
        character that is legal so far. The bytes of an illegal one are its longest legal beginning, at least one.
    """
    first = int(np.int64(data[place]))
    if first < 0x80:
        return first, 1
    if first < 0xC2 or first > 0xF4:
        return -1, 1
    more = 1 if first < 0xE0 else 2 if first < 0xF0 else 3
    code = first & (0x3F >> more)
    for step in range(1, more + 1):
        if place + step >= stop:
            return -2, step
        byte = int(np.int64(data[place + step]))
        low, high = 0x80, 0xBF
        if step == 1:  # no overlong forms, no surrogates, nothing beyond U+10FFFF
            if first == 0xE0:
                low = 0xA0
            elif first == 0xED:
                high = 0x9F
            elif first == 0xF0:
                low = 0x90
            elif first == 0xF4:
                high = 0x8F
        if byte < low or byte > high:
            return -1, step
        code = (code << 6) | (byte & 0x3F)
    return code, more + 1


@kernel
def read_symbols(
    data: Any, final: bool, names: Any, tokens: Any, size: int, mode: int, unknown: int, bytes_from: int, escape: int,
    symbols: Any, ends: Any,
) -> int:  # fmt: skip
    """Turns UTF-8 into symbols; gives how many there are.

    Args:
        data: uint8.
        final: nothing follows; otherwise what may be the beginning of a character is left.
        names: (special tokens, 3): where the name of each begins and ends in the data, and its id.
        tokens: (0x110000,): the token of every character, -1 where it has none.
        size: number of tokens.
        mode: UNKNOWN, ESCAPE or BYTE.
        unknown, bytes_from, escape: the tokens that the modes need (BYTE: those of bytes 0..255 begin there).
        symbols, ends: filled with the symbols and with the number of bytes up to each one's end; they must have room
            for a symbol per byte, in mode ESCAPE for three.
    """
    place, count = 0, 0
    for index in range(len(names) + 1):
        last = index == len(names)
        stop = data.size if last else names[index, 0]
        while place < stop:
            code, length = read_character(data, place, stop)
            if code == -2 and last and not final:
                return count
            if code < 0 and mode == UNKNOWN:
                code = REPLACEMENT
            if code >= 0 and tokens[code] >= 0:
                symbols[count], ends[count] = tokens[code], place + length
                count += 1
            elif mode == UNKNOWN:
                symbols[count], ends[count] = unknown, place + length
                count += 1
            elif mode == BYTE:
                for step in range(length):
                    symbols[count], ends[count] = bytes_from + data[place + step], place + step + 1
                    count += 1
            elif code >= 0:
                count = _escape(symbols, ends, count, code, tokens, size, escape, place, place + length)
            else:
                for step in range(length):
                    start = place + step
                    lone = LONE + int(np.int64(data[start]))
                    count = _escape(symbols, ends, count, lone, tokens, size, escape, start, start + 1)
            place += length
        if not last:
            place = names[index, 1]
            symbols[count], ends[count] = size + names[index, 2], place
            count += 1
    return count


@kernel
def _escape(
    symbols: Any, ends: Any, count: int, code: int, tokens: Any, size: int, escape: int, start: int, end: int
) -> int:
    symbols[count], ends[count] = escape, start
    symbols[count + 1], ends[count + 1] = size + tokens[code >> 10], start
    symbols[count + 2], ends[count + 2] = size + tokens[code & 1023], end
    return count + 3


@kernel
def merge_symbols(
    symbols: Any, size: int, joins_right: Any, joins_left: Any, keys: Any, ranks: Any, sieve: Any, results: Any
) -> tuple[int, int, int]:
    """Merges symbols in place, run by run: between neighbours of which one takes part in no rule no token reaches.

    Args:
        symbols: they become tokens.
        size: number of tokens.
        joins_right, joins_left: (2 size,), bool: whether a symbol is ever joined to its right, or left, neighbour.
        keys, ranks, sieve, results: the rules, as in `smalti.bpe.ranks`.

    Returns:
        (tokens, tokens before the last run, symbols before it); the last run is empty if nothing that may follow could
        be joined to it.
    """
    kept, start = 0, 0
    open_token, open_symbol = 0, 0
    for place in range(1, symbols.size + 1):
        ends = place == symbols.size
        if not ends and joins_right[symbols[place - 1]] and joins_left[symbols[place]]:
            continue
        if ends:
            is_open = joins_right[symbols[place - 1]]
            open_token, open_symbol = kept, start
        count = place - start
        if count > 1:
            run = symbols[start:place]
            if count <= SHORT:
                count = merge_short(run, count, keys, ranks, sieve, results)
            else:
                count = merge_long(run, keys, ranks, sieve, results)
        for index in range(count):
            token = symbols[start + index]
            symbols[kept] = token - size if token >= size else token
            kept += 1
        start = place
        if ends and not is_open:
            open_token, open_symbol = kept, place
    return kept, open_token, open_symbol


@kernel
def write_bytes(ids: Any, texts: Any, ends: Any, halves: Any, escape: int, state: Any, out: Any) -> int:
    """Joins the bytes of tokens; gives how many there are, or -1 - (index of an id) where an escape is damaged.

    Args:
        ids: tokens.
        texts, ends: the bytes of all tokens one after another, and where each one's end.
        halves: (tokens,): the number that a token stands for inside an escape, -1 for none.
        escape: the token that begins an escape, -1 for none.
        state: (2,): how many numbers the escape still needs, and the first of them; kept between calls.
        out: room for the bytes of all tokens, and four more for each.
    """
    count = 0
    for index in range(ids.size):
        token = int(np.int64(ids[index]))
        if state[0] > 0:
            half = int(np.int64(halves[token]))
            code = (state[1] << 10) | half
            broken = half < 0 or (
                state[0] == 1 and (half > 1023 or (0xD800 <= code < LONE + 0x80) or LONE + 0xFF < code < 0xE000)
            )
            if broken:
                return -1 - index
            state[0] -= 1
            state[1] = half
            if state[0] == 0:
                count = _write_character(out, count, code)
        elif token == escape:
            state[0] = 2
            state[1] = 0
        else:
            for place in range(ends[token - 1] if token > 0 else 0, ends[token]):
                out[count] = texts[place]
                count += 1
    return count


@kernel
def _write_character(out: Any, count: int, code: int) -> int:
    if LONE + 0x80 <= code <= LONE + 0xFF:
        out[count] = code - LONE
        return count + 1
    more = 0 if code < 0x80 else 1 if code < 0x800 else 2 if code < 0x10000 else 3
    out[count] = code if more == 0 else ((0xFF00 >> (more + 1)) & 0xFF) | (code >> (6 * more))
    for step in range(1, more + 1):
        out[count + step] = 0x80 | ((code >> (6 * (more - step))) & 0x3F)
    return count + more + 1
