"""The rules of byte pair encoding: symbols, and the pairs of tokens that become one, best first.

    symbol ──base──► token id        (left id, right id) ──► result id, in the order of their ranks

Symbols are any integers from 0: bytes, characters, speech units. Ids are any too: published vocabularies begin with
special tokens, leave holes, or hold tokens that no rule makes. A result may have several rules, as in vocabularies that
were written as ranks of strings (tiktoken); nothing here or in the encoders assumes that it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from smalti.errors import ConfigError

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int32]]
CountArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

MAX_TOKENS = 2**31 - 2  # ids are int32, and one value marks borders


@dataclass(frozen=True, eq=False)
class Strings:
    """The symbols of every token, one after another.

    Args:
        symbols: of all tokens in the order of their ids.
        offsets: (tokens + 1,): where each token's symbols begin. A token that no rule makes has none.
    """

    symbols: IntArray
    offsets: CountArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, token: int | np.integer[Any]) -> IntArray:
        return self.symbols[self.offsets[token] : self.offsets[token + 1]]

    @property
    def lengths(self) -> CountArray:
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class Merges:
    """A vocabulary of byte pair encoding.

    Args:
        base: (symbols,): the token of each symbol, -1 for symbols that have none.
        pairs: (merges, 2): the tokens that become one, in the order of their ranks.
        results: (merges,): what they become.
        counts: (merges,): how often each pair stood in the training data when it was merged; empty if not known.
        size: number of ids; by default one more than the largest.
        tied: whether rules in a row that make the same token have the same rank, so that the leftmost place decides
            between them, as in vocabularies that are ranks of strings (tiktoken).

    Raises:
        ConfigError: if an id is out of range, two rules have the same pair, or a rule uses a token that neither a
            symbol nor another rule makes.
    """

    base: IntArray
    pairs: IntArray
    results: IntArray
    counts: CountArray = field(default_factory=lambda: np.zeros(0, np.int64))
    size: int = -1
    tied: bool = False

    def __post_init__(self) -> None:
        base, pairs, results = (np.ascontiguousarray(x, np.int32) for x in (self.base, self.pairs, self.results))
        pairs = pairs.reshape(-1, 2)
        for name, value in (("base", base), ("pairs", pairs), ("results", results)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "counts", np.ascontiguousarray(self.counts, np.int64))
        top = max((int(x.max()) for x in (base, pairs, results) if x.size), default=-1)
        if self.size < 0:
            object.__setattr__(self, "size", top + 1)
        self._check(top)

    def _check(self, top: int) -> None:
        if len(self.pairs) != len(self.results) or len(self.counts) not in (0, len(self.pairs)):
            raise ConfigError(f"{len(self.pairs)} pairs, {len(self.results)} results, {len(self.counts)} counts")
        if top >= self.size or self.size > MAX_TOKENS:
            raise ConfigError(f"ids reach to {top} in a vocabulary of {self.size}")
        lowest = min((int(x.min()) for x in (self.pairs, self.results) if x.size), default=0)
        if lowest < 0:
            raise ConfigError(f"a merge has the id {lowest}")
        symbols = self.base[self.base >= 0]
        if len(np.unique(symbols)) != len(symbols):
            raise ConfigError("two symbols have one token")
        if len(np.unique(self.keys)) != len(self.pairs):
            raise ConfigError("two merges have the same pair")
        if np.isin(self.results, symbols).any():
            raise ConfigError("a merge makes the token of a symbol")

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def keys(self) -> CountArray:
        """(merges,): each pair as one number, left * 2^32 + right."""
        return (self.pairs[:, 0].astype(np.int64) << 32) | self.pairs[:, 1]

    @property
    def ranks(self) -> IntArray:
        """(merges,): the rank of each rule, the number of the first that has it."""
        own = np.arange(len(self), dtype=np.int32)
        if not self.tied:
            return own
        first = np.ones(len(self), np.bool_)
        first[1:] = self.results[1:] != self.results[:-1]
        return np.maximum.accumulate(np.where(first, own, 0)).astype(np.int32)

    @cached_property
    def strings(self) -> Strings:
        """The symbols of every token.

        Raises:
            ConfigError: if the rules of a token disagree, or use a token that nothing makes.
        """
        known: list[IntArray | None] = [None] * self.size
        for symbol, token in enumerate(self.base.tolist()):
            if token >= 0:
                known[token] = np.array([symbol], np.int32)
        waiting = list(zip(self.pairs.tolist(), self.results.tolist(), strict=True))
        while waiting:  # one round, but for vocabularies that were reordered by hand
            later = []
            for (left, right), result in waiting:
                one, other = known[left], known[right]
                if one is None or other is None:
                    later.append(([left, right], result))
                    continue
                joined = np.concatenate([one, other])
                before = known[result]
                if before is not None and not np.array_equal(before, joined):
                    raise ConfigError(f"token {result} is made of different symbols by different merges")
                known[result] = joined
            if len(later) == len(waiting):
                raise ConfigError(f"the merge of {later[0][0]} uses a token that no merge makes")
            waiting = later
        empty = np.zeros(0, np.int32)
        strings = [empty if each is None else each for each in known]
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in strings])]).astype(np.int64)
        return Strings(np.concatenate(strings) if strings else empty, offsets)

    @cached_property
    def regular(self) -> bool:
        """Whether every result has one rule, whose rank is above those of the rules of its parts.

        That holds for what a trainer gives. Encoders work out how the tokens of other vocabularies are made.
        """
        if len(np.unique(self.results)) != len(self.results):
            return False
        rank = np.full(self.size, -1, np.int64)
        rank[self.results] = np.arange(len(self))
        own = np.arange(len(self))
        return bool((rank[self.pairs] < own[:, None]).all())

    def first(self, merges: int) -> Merges:
        """The vocabulary of the first merges only; ids stay."""
        return Merges(self.base, self.pairs[:merges], self.results[:merges], self.counts[:merges], tied=self.tied)

    @classmethod
    def of_bytes(cls, pairs: Sequence[tuple[int, int]] | IntArray, *, first: int = 0, learned: int = 256) -> Merges:
        """Rules over bytes in the usual layout of ids.

        Args:
            pairs: in the order of their ranks.
            first: id of byte 0.
            learned: id of the first result; results follow one another.
        """
        rules = np.asarray(pairs, np.int32).reshape(-1, 2)
        base = np.arange(first, first + 256, dtype=np.int32)
        return cls(base, rules, np.arange(learned, learned + len(rules), dtype=np.int32))
