"""The pairs of neighbours that a trainer may merge: how often each stands in the corpus, where, and which is best.

Pairs of existing tokens only ever become rarer. So nothing below a floor is kept: what lies below it can't be best as
long as anything above remains, and when nothing does, the corpus is counted again with a lower floor. The less room
there is for the places of pairs, the higher the floor and the more often that happens; what is best stays the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from smalti.bpe.compiled import inlined, kernel
from smalti.bpe.corpus import BORDER, Corpus
from smalti.bpe.hashing import EMPTY, mix

DESCENT = 64  # a new floor is this part of the old one
SIEVE = 4, 1 << 26  # counters of the sieve: one for so many tokens, and at most so many
FILLED = 0.5  # of the room for places, after a recount
UNINDEXED = np.int64(-1)
KEY, COUNT, START, SIZE = 0, 1, 2, 3  # columns of the table of pairs


class Pairs:
    """Pairs of a corpus, best first: the most frequent, of equals the one with the smaller (left, right).

    Args:
        corpus: changed by merging.
        lengths: (ids,): symbols of each token; the caller writes a token's before merging into it.
        sizes: symbols that a pair may have together: at most so many, and a flag for each number; all if there is none.
        least: pairs that are rarer are never merged.
        room: how many places of pairs are kept in memory.
    """

    def __init__(self, corpus: Corpus, lengths: Any, sizes: tuple[int, Any], least: int, room: int) -> None:
        self._corpus, self._lengths, self._sizes, self._least = corpus, lengths, sizes, least
        self._places = np.empty(max(1, room), np.uint32)
        self._used = 0
        self._floor = 0
        weighted = corpus.owners is not None
        none = np.zeros(0, np.uint32), np.zeros(0, np.int64)
        self._weights = (corpus.owners, corpus.weights, True) if weighted else (*none, False)
        self._seen = np.zeros((2, len(lengths), 2), np.int64)  # zeros, but while neighbours of a new token are counted
        self._table: Any = _blank(16)
        self._heap: Any = np.empty((16, 2), np.int64)
        self._heap_size = self._pairs = self._count = 0
        self._dropped: list[Any] = []
        self._recount(1)

    def best(self) -> tuple[int, int, int] | None:
        """(left, right, count) of the best pair, or None if none is frequent enough."""
        while True:
            self._heap_size, key, count = _best(self._heap, self._heap_size, self._table, self._floor)
            if key >= 0:
                self._count = int(count)
                return int(key >> 32), int(key & 0xFFFFFFFF), self._count
            if self._floor <= self._least:
                return None
            self._recount(max(self._least, self._floor // DESCENT))

    def drop(self, left: int, right: int) -> None:
        """Never offers a pair again, though it stays in the corpus."""
        self._table[_row(self._table, _key(left, right)), COUNT] = 0
        self._dropped.append(_key(left, right))

    def merge(self, left: int, right: int, token: int, *, known: bool = False) -> int:
        """Replaces a pair by a token, in every segment from left to right.

        Args:
            left, right: a pair that `best` gave.
            token: what it becomes.
            known: whether the token has been in the corpus before.

        Returns:
            How often it was replaced, by weight.
        """
        # Each of the new pairs reaches the floor, and every replaced pair has two neighbours.
        self._make_room(2 * self._count // max(1, self._floor) + 2)
        merged, self._used, self._heap_size, self._pairs = _merge(
            self._corpus.tokens, left, right, token, *self._weights, self._lengths, self._sizes, self._floor,
            self._table, self._pairs, self._heap, self._heap_size, self._places, self._used, self._seen, known,
        )  # fmt: skip
        if self._used < 0 or known:
            # There is no room for more places; or the token's pairs with its neighbours are not new, so that their
            # counts and places are not the last merge's alone.
            self._recount(self._floor)
        return int(merged)

    def _make_room(self, count: int) -> None:
        """For so many more pairs."""
        if 2 * (self._pairs + count) > len(self._table):
            self._table = _enlarged(self._table, 2 * (self._pairs + count))
        if self._heap_size + count > len(self._heap):
            self._heap = np.concatenate([self._heap, np.empty_like(self._heap), np.empty((count, 2), np.int64)])

    def _recount(self, floor: int) -> None:
        """Counts all pairs of the corpus anew, keeps those that reach a floor, raised where room is short."""
        corpus = self._corpus
        corpus.squeeze()
        if corpus.owners is not None:
            self._weights = (corpus.owners, corpus.weights, True)
        self._table, self._heap = _blank(16), np.empty((16, 2), np.int64)
        self._used = self._heap_size = self._pairs = 0
        kept = self._counted(floor)
        kept = kept[~np.isin(kept[:, KEY], np.array(self._dropped, np.int64))]
        kept = kept[np.argsort(-kept[:, COUNT], kind="stable")]
        sizes = np.where(kept[:, SIZE] > FILLED * len(self._places), 0, kept[:, SIZE])
        ends = np.cumsum(sizes)
        fitting = int(np.searchsorted(ends, FILLED * len(self._places), side="right"))
        top = int(kept[0, COUNT]) if len(kept) else 0
        if fitting < len(kept):  # equally frequent pairs are kept or left together
            floor = min(top, int(kept[fitting, COUNT]) + 1)
        self._floor = max(floor, self._least, top // DESCENT)
        count = int(np.searchsorted(-kept[:, COUNT], -self._floor, side="right"))
        indexed = (sizes[:count] > 0) & (np.arange(count) < fitting)
        kept = kept[:count]
        kept[:, START] = np.where(indexed, ends[:count] - sizes[:count], UNINDEXED)
        self._used = int(ends[:count][indexed].max(initial=0))
        self._make_room(len(kept))
        self._pairs = len(kept)
        self._heap_size = _insert(self._table, self._heap, self._heap_size, kept)
        _index_all(corpus.tokens, self._table, self._places)

    def _counted(self, floor: int) -> Any:
        """(pairs, 4): those that reach a floor."""
        tokens, scope = self._corpus.tokens, (*self._weights, self._lengths, self._sizes)
        share, most = SIEVE
        size = min(most, 1 << (len(tokens) // share).bit_length())
        enough = min(floor, 2**32 - 1)  # a counter holds no more
        sieve = _sift(tokens, *scope, np.zeros(size, np.uint32), enough)
        table, begin, used = _blank(1 << 16), 1, 0
        while True:
            begin, used = _count(tokens, begin, used, *scope, sieve, enough, table)
            if begin < 0:
                return table[table[:, COUNT] >= floor]
            table = _enlarged(table, 2 * len(table))


@inlined
def _key(left: Any, right: Any) -> Any:
    return (np.int64(left) << 32) | np.int64(right)


@inlined
def _unfit(size: Any, sizes: Any) -> Any:
    """Whether no token may have so many symbols."""
    longest, fitting = sizes
    return size > longest or (fitting.size > 0 and not fitting[size])


@kernel
def _blank(places: int) -> Any:
    table = np.zeros((places, 4), np.int64)
    table[:, KEY] = EMPTY
    return table


@inlined
def _row(table: Any, key: int) -> int:
    """Where a key stands, or the free place where it would."""
    mask = len(table) - 1
    row = mix(key) & mask
    while table[row, KEY] != key and table[row, KEY] != EMPTY:
        row = (row + 1) & mask
    return row


@kernel
def _enlarged(table: Any, least: int) -> Any:
    size = len(table)
    while size < least:
        size *= 2
    larger = _blank(size)
    for old in range(len(table)):
        if table[old, KEY] != EMPTY:
            larger[_row(larger, table[old, KEY])] = table[old]
    return larger


# --- places of tokens ------------------------------------------------------------------------------------------------


@inlined
def _next(tokens: Any, place: int) -> int:
    """The place of the token behind the one at a place."""
    inside = tokens[place + 1]
    return place - inside if inside < BORDER else place + 1


@inlined
def _previous(tokens: Any, place: int) -> int:
    """The place of the token before the one at a place."""
    inside = tokens[place - 1]
    return place + inside if inside < BORDER else place - 1


@kernel
def _places_of(tokens: Any, left: int, right: int) -> Any:
    """Where a pair stands, found by reading everything."""
    count = 0
    for place in range(1, tokens.size - 1):
        count += tokens[place] == left and tokens[_next(tokens, place)] == right
    places, count = np.empty(count, np.uint32), 0
    for place in range(1, tokens.size - 1):
        if tokens[place] == left and tokens[_next(tokens, place)] == right:
            places[count] = place
            count += 1
    return places


@kernel
def _sift(
    tokens: Any, owners: Any, weights: Any, weighted: bool, lengths: Any, sizes: Any, sieve: Any, enough: int
) -> Any:
    """Counts the pairs of a squeezed corpus roughly: those that share a counter together, and up to the floor."""
    for place in range(1, tokens.size - 1):
        left, right = tokens[place], tokens[place + 1]
        if left < 0 or right < 0 or _unfit(lengths[left] + lengths[right], sizes):
            continue
        counter = mix(_key(left, right)) & (sieve.size - 1)
        if sieve[counter] < enough:
            sieve[counter] = min(enough, sieve[counter] + (weights[owners[place]] if weighted else 1))
    return sieve


@kernel
def _count(
    tokens: Any, begin: int, used: int, owners: Any, weights: Any, weighted: bool, lengths: Any, sizes: Any,
    sieve: Any, enough: int, table: Any,
) -> Any:  # fmt: skip
    """Counts pairs of a squeezed corpus that may reach the floor; (where the table was full, or -1; its pairs)."""
    for place in range(begin, tokens.size - 1):
        left, right = tokens[place], tokens[place + 1]
        if left < 0 or right < 0 or _unfit(lengths[left] + lengths[right], sizes):
            continue
        key = _key(left, right)
        if sieve[mix(key) & (sieve.size - 1)] < enough:
            continue
        row = _row(table, key)
        if table[row, KEY] == EMPTY:
            if 2 * used >= len(table):
                return place, used
            table[row, KEY] = key
            used += 1
        table[row, COUNT] += weights[owners[place]] if weighted else 1
        table[row, SIZE] += 1
    return -1, used


@kernel
def _index_all(tokens: Any, table: Any, places: Any) -> None:
    """Writes the places of all indexed pairs of a squeezed corpus."""
    filled = np.zeros(len(table), np.int64)
    for place in range(1, tokens.size - 1):
        if tokens[place] < 0 or tokens[place + 1] < 0:
            continue
        row = _row(table, _key(tokens[place], tokens[place + 1]))
        if table[row, KEY] != EMPTY and table[row, START] != UNINDEXED:
            places[table[row, START] + filled[row]] = place
            filled[row] += 1


@kernel
def _replace(
    tokens: Any, places: Any, left: int, right: int, token: int, owners: Any, weights: Any, weighted: bool, table: Any
) -> int:
    """Merges a pair at its places, and takes its neighbours' pairs from their counts; gives the merged weight."""
    merged = 0
    for index in range(places.size):
        place = np.int64(places[index])
        if tokens[place] != left:
            continue
        partner = _next(tokens, place)
        if tokens[partner] != right:
            continue
        weight = weights[owners[place]] if weighted else 1
        before, after = _previous(tokens, place), _next(tokens, partner)
        if tokens[before] >= 0:
            row = _row(table, _key(tokens[before], left))
            if table[row, KEY] != EMPTY:
                table[row, COUNT] -= weight
        if tokens[after] >= 0:
            row = _row(table, _key(right, tokens[after]))
            if table[row, KEY] != EMPTY:
                table[row, COUNT] -= weight
        span = place - after
        tokens[place] = token
        tokens[partner] = span
        tokens[place + 1] = span
        tokens[after - 1] = span
        merged += weight
    return merged


@kernel
def _neighbours(
    tokens: Any, places: Any, token: int, owners: Any, weights: Any, weighted: bool, lengths: Any, sizes: Any,
    floor: int, used: int, seen: Any,
) -> Any:  # fmt: skip
    """Counts the neighbours of a new token; (rows of the pairs that reach the floor, places used with theirs).

    Args:
        seen: (2, ids, 2): on the left and on the right, of each id count and number of places. In the end the number is
            where the next place of its pair goes, or `UNINDEXED`. Of two new tokens side by side only the right counts.
    """
    most = min(2 * places.size, 2 * seen.shape[1])
    kinds = np.empty((most, 2), np.int64)  # sides and ids in the order in which they come
    count = 0
    for index in range(places.size):
        place = np.int64(places[index])
        if tokens[place] != token:
            continue
        weight = weights[owners[place]] if weighted else 1
        for side in range(2):
            other = tokens[_next(tokens, place) if side else _previous(tokens, place)]
            if other < 0 or (other == token and side == 0) or _unfit(lengths[other] + lengths[token], sizes):
                continue
            if seen[side, other, 1] == 0:
                kinds[count, 0], kinds[count, 1] = side, other
                count += 1
            seen[side, other, 0] += weight
            seen[side, other, 1] += 1
    new, kept = np.empty((count, 4), np.int64), 0
    for index in range(count):
        side, other = kinds[index]
        if seen[side, other, 0] < floor:
            seen[side, other, 1] = UNINDEXED
            continue
        size = seen[side, other, 1]
        new[kept, KEY] = _key(token, other) if side else _key(other, token)
        new[kept, COUNT], new[kept, START], new[kept, SIZE] = seen[side, other, 0], used, size
        seen[side, other, 1] = used
        used += size
        kept += 1
    return new[:kept], used


@kernel
def _index(tokens: Any, places: Any, token: int, seen: Any, out: Any) -> None:
    """Writes the places of a new token's pairs."""
    for index in range(places.size):
        place = np.int64(places[index])
        if tokens[place] != token:
            continue
        before = _previous(tokens, place)
        left, right = tokens[before], tokens[_next(tokens, place)]
        # What was not counted has no count: pairs of other sizes, and those on the left of another new token.
        if left >= 0 and seen[0, left, 0] > 0 and seen[0, left, 1] != UNINDEXED:
            out[seen[0, left, 1]] = before
            seen[0, left, 1] += 1
        if right >= 0 and seen[1, right, 0] > 0 and seen[1, right, 1] != UNINDEXED:
            out[seen[1, right, 1]] = place
            seen[1, right, 1] += 1


@kernel
def _forget(tokens: Any, places: Any, token: int, seen: Any) -> None:
    """Zeros again."""
    for index in range(places.size):
        place = np.int64(places[index])
        if tokens[place] == token:
            left, right = tokens[_previous(tokens, place)], tokens[_next(tokens, place)]
            if left >= 0:
                seen[0, left] = 0
            if right >= 0:
                seen[1, right] = 0


# --- the heap --------------------------------------------------------------------------------------------------------


@inlined
def _better(one: Any, other: Any) -> bool:
    return one[0] > other[0] or (one[0] == other[0] and one[1] < other[1])


@kernel
def _insert(table: Any, heap: Any, size: int, new: Any) -> int:
    """Puts rows into the table, and into the heap of (count, key); gives the heap's size."""
    entry = np.empty(2, np.int64)
    for index in range(len(new)):
        table[_row(table, new[index, KEY])] = new[index]
        entry[0], entry[1] = new[index, COUNT], new[index, KEY]
        place = size
        while place > 0 and _better(entry, heap[(place - 1) >> 1]):
            heap[place] = heap[(place - 1) >> 1]
            place = (place - 1) >> 1
        heap[place] = entry
        size += 1
    return size


@kernel
def _sink(heap: Any, size: int, entry: Any) -> None:
    """Puts an entry in the place of the top."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and _better(heap[child + 1], heap[child]):
            child += 1
        if not _better(heap[child], entry):
            break
        heap[place] = heap[child]
        place = child
    heap[place] = entry


@kernel
def _best(heap: Any, size: int, table: Any, floor: int) -> Any:
    """(size of the heap, best key or -1, its count). Entries remember counts of former times; they sink to today's."""
    entry = np.empty(2, np.int64)
    while size > 0:
        count, key = heap[0, 0], heap[0, 1]
        today = table[_row(table, key), COUNT]
        if today == count and count >= floor:
            return size, key, count
        if today >= floor and today > 0:
            entry[0], entry[1] = today, key
        else:
            size -= 1
            entry[:] = heap[size]
        _sink(heap, size, entry)
    return size, np.int64(-1), np.int64(0)


# --- a merge ---------------------------------------------------------------------------------------------------------


@kernel
def _merge(
    tokens: Any, left: int, right: int, token: int, owners: Any, weights: Any, weighted: bool, lengths: Any,
    sizes: Any, floor: int, table: Any, pairs: int, heap: Any, heap_size: int, out: Any, used: int, seen: Any,
    known: bool,
) -> Any:  # fmt: skip
    """Replaces a pair and takes in the new token's pairs that reach the floor, in one call: most merges are small.

    Returns:
        (merged weight, places used or -1 if there are too few, size of the heap, pairs).
    """
    row = _row(table, _key(left, right))
    start, size = table[row, START], table[row, SIZE]
    places = _places_of(tokens, left, right) if start == UNINDEXED else out[start : start + size].copy()
    table[row, COUNT] = 0
    merged = _replace(tokens, places, left, right, token, owners, weights, weighted, table)
    if known:
        return merged, used, heap_size, pairs
    new, needed = _neighbours(tokens, places, token, owners, weights, weighted, lengths, sizes, floor, used, seen)
    fits = needed <= out.size
    if fits:
        _index(tokens, places, token, seen, out)
        heap_size = _insert(table, heap, heap_size, new)
    _forget(tokens, places, token, seen)
    return merged, needed if fits else np.int64(-1), heap_size, pairs + len(new)
