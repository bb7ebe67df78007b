"""Splitters of training data: where they cut, what is kept, and what is counted."""

from __future__ import annotations

import math
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from smalti.bpe.splitters import (
    AnySplitter,
    Chunks,
    EntropyFilter,
    Matches,
    NullDelimited,
    Random,
    Splitter,
    Whitespace,
    Whole,
    entropy,
)
from smalti.errors import ConfigError, InputError

SPLITTERS: list[Splitter] = [
    Whole(), Chunks(size=5), Random(length=4), NullDelimited(), Whitespace(), Whitespace(unicode=True), Matches(),
]  # fmt: skip
TEXT = "  a b\t\tcc  \x00\x00d\u2003e\u00a0 ".encode()


def pieces(splitter: Splitter, data: bytes, **options: Any) -> list[bytes]:
    return [bytes(view) for view in splitter.split(data, **options).views()]


@settings(deadline=None)  # kernels are compiled in between
@given(st.binary(max_size=60), st.sampled_from(SPLITTERS), st.integers(0, 9), st.floats(0, 1))
def test_pieces_cover_the_data_and_a_run_can_be_repeated(
    data: bytes, splitter: Splitter, seed: int, keep: float
) -> None:
    first = splitter.replace(keep=keep).split(data, rng=np.random.default_rng(seed))
    assert b"".join(map(bytes, first.views())) == data and all(len(view) for view in first.views())
    again = splitter.split(data, kept=first.kept)
    assert again.offsets.tolist() == first.offsets.tolist()


@settings(deadline=None)
@given(st.binary(max_size=60).map(lambda data: data.replace(b"\x01", b"\x00")))
def test_null_delimited_gives_the_runs(data: bytes) -> None:
    assert pieces(NullDelimited(), data) == [bytes(run) for _, run in groupby(data, key=lambda byte: byte == 0)]


@settings(deadline=None)
@given(st.text(st.sampled_from("ab \n\u2003\u00a0é"), max_size=40))
def test_white_space_gives_words_and_what_stands_between(text: str) -> None:
    runs = ["".join(run) for _, run in groupby(text, key=str.isspace)]
    assert pieces(Whitespace(unicode=True), text.encode()) == [run.encode() for run in runs]


def test_a_dropped_boundary_joins_word_space_and_word() -> None:
    assert pieces(Whitespace(), TEXT)[:6] == [b"  ", b"a", b" ", b"b", b"\t\t", b"cc"]
    joined = pieces(Whitespace(), TEXT, kept=[False, True, False])
    assert joined == [b"  ", b"a b", b"\t\t", "cc  \0\0d\u2003e\u00a0".encode(), b" "]
    for piece in pieces(Whitespace(keep=0.5), TEXT, rng=np.random.default_rng(3)):
        assert not piece.strip() or not piece[-1:].isspace()
    assert pieces(NullDelimited(), b"a\0\0b\0", kept=[False, True, True]) == [b"a\0\0", b"b", b"\0"]


def test_what_must_be_drawn_needs_a_generator_and_flags_their_number() -> None:
    with pytest.raises(ConfigError, match="generator"):
        Chunks(size=2, keep=0.5).split(b"abcdef")
    with pytest.raises(InputError, match="2 boundaries"):
        Chunks(size=2).split(b"abcdef", kept=[True])
    with pytest.raises(InputError, match="int64"):
        Whole().split(np.zeros(3, np.int64))


def test_memory_maps_are_cut_without_copies(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(TEXT)
    mapped = np.memmap(tmp_path / "data", np.uint8, "r")
    assert all(np.shares_memory(view, mapped) for view in NullDelimited().split(mapped).views())


def test_random_pieces_have_the_mean_length_that_is_asked_for() -> None:
    count = len(Random(length=50).split(bytes(200_000)))
    assert abs(count - 4000) < 4 * math.sqrt(4000)


def test_configurations_are_told_apart_by_their_type() -> None:
    adapter: TypeAdapter[Splitter] = TypeAdapter(AnySplitter)
    for splitter in SPLITTERS:
        assert adapter.validate_python(splitter.model_dump()) == splitter


@settings(deadline=None)
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=5))
def test_entropy_is_shannons(parts: list[bytes]) -> None:
    offsets = np.cumsum([0, *map(len, parts)])
    for part, bits in zip(parts, entropy(np.frombuffer(b"".join(parts), np.uint8), offsets), strict=True):
        shares = [count / len(part) for count in Counter(part).values()]
        assert bits == pytest.approx(-sum(share * math.log2(share) for share in shares))


def test_padding_and_compressed_data_are_dropped() -> None:
    data = bytes(4096) + b"some text, " * 372 + np.random.default_rng(0).bytes(4096)
    assert EntropyFilter().keeps(Chunks(size=4096).split(data)).tolist() == [False, True, False]
