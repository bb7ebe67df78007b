"""Byte pair encoding in linear time, by backtracking.

    position ──trie──► longest token ──fits its left neighbour?──► taken
                           ▲ no: the next shorter ◄──┘   none fits: the left neighbour was wrong, one step back

Three facts make it exact: a text has one encoding; parts of encodings are encodings; a sequence of tokens is the
encoding of its text if every two neighbours are the encoding of theirs. They hold for every set of ranked rules.

Whether two neighbours fit is quick to tell where every token is made of parts that were made before it: undoing merges
from the last to the first is then going back in time. Trained vocabularies are like that, also if several rules make
one token; for others the symbols of both are encoded by rank.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smalti.bpe.compiled import inlined, kernel
from smalti.bpe.hashing import find, mix, table_of
from smalti.bpe.ranks import NO_RANK, merge_long, merge_short
from smalti.bpe.trie import NONE, exactly, longest, longest_of, trie_of
from smalti.bpe.vocabulary import Merges
from smalti.errors import InputError

CACHE = 1 << 12  # remembered choices: what stays in the nearest caches
LENGTH, SHORTER, RANK, LEFT, RIGHT, RUN = 0, 1, 2, 3, 4, 5  # columns of what kernels know of each token


class Encoder:
    """Encodes sequences of symbols; threads may share one.

    Args:
        merges: the vocabulary.
        whole: ids of further tokens and their symbols; `encode_pieces` gives them for pieces that are spelled so.

    Attributes:
        lengths: (size,): symbols of each token.
        longest_token: symbols of the longest token that encodings can have.
        unreachable: how many tokens that rules make no encoding has, because their own symbols encode otherwise.
    """

    def __init__(self, merges: Merges, whole: Mapping[int, Sequence[int]] | None = None) -> None:
        self.merges = merges
        strings = merges.strings
        self.lengths = lengths = strings.lengths
        table = table_of(merges.keys, merges.ranks)
        facts = _facts(merges)
        symbols = merges.base[strings.symbols].astype(np.int32)
        rules = (*table, merges.results, symbols, strings.offsets)
        reachable, quick = _reachable(facts, *rules, merges.regular)
        self._rules = (*rules, quick)
        self.unreachable = int(((lengths > 0) & ~reachable).sum())
        self.longest_token = int(lengths[reachable].max(initial=1))
        self._alphabet = max(1, len(merges.base))
        self._trie = trie_of(strings.symbols, strings.offsets, np.flatnonzero(reachable), self._alphabet)
        hidden = {token: string for token, string in (whole or {}).items() if not reachable[token]}
        self._whole, self._nothing = (_trie_of_strings(each, self._alphabet) for each in (hidden, {}))
        _note_shorter(facts, self._trie, strings.symbols, strings.offsets, reachable)
        self._facts = facts
        self._caches: deque[Any] = deque()
        self._note_runs()

    def encode(self, symbols: Any) -> Any:
        """The tokens of a sequence.

        Args:
            symbols: one axis, uint8, uint16, uint32 or int32.

        Returns:
            int32 ids.

        Raises:
            InputError: if a symbol has no token.
        """
        return self._encode(symbols, np.array([len(symbols)], np.int64), self._nothing)

    def encode_pieces(self, symbols: Any, ends: Any) -> Any:
        """The tokens of pieces one after another; none crosses the end of a piece.

        Args:
            symbols: of all pieces, as in `encode`.
            ends: (pieces,): where each ends, ascending, int64.

        Returns:
            int32 ids.

        Raises:
            InputError: if a symbol has no token.
        """
        return self._encode(symbols, ends, self._whole)

    def count(self, symbols: Any) -> int:
        """The number of tokens of a sequence."""
        return len(self.encode(symbols))

    def count_pieces(self, symbols: Any, ends: Any) -> int:
        """The number of tokens of pieces, as `encode_pieces` gives them; it takes little memory."""
        return self._run(symbols, ends, self._whole, False)[0]

    def by_rank(self, symbols: Any) -> Any:
        """The same tokens, found as the encoding is defined: O(n log n)."""
        self._check(symbols)
        parts = self.merges.base[symbols]
        if (parts < 0).any():
            self._refuse(symbols)
        return parts[: merge_long(parts, *self._rules[:4])]

    def fits(self, left: int, right: int) -> bool:
        """Whether two tokens side by side are the encoding of their symbols."""
        return bool(_fits(left, right, self._facts, *self._rules))

    def _note_runs(self) -> None:
        """Notes what long runs of each symbol consist of, at the longest token that such a run begins with.

        In a run the longest token is nearly always wrong, which only the end of the run would tell.
        """
        if not self._rules[-1]:
            return
        for symbol in np.flatnonzero(self.merges.base >= 0):
            longest_token = longest_of(self._trie, np.full(self.longest_token, symbol, np.int32))
            if longest_token == NONE or self.lengths[longest_token] == 1:
                continue
            tokens = self.encode(np.full(8 * int(self.lengths[longest_token]), symbol, np.int32))
            one, other = tokens[len(tokens) // 2 : len(tokens) // 2 + 2]
            if one == other and one not in (NONE, longest_token):
                self._facts[longest_token, RUN] = one

    def _encode(self, symbols: Any, ends: Any, whole: Any) -> Any:
        count, out = self._run(symbols, ends, whole, True)
        return out[:count]

    def _run(self, symbols: Any, ends: Any, whole: Any, keep: bool) -> tuple[int, Any]:
        """How many tokens, and an array that begins with them, if they are to be kept."""
        self._check(symbols)
        try:
            cache = self._caches.pop()
        except IndexError:
            cache = np.full((CACHE, 2), -1, np.int64)
        count, out = _encode(symbols, ends, keep, self._trie, whole, self._facts, cache, *self._rules)
        self._caches.append(cache)
        if count < 0:
            self._refuse(symbols)
        return count, out

    def _check(self, symbols: Any) -> None:
        """Kernels read beyond their arrays for a symbol outside the alphabet."""
        kind = np.iinfo(symbols.dtype)
        limited = kind.max < self._alphabet and kind.min >= 0
        if len(symbols) and not limited and (int(symbols.min()) < 0 or int(symbols.max()) >= self._alphabet):
            self._refuse(symbols)

    def _refuse(self, symbols: Any) -> None:
        inside = (symbols >= 0) & (symbols < len(self.merges.base))
        known = inside.copy()
        known[inside] = self.merges.base[symbols[inside]] >= 0
        place = int(np.flatnonzero(~known)[0])
        raise InputError(f"symbol {int(symbols[place])} at {place} has no token in this vocabulary")


def effective(merges: Merges) -> Merges:
    """The same encodings by one rule for each token that they have, where several make it: the one that does.

    What makes a token within a longer text is what makes it alone, so that no other rule is ever applied.
    """
    table = table_of(merges.keys, merges.ranks)
    facts, strings = _facts(merges), merges.strings
    symbols = merges.base[strings.symbols].astype(np.int32)
    reachable, _ = _reachable(facts, *table, merges.results, symbols, strings.offsets, merges.regular)
    made = np.flatnonzero(reachable & (facts[:, LENGTH] > 1))
    made = made[np.argsort(facts[made, RANK], kind="stable")]
    return Merges(merges.base, facts[made][:, [LEFT, RIGHT]], made.astype(np.int32), size=merges.size)


def _trie_of_strings(strings: Mapping[int, Sequence[int]], alphabet: int) -> Any:
    """The trie of some tokens and their symbols; no place at all if there are none."""
    if not strings:
        return np.zeros((0, 4), np.int32)
    lengths = np.zeros(max(strings) + 1, np.int64)
    for token, symbols in strings.items():
        lengths[token] = len(symbols)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    joined = np.concatenate([np.asarray(strings[token], np.int32) for token in sorted(strings)])
    return trie_of(joined, offsets, np.array(sorted(strings)), alphabet)


def _facts(merges: Merges) -> Any:
    """(size, 8), int32: of each token its length, its rule's rank and parts; the rest comes later."""
    facts = np.full((merges.size, 8), NONE, np.int32)
    facts[:, LENGTH] = merges.strings.lengths
    order = np.arange(len(merges))[::-1]  # of several rules of a token the first stays
    made = merges.results[order]
    facts[made, RANK] = order
    facts[made, LEFT], facts[made, RIGHT] = merges.pairs[order].T
    return facts


@inlined
def _fits_quickly(left: Any, right: Any, limit: Any, facts: Any, keys: Any, ranks: Any, sieve: Any) -> bool:
    """Undoes merges on both sides of a border, last one first, and looks for a rule across it that comes before."""
    while True:
        across = find(keys, ranks, sieve, (np.int64(left) << 32) | right)
        if 0 <= across < limit:
            return False
        one, other = facts[left, RANK], facts[right, RANK]
        if one < 0 and other < 0:
            return True
        if one > other:
            limit = np.int64(one)
            left = facts[left, RIGHT]
        else:  # of two equal rules the one across the border is further left than the right side's, so it comes first
            limit = np.int64(other) + 1
            right = facts[right, LEFT]


@kernel
def _fits_slowly(
    left: int, right: int, keys: Any, ranks: Any, sieve: Any, results: Any, symbols: Any, offsets: Any
) -> bool:
    """Encodes the symbols of both by rank."""
    one, other = offsets[left + 1] - offsets[left], offsets[right + 1] - offsets[right]
    parts = np.empty(one + other, np.int32)
    parts[:one] = symbols[offsets[left] : offsets[left + 1]]
    parts[one:] = symbols[offsets[right] : offsets[right + 1]]
    return merge_short(parts, parts.size, keys, ranks, sieve, results) == 2 and parts[0] == left and parts[1] == right


@inlined
def _fits(
    left: int,
    right: int,
    facts: Any,
    keys: Any,
    ranks: Any,
    sieve: Any,
    results: Any,
    symbols: Any,
    offsets: Any,
    quick: bool,
) -> bool:
    if quick:
        return _fits_quickly(left, right, NO_RANK, facts, keys, ranks, sieve)
    return _fits_slowly(left, right, keys, ranks, sieve, results, symbols, offsets)


@kernel
def _reachable(
    facts: Any, keys: Any, ranks: Any, sieve: Any, results: Any, symbols: Any, offsets: Any, regular: bool
) -> Any:
    """Which tokens are the encoding of their own symbols, for no other token is part of any encoding; and whether all
    of these were made of parts that were made before. Of several rules of a token, notes the one that makes it."""
    reachable = np.zeros(len(facts), np.bool_)
    for token in np.argsort(facts[:, RANK]):  # parts before what they make, where vocabularies are regular
        length = facts[token, LENGTH]
        if length <= 1:
            reachable[token] = length == 1
        elif regular:
            left, right = facts[token, LEFT], facts[token, RIGHT]
            limit = np.int64(facts[token, RANK])
            whole = reachable[left] and reachable[right]
            reachable[token] = whole and _fits_quickly(left, right, limit, facts, keys, ranks, sieve)
        else:
            parts = symbols[offsets[token] : offsets[token + 1]].copy()
            if merge_short(parts, length, keys, ranks, sieve, results, 2) == 2:
                rank = find(keys, ranks, sieve, (np.int64(parts[0]) << 32) | parts[1])
                reachable[token] = rank >= 0 and results[rank] == token
                if reachable[token]:
                    facts[token, RANK], facts[token, LEFT], facts[token, RIGHT] = rank, parts[0], parts[1]
    quick = True
    for token in range(len(facts)):
        if reachable[token] and facts[token, LENGTH] > 1:
            before = max(facts[facts[token, LEFT], RANK], facts[facts[token, RIGHT], RANK])
            quick = quick and before < facts[token, RANK]
    return reachable, quick


@kernel
def _note_shorter(facts: Any, trie: Any, symbols: Any, offsets: Any, reachable: Any) -> None:
    """The longest other token that each token begins with, or -1."""
    for token in range(len(facts)):
        if reachable[token]:
            facts[token, SHORTER] = longest(trie, symbols, offsets[token], offsets[token + 1] - 1)


@kernel
def _choose(
    left: int, candidate: int, cache: Any, facts: Any,
    keys: Any, ranks: Any, sieve: Any, results: Any, symbols: Any, offsets: Any, quick: bool,
) -> int:  # fmt: skip
    """The first of a candidate and the tokens that it begins with, longest first, that fits on the left, or -1."""
    key = (np.int64(left) << 32) | candidate
    place = mix(key) & (len(cache) - 1)
    if cache[place, 0] == key:
        return cache[place, 1]
    while candidate >= 0:
        if _fits(left, candidate, facts, keys, ranks, sieve, results, symbols, offsets, quick):
            break
        candidate = facts[candidate, SHORTER]
    cache[place, 0] = key
    cache[place, 1] = candidate
    return candidate


@kernel
def _encode(
    text: Any, ends: Any, keep: bool, trie: Any, whole: Any, facts: Any, cache: Any,
    keys: Any, ranks: Any, sieve: Any, results: Any, symbols: Any, offsets: Any, quick: bool,
) -> Any:  # fmt: skip
    """How many tokens the pieces of a text have, and the tokens, if they are kept; -1 if none spell a piece."""
    out = np.empty(text.size, np.int32)
    dead = np.zeros(text.size + 1, np.bool_)  # positions where no encoding has a border
    count, position, before = 0, 0, 0
    for end in ends:
        if not keep:
            before += count
            count = 0
        first, begin = count, position
        while position < end:
            left = out[count - 1] if count > first else NONE
            candidate = longest(trie, text, position, end)
            if len(whole) > 0 and position == begin and (candidate < 0 or position + facts[candidate, LENGTH] < end):
                entire = exactly(whole, text, begin, end)
                if entire >= 0:
                    out[count], position = entire, end
                    count += 1
                    break
            usual = facts[candidate, RUN] if candidate >= 0 else NONE
            if (
                usual >= 0
                and not dead[position + facts[usual, LENGTH]]
                and (left == usual or left < 0 or _fits_quickly(left, usual, NO_RANK, facts, keys, ranks, sieve))
            ):
                candidate = usual
            else:
                while candidate >= 0:
                    if left >= 0 and not (quick and _fits_quickly(left, candidate, NO_RANK, facts, keys, ranks, sieve)):
                        candidate = _choose(
                            left, candidate, cache, facts, keys, ranks, sieve, results, symbols, offsets, quick
                        )
                    if candidate < 0 or not dead[position + facts[candidate, LENGTH]]:
                        break
                    candidate = facts[candidate, SHORTER]
            if candidate >= 0:
                out[count] = candidate
                count += 1
                position += facts[candidate, LENGTH]
            elif count == first:
                return -1, out
            else:
                dead[position] = True
                count -= 1
                position -= facts[out[count], LENGTH]
    return before + count, out
