"""Characters of Unicode 16.0, and UTF-8 as kernels read it.

The table of general categories is a file of this package, so that ids depend on no installed version of Unicode; it is
the one that `tokenizers` 0.23 and tiktoken 0.14 have. Bytes that are no UTF-8 count as characters of their own, with
the category of surrogates: byte 0x80 + n reads as U+DC80 + n, as in Python's "surrogateescape".
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from smalti.bpe.compiled import inlined

CODE_POINTS = 0x110000
CATEGORIES = (
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po",
    "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn",
)  # fmt: skip
WHITE_SPACE = (*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
ESCAPED = 0xDC00  # added to a byte that is no UTF-8
TABLE = Path(__file__).with_name("unicode.json")

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@cache
def categories() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(CODE_POINTS,): the place in CATEGORIES of each code point's general category."""
    runs = " ".join(json.loads(TABLE.read_text())["runs"]).split()
    kinds = np.array([CATEGORIES.index(run[:2]) for run in runs], np.uint8)
    return np.repeat(kinds, [int(run[2:]) for run in runs])


def category(name: str) -> Flags:
    """(CODE_POINTS,): which have a general category, such as "Lu", or one of a group of them, such as "L".

    Raises:
        KeyError: if there is no such category.
    """
    places = [place for place, each in enumerate(CATEGORIES) if each == name or each[0] == name]
    if not places:
        raise KeyError(name)
    return np.isin(categories(), places)


def white_space() -> Flags:
    """(CODE_POINTS,): which have the property White_Space."""
    flags = np.zeros(CODE_POINTS, np.bool_)
    flags[list(WHITE_SPACE)] = True
    return flags


@inlined
def character(text: Any, place: Any, stop: Any) -> Any:
    """(code point, bytes) of the character at a place of UTF-8 that ends at `stop`."""
    first = np.int64(text[place])
    if first < 0x80:
        return first, 1
    if 0xC2 <= first < 0xE0 and place + 1 < stop and text[place + 1] & 0xC0 == 0x80:
        return ((first & 31) << 6) | np.int64(text[place + 1] & 63), 2
    if 0xE0 <= first < 0xF0 and place + 2 < stop and text[place + 1] & 0xC0 == 0x80 and text[place + 2] & 0xC0 == 0x80:
        point = ((first & 15) << 12) | (np.int64(text[place + 1] & 63) << 6) | np.int64(text[place + 2] & 63)
        if point >= 0x800 and point >> 11 != 0x1B:  # surrogates have no UTF-8
            return point, 3
    if (
        0xF0 <= first < 0xF5 and place + 3 < stop and text[place + 1] & 0xC0 == 0x80
        and text[place + 2] & 0xC0 == 0x80 and text[place + 3] & 0xC0 == 0x80
    ):  # fmt: skip
        point = ((first & 7) << 18) | (np.int64(text[place + 1] & 63) << 12)
        point |= (np.int64(text[place + 2] & 63) << 6) | np.int64(text[place + 3] & 63)
        if 0x10000 <= point < 0x110000:
            return point, 4
    return ESCAPED + first, 1
