"""Encoding by rank, as byte pair encoding is defined: the best rule's leftmost place first, until none applies.

The backtracking encoder gives the same tokens in linear time; it is built with this one and tested against it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from smalti.bpe.compiled import kernel
from smalti.bpe.hashing import find

NO_RANK = np.int64(2**62)


@kernel
def merge_short(parts: Any, count: int, keys: Any, ranks: Any, sieve: Any, results: Any, least: int = 1) -> int:
    """Merges parts[:count] in place and gives how many remain; quick for some dozens of them.

    Args:
        parts: tokens; only the first `count` are looked at.
        keys, ranks, sieve: the table of rules (pair -> rank).
        results: rank -> token.
        least: stops when so many remain.
    """
    while count > least:
        best, place = NO_RANK, 0
        for index in range(count - 1):
            rank = find(keys, ranks, sieve, (np.int64(parts[index]) << 32) | parts[index + 1])
            if 0 <= rank < best:
                best, place = np.int64(rank), index
        if best == NO_RANK:
            break
        parts[place] = results[best]
        for index in range(place + 1, count - 1):
            parts[index] = parts[index + 1]
        count -= 1
    return count


@kernel
def merge_long(parts: Any, keys: Any, ranks: Any, sieve: Any, results: Any) -> int:
    """Merges all parts in place and gives how many remain: a heap of (rank, place) over a linked list."""
    count = parts.size
    following = np.arange(1, count + 1)
    before = np.arange(-1, count - 1)
    heap = np.empty(3 * count + 1, np.int64)
    size = 0
    for index in range(count - 1):
        size = _offer(heap, size, parts, index, index + 1, keys, ranks, sieve)
    alive = np.ones(count, np.bool_)
    while size > 0:
        top = heap[0]
        size = _pop(heap, size)
        rank, place = top >> 31, top & 0x7FFFFFFF
        partner = following[place]
        if not alive[place] or partner >= count:
            continue
        if find(keys, ranks, sieve, (np.int64(parts[place]) << 32) | parts[partner]) != rank:
            continue  # one of the two was merged away since
        parts[place] = results[rank]
        alive[partner] = False
        after = following[partner]
        following[place] = after
        if after < count:
            before[after] = place
            size = _offer(heap, size, parts, place, after, keys, ranks, sieve)
        if before[place] >= 0:
            size = _offer(heap, size, parts, before[place], place, keys, ranks, sieve)
    kept = 0
    for index in range(count):
        if alive[index]:
            parts[kept] = parts[index]
            kept += 1
    return kept


@kernel
def _offer(heap: Any, size: int, parts: Any, left: int, right: int, keys: Any, ranks: Any, sieve: Any) -> int:
    rank = find(keys, ranks, sieve, (np.int64(parts[left]) << 32) | parts[right])
    if rank < 0:
        return size
    entry = (np.int64(rank) << 31) | left
    place = size
    while place > 0:
        above = (place - 1) >> 1
        if heap[above] <= entry:
            break
        heap[place] = heap[above]
        place = above
    heap[place] = entry
    return size + 1


@kernel
def _pop(heap: Any, size: int) -> int:
    size -= 1
    entry, place = heap[size], 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = entry
    return size
