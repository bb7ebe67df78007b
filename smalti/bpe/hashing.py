"""Numba kernels of a hash table of pairs: int64 keys to int32 values, open addressing in plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from smalti.bpe.compiled import inlined, kernel

EMPTY = np.int64(-1)
Table = tuple[
    np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int32]], np.ndarray[Any, np.dtype[np.uint64]]
]


@inlined
def mix(key: Any) -> Any:
    """A key's bits spread over all others; searches begin at the low ones."""
    product = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((product ^ (product >> np.uint64(32))) >> np.uint64(1))


@inlined
def find(keys: Any, values: Any, sieve: Any, key: Any) -> Any:
    """The value of a key, or -1. A sieve of bits, which stays in the nearest cache, turns most other keys away."""
    mixed = mix(key)
    bit = mixed & (64 * sieve.size - 1)
    if (sieve[bit >> 6] >> np.uint64(bit & 63)) & np.uint64(1) == 0:
        return np.int32(-1)
    mask = keys.size - 1
    place = mixed & mask
    while True:
        there = keys[place]
        if there == key:
            return values[place]
        if there == EMPTY:
            return np.int32(-1)
        place = (place + 1) & mask


@kernel
def _fill(keys: Any, values: Any, sieve: Any, new_keys: Any, new_values: Any) -> None:
    mask = keys.size - 1
    for index in range(new_keys.size):
        mixed = mix(new_keys[index])
        bit = mixed & (64 * sieve.size - 1)
        sieve[bit >> 6] |= np.uint64(1) << np.uint64(bit & 63)
        place = mixed & mask
        while keys[place] != EMPTY:
            place = (place + 1) & mask
        keys[place] = new_keys[index]
        values[place] = new_values[index]


def table_of(keys: np.ndarray[Any, np.dtype[np.int64]], values: np.ndarray[Any, np.dtype[np.int32]]) -> Table:
    """The table of different keys, at most half full, and its sieve with eight to sixteen bits a key."""
    size = 1 << max(5, (2 * len(keys)).bit_length())
    table = np.full(size, EMPTY), np.zeros(size, np.int32), np.zeros(size // 16, np.uint64)
    _fill(*table, keys, values)
    return table
