"""A trie of symbol strings that finds the longest token at a position.

A double array: the child of a node by a symbol stands at place BASE of the node + symbol, if the PARENT there is the
node. A step is two look-ups whatever the alphabet, and the array is little longer than the number of nodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from smalti.bpe.compiled import inlined, kernel

ROOT = 0
NONE = -1
BASE, PARENT, TOKEN = 0, 1, 2  # columns of a trie; the last ends at the node, or is -1
MAX_TRIES = 64

Trie = np.ndarray[Any, np.dtype[np.int32]]


def trie_of(symbols: Any, offsets: Any, chosen: Any, alphabet: int) -> Trie:
    """The trie of some strings, all different and none empty: (places, 4), int32, a place in one cache line.

    Args:
        symbols: int32, of all strings one after another, each in 0..alphabet-1.
        offsets: (strings + 1,): where each begins.
        chosen: which strings; the number of each is the token that it stands for.
        alphabet: number of symbols, also of those that texts have and no string.
    """
    return _build(symbols, offsets, _sorted(symbols, offsets, chosen), alphabet)


def _sorted(symbols: Any, offsets: Any, chosen: Any) -> Any:
    """The numbers of strings in the order of their symbols."""
    strings = [symbols[offsets[i] : offsets[i + 1]].astype(">u4").tobytes() for i in chosen]
    return chosen[sorted(range(len(strings)), key=strings.__getitem__)]


@kernel
def _build(symbols: Any, offsets: Any, order: Any, alphabet: int) -> Any:
    """Places the children of every node, nodes level by level; `order` sorts the strings."""
    trie = _blank(2 * alphabet + 16)
    trie[ROOT, PARENT] = ROOT  # taken
    # A queue entry is a node, the range of sorted strings that pass through it, and its depth.
    queue = np.zeros((symbols.size + 1, 4), np.int64)
    queue[0] = (ROOT, 0, order.size, 0)
    head, tail, free, roomy = 0, 1, 1, 1
    children = np.zeros(alphabet, np.int64)
    while head < tail:
        node, low, high, depth = queue[head]
        head += 1
        if low < high and offsets[order[low] + 1] - offsets[order[low]] == depth:
            trie[node, TOKEN] = order[low]
            low += 1
        count = 0
        for index in range(low, high):
            symbol = symbols[offsets[order[index]] + depth]
            if count == 0 or children[count - 1] != symbol:
                children[count] = symbol
                count += 1
        if count == 0:
            continue
        while free < len(trie) and trie[free, PARENT] != NONE:
            free += 1
        # Several children seldom fit into the holes that earlier nodes left, so their search begins further on.
        first = max(1, (free if count == 1 else max(free, roomy)) - children[0])
        start, trie = _room(trie, children[:count], first, alphabet)
        if start - first > MAX_TRIES:
            roomy = start
        trie[node, BASE] = start
        begin = low
        for symbol in children[:count]:
            place, end = start + symbol, begin
            trie[place, PARENT] = node
            while end < high and symbols[offsets[order[end]] + depth] == symbol:
                end += 1
            queue[tail] = (place, begin, end, depth + 1)
            tail += 1
            begin = end
    return trie


@kernel
def _blank(places: int) -> Any:
    trie = np.zeros((places, 4), np.int32)
    trie[:, PARENT] = NONE
    trie[:, TOKEN] = NONE
    return trie


@kernel
def _room(trie: Any, children: Any, start: int, alphabet: int) -> Any:
    """The first base from `start` on whose children's places are all free, and the trie, longer if need be."""
    while True:
        if start + alphabet >= len(trie):
            longer = _blank(2 * len(trie))
            longer[: len(trie)] = trie
            trie = longer
        fits = True
        for symbol in children:
            if trie[start + symbol, PARENT] != NONE:
                fits = False
                break
        if fits:
            return start, trie
        start += 1


@inlined
def longest(trie: Any, text: Any, start: int, stop: int) -> int:
    """The longest token that text[start:stop] begins with, or -1."""
    node, best = ROOT, NONE
    for index in range(start, stop):
        place = trie[node, BASE] + text[index]
        if trie[place, PARENT] != node:
            break
        node = place
        if trie[node, TOKEN] >= 0:
            best = trie[node, TOKEN]
    return best


@inlined
def exactly(trie: Any, text: Any, start: int, stop: int) -> int:
    """The token that text[start:stop] spells, or -1."""
    node = ROOT
    for index in range(start, stop):
        place = trie[node, BASE] + text[index]
        if trie[place, PARENT] != node:
            return NONE
        node = place
    return trie[node, TOKEN]


@kernel
def longest_of(trie: Any, text: Any) -> int:
    """The longest token that a text begins with, or -1."""
    return longest(trie, text, 0, text.size)
