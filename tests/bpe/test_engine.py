"""The trainer and the encoders against their definitions."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.bpe import Encoder, Merges, Training, train
from smalti.bpe.blocks import BlockEncoder, encode_parallel
from smalti.errors import ConfigError, InputError

LETTERS = (b"a", b"b", b"c")


def brute_force_training(
    segments: list[list[int]], symbols: int, vocab: int, min_count: int, lengths: Container[int]
) -> tuple[list[tuple[int, int]], list[int]]:
    """Counts everything anew for every merge."""
    segments = [list(segment) for segment in segments]
    spelling = {i: (i,) for i in range(symbols)}
    pairs, counts, refused = [], [], set()
    while len(spelling) < vocab:
        count = Counter(pair for segment in segments for pair in pairwise(segment))
        allowed = {
            pair: n
            for pair, n in count.items()
            if n >= min_count and pair not in refused and sum(len(spelling[t]) for t in pair) in lengths
        }
        if not allowed:
            break
        best = min(allowed, key=lambda pair: (-allowed[pair], pair))
        joined = spelling[best[0]] + spelling[best[1]]
        if joined in spelling.values():
            refused.add(best)
            continue
        token = len(spelling)
        spelling[token] = joined
        pairs.append(best)
        counts.append(allowed[best])
        segments = [merged(segment, best, token) for segment in segments]
    return pairs, counts


def merged(segment: list[int], pair: tuple[int, int], token: int) -> list[int]:
    out, place = [], 0
    while place < len(segment):
        if tuple(segment[place : place + 2]) == pair:
            out.append(token)
            place += 2
        else:
            out.append(segment[place])
            place += 1
    return out


def frontier_training(segments: list[list[int]], vocab: int, frontier: int) -> tuple[list[tuple[int, int]], int]:
    """As `bbpe`: of more than so many different pairs the rarest are forgotten. Gives merges, and how many were."""
    spelling = {i: (i,) for i in range(256)}
    count = Counter(pair for segment in segments for pair in pairwise(segment))
    pairs: list[tuple[int, int]] = []
    forgotten = 0
    while len(spelling) < vocab:
        kept = sorted(count, key=lambda pair: (-count[pair], pair))[:frontier]
        forgotten += len(count) - len(kept)
        count = Counter({pair: count[pair] for pair in kept})
        best = next(pair for pair in kept if sum(len(spelling[token]) for token in pair) <= 16)
        joined = spelling[best[0]] + spelling[best[1]]
        if joined in spelling.values():
            del count[best]
            continue
        token = len(spelling)
        spelling[token] = joined
        pairs.append(best)
        for place, segment in enumerate(segments):
            if best[0] not in segment:
                continue
            segments[place] = merged(segment, best, token)
            change = Counter(pairwise(segments[place]))
            change.subtract(pairwise(segment))
            for pair, by in change.items():
                if pair in count or token in pair:
                    count[pair] += by
        count = +count
    return pairs, forgotten


def brute_force_encoding(merges: Merges, symbols: list[int]) -> list[int]:
    """Byte pair encoding as it is defined: the best rule first, its leftmost place, one at a time."""
    ranks = {tuple(pair): rank for rank, pair in enumerate(merges.pairs.tolist())}
    parts = merges.base[symbols].tolist() if symbols else []
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not found:
            return parts
        rank, place = min(found)
        parts[place : place + 2] = [int(merges.results[rank])]


def letters(seed: int, size: int, alphabet: int = 3) -> Any:
    generator = np.random.default_rng(seed)
    words = [generator.integers(alphabet, size=generator.integers(1, 9)) for _ in range(20)]
    return np.concatenate([words[i] for i in generator.zipf(1.3, size) % 20])[:size].astype(np.uint8)


def trained(seed: int, vocab: int, alphabet: int = 3, size: int = 20_000) -> Merges:
    spellings = [bytes([97 + i]) for i in range(alphabet)]
    return train([letters(seed, size, alphabet)], spellings, Training(vocab=vocab, min_count=1, longest=32)).merges


def irregular(seed: int, rules: int) -> Merges:
    """Rules in any order: ranks that do not rise, and several rules for one token."""
    generator = np.random.default_rng(seed)
    spelling = {0: "a", 1: "b", 2: "c"}
    tokens = {text: token for token, text in spelling.items()}
    chosen: dict[tuple[int, int], int] = {}
    while len(chosen) < rules:
        left, right = (int(generator.integers(len(spelling))) for _ in range(2))
        joined = spelling[left] + spelling[right]
        if len(joined) > 6 or (left, right) in chosen:
            continue
        token = tokens.setdefault(joined, len(spelling))
        spelling[token] = joined
        chosen[left, right] = token
    order = generator.permutation(rules)
    pairs, results = np.array(list(chosen))[order], np.array(list(chosen.values()))[order]
    return Merges(np.arange(3), pairs, results)


class TestTraining:
    @pytest.mark.parametrize("seed", range(8))
    @pytest.mark.parametrize("longest", [2, 3, 16])
    def test_merges_are_those_of_counting_everything_anew(self, seed: int, longest: int) -> None:
        generator = np.random.default_rng(seed)
        segments = [letters(seed + 100 * i, int(generator.integers(0, 200)), 1 + seed % 4) for i in range(12)]
        alphabet = 1 + seed % 4
        spellings = [(i,) for i in range(alphabet)]
        ours = train(segments, spellings, Training(vocab=60, min_count=1 + seed % 3, longest=longest)).merges
        pairs, counts = brute_force_training(
            [s.tolist() for s in segments], alphabet, 60, 1 + seed % 3, range(longest + 1)
        )
        assert [tuple(pair) for pair in ours.pairs.tolist()] == pairs
        assert ours.counts.tolist() == counts

    @pytest.mark.parametrize("lengths", [{2, 4, 8}, {3}, {2, 3, 5, 40}, set()])
    def test_tokens_have_the_lengths_that_are_allowed(self, lengths: set[int]) -> None:
        segments = [letters(seed, 150, 3) for seed in range(6)]
        training = Training(vocab=40, min_count=1, longest=16, lengths=frozenset(lengths))
        ours = train(segments, [(i,) for i in range(3)], training).merges
        pairs, counts = brute_force_training([s.tolist() for s in segments], 3, 40, 1, {n for n in lengths if n <= 16})
        assert [tuple(pair) for pair in ours.pairs.tolist()] == pairs and ours.counts.tolist() == counts

    def test_forgetting_rare_pairs_as_the_official_trainer_does_changes_nothing(self) -> None:
        data = np.random.default_rng(0).zipf(1.2, 60_000).clip(1, 256).astype(np.int64) - 1
        segments = [data[start : start + 512] for start in range(0, len(data), 512)]
        vocab, frontier = 300, 1_000  # the official trainer forgets less: from max(10,000, 32 * vocab) pairs on
        theirs, forgotten = frontier_training([segment.tolist() for segment in segments], vocab, frontier)
        ours = train(segments, [(i,) for i in range(256)], Training(vocab=vocab, min_count=2, longest=16)).merges
        assert forgotten > 1_000
        assert [tuple(pair) for pair in ours.pairs.tolist()] == theirs

    def test_weights_count_as_repetition_does(self) -> None:
        segments = [letters(i, 50) for i in range(6)]
        weights = [1, 5, 2, 3, 1, 7]
        repeated = [segment for segment, weight in zip(segments, weights, strict=True) for _ in range(weight)]
        one = train(segments, LETTERS, Training(vocab=80), weights=weights).merges
        other = train(repeated, LETTERS, Training(vocab=80)).merges
        assert np.array_equal(one.pairs, other.pairs) and np.array_equal(one.counts, other.counts)

    @pytest.mark.parametrize("room", [1, 50, 3_000])
    def test_memory_changes_no_merge(self, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        segments = [letters(i, 3_000, 5) for i in range(4)]
        spellings = [(i,) for i in range(5)]
        training = Training(vocab=400, min_count=2)
        free = train(segments, spellings, training).merges
        monkeypatch.setattr("smalti.bpe.trainer._room", lambda corpus, memory: room)
        monkeypatch.setattr("smalti.bpe.pairs.SIEVE", (64, 1 << 6))
        tight = train(segments, spellings, training).merges
        assert np.array_equal(free.pairs, tight.pairs) and np.array_equal(free.counts, tight.counts)

    def test_merges_do_not_cross_segments(self) -> None:
        merges = train([np.array([0, 1])] * 9, LETTERS, Training(vocab=50, min_count=1)).merges
        assert merges.pairs.tolist() == [[0, 1]]

    def test_refused_spellings_make_no_token(self) -> None:
        training = Training(vocab=60, min_count=1)
        merges = train([letters(3, 4_000)], LETTERS, training, allowed=lambda s: not s.endswith(b"a")).merges
        spelled = [bytes(97 + c for c in merges.strings[t]) for t in merges.results]
        assert spelled and not any(each.endswith(b"a") for each in spelled)
        without = train([letters(3, 4_000)], LETTERS, training, taken=[spelled[0]]).merges
        assert spelled[0] not in [bytes(97 + c for c in without.strings[t]) for t in without.results]

    def test_it_says_why_it_stopped(self) -> None:
        segment = [letters(0, 5_000)]
        assert train(segment, LETTERS, Training(vocab=10)).stopped == "vocab"
        assert train(segment, LETTERS, Training(vocab=5_000, min_count=500)).stopped == "rare"
        assert train(segment, LETTERS, Training(vocab=5_000, max_merges=3)).stopped == "max_merges"
        assert train(segment, LETTERS, Training(vocab=5_000, patience=5)).stopped == "plateau"

    def test_counts_have_64_bits(self) -> None:
        merges = train([np.array([0, 1, 0])], LETTERS, Training(vocab=4), weights=[2**40]).merges
        assert merges.counts.tolist() == [2**40]

    def test_bad_input_is_refused(self) -> None:
        with pytest.raises(InputError, match="symbol"):
            train([np.array([0, 3])], LETTERS, Training(), base=[0, 1, 2, -1])
        with pytest.raises(InputError, match="symbol -1"):
            train([np.array([0, -1])], LETTERS, Training())
        with pytest.raises(ConfigError, match="no room"):
            train([np.array([0])], LETTERS, Training(vocab=2))
        with pytest.raises(ConfigError, match="MiB"):
            train([np.array([0])], LETTERS, Training(), memory=2**20)


class TestEncoding:
    @pytest.mark.parametrize("seed", range(4))
    def test_all_encoders_agree_on_random_strings(self, seed: int) -> None:
        encoder = Encoder(trained(seed, 500))
        generator = np.random.default_rng(seed)
        for _ in range(2_500):
            text = generator.integers(3, size=generator.integers(0, 60)).astype(np.uint8)
            tokens = encoder.encode(text)
            assert np.array_equal(tokens, encoder.by_rank(text))
        assert encoder.by_rank(text).tolist() == brute_force_encoding(encoder.merges, text.tolist())

    @given(st.integers(0, 10_000), st.lists(st.integers(0, 2), max_size=40))
    @settings(max_examples=150, deadline=None)
    def test_rules_in_any_order_are_encoded_as_defined(self, seed: int, symbols: list[int]) -> None:
        merges = irregular(seed, 40)
        encoder = Encoder(merges)
        text = np.array(symbols, np.uint8)
        wanted = brute_force_encoding(merges, symbols)
        assert encoder.encode(text).tolist() == wanted
        assert encoder.by_rank(text).tolist() == wanted

    def test_symbols_come_back(self) -> None:
        merges = trained(1, 300)
        text = letters(7, 5_000)
        assert np.array_equal(np.concatenate([merges.strings[t] for t in Encoder(merges).encode(text)]), text)

    @pytest.mark.parametrize("symbol", [0, 1, 2])
    def test_long_runs_take_linear_time(self, symbol: int) -> None:
        encoder = Encoder(trained(2, 400))
        text = np.full(1_000_000, symbol, np.uint8)
        assert np.array_equal(encoder.encode(text), encoder.by_rank(text))

    def test_long_tokens_do_not_make_other_symbols_slow(self) -> None:
        """What is noted of a symbol's runs takes as long as their own tokens are, not as the longest of all."""
        twice = [(0, 1), *((token, token) for token in range(256, 273))]  # ab, abab, ...
        merges = Merges(np.arange(256), np.array(twice), np.arange(256, 256 + len(twice)))
        started = time.process_time()
        assert Encoder(merges).longest_token == 2**18
        assert time.process_time() - started < 2

    def test_tokens_that_no_encoding_has_are_known(self) -> None:
        # "ab" comes before "bc", so "abc" is ab c; the rule a bc is never used.
        merges = Merges(np.arange(3), np.array([[0, 1], [1, 2], [0, 4]]), np.array([3, 4, 5]))
        encoder = Encoder(merges)
        assert encoder.unreachable == 1
        assert encoder.encode(np.array([0, 1, 2], np.uint8)).tolist() == [3, 2]

    def test_large_alphabets_are_encoded(self) -> None:
        generator = np.random.default_rng(0)
        text = (generator.zipf(1.5, 20_000) % 70_000).astype(np.int32)
        merges = train([text], [(i,) for i in range(70_000)], Training(vocab=70_500, min_count=2)).merges
        encoder = Encoder(merges)
        assert np.array_equal(encoder.encode(text), encoder.by_rank(text))

    def test_unknown_symbols_are_refused(self) -> None:
        encoder = Encoder(Merges(np.array([0, -1, 1]), np.zeros((0, 2)), np.zeros(0)))
        assert encoder.encode(np.array([0, 2], np.uint8)).tolist() == [0, 1]
        with pytest.raises(InputError, match="symbol 1 at 1"):
            encoder.encode(np.array([0, 1], np.uint8))
        with pytest.raises(InputError, match="symbol 9 at 0"):
            encoder.encode(np.array([9], np.uint8))


class TestBlocks:
    @given(st.integers(0, 50), st.integers(1, 400), st.lists(st.integers(0, 300), max_size=12), st.booleans())
    @settings(max_examples=150, deadline=None)
    def test_blocks_give_the_tokens_of_the_whole(self, seed: int, block: int, cuts: list[int], odd: bool) -> None:
        encoder = ENCODERS[odd][seed % 3]
        text = letters(seed, 1_000)
        if seed % 5 == 0:
            text[200:700] = seed % 3
        parts = np.split(text, np.cumsum(cuts))
        blocks = BlockEncoder(encoder, block=block)
        given = [blocks.push(part) for part in parts]
        position, count = blocks.position, sum(map(len, given))
        whole = encoder.encode(text)
        assert np.array_equal(np.concatenate([*given, blocks.finish()]), whole)
        assert np.array_equal(encoder.encode(text[position:]), whole[count:])
        assert blocks.position == len(text)

    @given(st.integers(0, 50), st.integers(2, 5), st.booleans())
    @settings(max_examples=60, deadline=None)
    def test_threads_give_the_tokens_of_one(self, seed: int, threads: int, odd: bool) -> None:
        encoder = ENCODERS[odd][seed % 3]
        text = letters(seed, 40_000)
        if seed % 4 == 0:
            text[7_000:33_003] = seed % 3
        assert np.array_equal(encode_parallel(encoder, text, threads, least=100), encoder.encode(text))

    def test_blocks_keep_little(self) -> None:
        encoder = ENCODERS[False][0]
        blocks = BlockEncoder(encoder, block=1_000)
        text = letters(1, 50_000)
        for start in range(0, len(text), 500):
            blocks.push(text[start : start + 500])
            assert start + 500 - blocks.position < 2_500


ENCODERS = (
    [Encoder(trained(seed, 200)) for seed in range(3)],
    [Encoder(irregular(seed, 60)) for seed in range(3)],
)
