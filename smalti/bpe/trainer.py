"""Training of byte pair encoding: the most frequent pair becomes a token, again and again.

    segments ──Corpus──► pairs and their counts ──best──► allowed? ──yes──► a token, merged everywhere ──► next
                                                   └────── no ──► never offered again

Of equally frequent pairs the one with the smaller (left id, right id) is merged. Counts are 64 bits wide. Symbols may
be bytes, characters or any integers: the trainer only needs to know how each is spelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field

import smalti.config
from smalti.bpe.corpus import Corpus, Pieces
from smalti.bpe.pairs import Pairs
from smalti.bpe.vocabulary import Merges
from smalti.errors import ConfigError

Spelling = TypeVar("Spelling", bytes, str, tuple[int, ...])

OVERHEAD = 700 * 2**20  # bytes beside corpus and places: the interpreter, tables that count
PLATEAU_COUNT, PLATEAU_SHARE = 128, 512  # a merge is on the plateau if it is as rare as this


class Training(smalti.config.Config):
    """How merges are chosen.

    Args:
        vocab: ids in all, those of symbols and reserved tokens included.
        min_count: pairs that are rarer are not merged.
        longest: symbols that a token may have.
        lengths: how many it may have, if not every number up to that.
        duplicates: what a pair becomes whose spelling is a token already: "refused" (there is no second way to make a
            token, as in `bbpe`) or "reused" (its merge makes that token, as in Hugging Face's trainer).
        patience: stop after this many merges in a row on the plateau: at most 128 occurrences, or at most 1/512 of the
            first merge's. None never does.
        max_merges: stop after this many merges.
    """

    vocab: int = Field(16384, ge=1)
    min_count: int = Field(2, ge=1)
    longest: int = Field(16, ge=2)
    lengths: frozenset[int] | None = None
    duplicates: Literal["refused", "reused"] = "refused"
    patience: int | None = Field(None, ge=1)
    max_merges: int | None = Field(None, ge=0)


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Args:
        merges: the vocabulary, with counts.
        stopped: why it ended: "vocab" (it is full), "rare" (no pair is frequent enough), "plateau", "max_merges".
    """

    merges: Merges
    stopped: Literal["vocab", "rare", "plateau", "max_merges"]


def train(
    segments: Pieces | Iterable[Any],
    spellings: Sequence[Spelling],
    training: Training,
    *,
    base: Any = None,
    learned: int | None = None,
    taken: Iterable[Spelling] = (),
    reserved: Mapping[Spelling, int] | None = None,
    allowed: Callable[[Spelling], bool] | None = None,
    weights: Iterable[int] | None = None,
    memory: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Trained:
    """Trains a vocabulary. Merges never cross segments, and are the same whatever the memory.

    Args:
        segments: integer arrays of symbols, or `Pieces` of such.
        spellings: of each symbol.
        training: how merges are chosen.
        base: the token of each symbol; by default the symbol itself.
        learned: the id of the first merge's result, above those of symbols and reserved tokens; by default the number
            of symbols.
        taken: spellings of reserved tokens, which merges may not make.
        reserved: ids of reserved tokens that merges make, if they spell them and duplicates are reused.
        allowed: whether a token may be spelled so; by default always.
        weights: how often each segment counts; by default once.
        memory: bytes that the process may use, about; by default as many as help.
        report: called with (merges so far, merges wanted).

    Raises:
        InputError: if a symbol has no spelling or no token.
        ConfigError: if the vocabulary has no room beyond symbols and reserved tokens, or the memory is too little.
    """
    ids = np.arange(len(spellings), dtype=np.int32) if base is None else np.asarray(base, np.int32)
    first = int(ids.max(initial=-1)) + 1 if learned is None else learned
    if first > training.vocab:
        raise ConfigError(f"a vocabulary of {training.vocab} has no room for {first} symbols and reserved tokens")
    counts = None if weights is None else np.fromiter(weights, np.int64)
    corpus = Corpus.of(Pieces.joined([segments] if isinstance(segments, Pieces) else segments), ids, counts)
    lengths = np.ones(training.vocab, np.int64)
    pairs = Pairs(corpus, lengths, _sizes(training), training.min_count, _room(corpus, memory))
    chosen = _Chosen(ids, spellings, first, taken, reserved or {})
    wanted = training.vocab - first
    stopped = _run(pairs, chosen, lengths, training, allowed, wanted, report or (lambda done, total: None))
    return Trained(chosen.merges(), stopped)


class _Chosen:
    """The merges so far, and how each token is spelled."""

    def __init__(
        self, base: Any, spellings: Sequence[Any], first: int, taken: Iterable[Any], reserved: Mapping[Any, int]
    ) -> None:
        self.base, self.next = base, first
        self.spelling: dict[int, Any] = dict(zip(base.tolist(), spellings, strict=True))
        self.token = {spelling: token for token, spelling in self.spelling.items()} | dict(reserved)
        self.spelling |= {token: spelling for spelling, token in reserved.items()}
        self.taken = set(taken)
        self.pairs: list[tuple[int, int]] = []
        self.results: list[int] = []
        self.counts: list[int] = []

    def spelled(self, left: int, right: int) -> Any:
        return self.spelling[left] + self.spelling[right]

    def add(self, left: int, right: int, count: int) -> tuple[int, bool]:
        """The token that a pair becomes, and whether there was one already."""
        spelling = self.spelled(left, right)
        known = spelling in self.token
        if not known:
            self.token[spelling], self.spelling[self.next] = self.next, spelling
            self.next += 1
        token = self.token[spelling]
        self.pairs.append((left, right))
        self.results.append(token)
        self.counts.append(count)
        return token, known

    def merges(self) -> Merges:
        pairs = np.asarray(self.pairs, np.int32).reshape(-1, 2)
        return Merges(
            self.base, pairs, np.asarray(self.results, np.int32), np.asarray(self.counts, np.int64), self.next
        )


def _run(
    pairs: Pairs,
    chosen: _Chosen,
    lengths: Any,
    training: Training,
    allowed: Callable[[Any], bool] | None,
    wanted: int,
    report: Callable[[int, int], None],
) -> Literal["vocab", "rare", "plateau", "max_merges"]:
    """Merges until something says stop."""
    flat, highest = 0, 0
    while chosen.next < training.vocab:
        if training.max_merges is not None and len(chosen.pairs) >= training.max_merges:
            return "max_merges"
        best = pairs.best()
        if best is None:
            return "rare"
        left, right, count = best
        spelling = chosen.spelled(left, right)
        double = spelling in chosen.taken or (training.duplicates == "refused" and spelling in chosen.token)
        if double or (allowed is not None and not allowed(spelling)):
            pairs.drop(left, right)
            continue
        token, known = chosen.add(left, right, count)
        lengths[token] = lengths[left] + lengths[right]
        pairs.merge(left, right, token, known=known)
        report(len(chosen.pairs), wanted)
        highest = highest or count
        rare = count <= max(PLATEAU_COUNT, training.min_count) or count * PLATEAU_SHARE <= highest
        flat = flat + 1 if rare else 0
        if training.patience is not None and flat >= training.patience:
            return "plateau"
    return "vocab"


def _sizes(training: Training) -> tuple[int, Any]:
    """The most symbols of a token, and which numbers of them are allowed; no flags if all are."""
    if training.lengths is None:
        return training.longest, np.zeros(0, np.bool_)
    longest = min(training.longest, max(training.lengths, default=0))
    return longest, np.array([size in training.lengths for size in range(longest + 1)], np.bool_)


def _room(corpus: Corpus, memory: int | None) -> int:
    """How many places of pairs are kept."""
    every = 2 * len(corpus.tokens)  # more is never used
    if memory is None:
        return every
    least = corpus.nbytes + OVERHEAD
    if memory < least + corpus.nbytes // 16:
        raise ConfigError(
            f"{len(corpus.tokens)} symbols need at least {(least + corpus.nbytes // 16) / 2**20:.0f} MiB, "
            f"got {memory / 2**20:.0f}: allow more, or train on a part of them"
        )
    return min(every, (memory - least) // 4)
