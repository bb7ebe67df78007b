"""Text and programs on the demo's page."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from smalti.bench.bytes_exhibit import BytesExhibit
from smalti.bench.demo import demo_programs, demo_text, exhibit_of
from smalti.bench.exhibit import Display, Source
from smalti.errors import InputError
from smalti.store import TokenStore
from smalti.text.base import IdArray, StreamDecoder, StreamEncoder
from smalti.text.equal_info import Counts, EqualInfoTokenizer
from tests.text.runs import RunDecoder, RunEncoder, RunTokenizer

FILES = {"poem.txt": b"aaaa <b>\n" * 40, "empty.txt": b"", "bytes.bin": bytes(range(256)) * 3}


class Shouting(RunTokenizer):
    """Says that nothing is lost, and gives capitals back."""

    def stream_decoder(self) -> StreamDecoder:
        return ShoutingDecoder(self)


class Honest(Shouting):
    """Says that something is lost."""

    lossless = False


class Picky(RunTokenizer):
    """Takes no zeros."""

    def stream_encoder(self) -> StreamEncoder:
        return PickyEncoder(self)


class PickyEncoder(RunEncoder):
    def push(self, data: bytes | memoryview) -> IdArray:
        if b"\0" in bytes(data):
            raise InputError("no zeros please")
        return super().push(data)


class ShoutingDecoder(RunDecoder):
    def push(self, ids: IdArray) -> bytes:
        return super().push(ids).upper()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    return Source([tmp_path / name for name in FILES], "Some files.", "Whose they are.")


def shown(kind: type[RunTokenizer], source: Source, out: Path) -> Display:
    exhibit = exhibit_of(made(kind), "runs", source, out)
    assert isinstance(exhibit, BytesExhibit)
    return exhibit.display(lambda doing: None)


def made(kind: type[RunTokenizer]) -> RunTokenizer:
    config = RunTokenizer.Config()
    return kind(config, config.build().order)


def test_the_table_counts_tokens_and_says_what_came_back(source: Source, tmp_path: Path) -> None:
    display = shown(RunTokenizer, source, tmp_path / "out")
    tokenizer = made(RunTokenizer)
    rows = {row[0]: row[1:] for row in display.comparison.rows}
    assert list(rows) == sorted(FILES) and not display.problems and display.title == "Text"
    for name, data in FILES.items():
        tokens = tokenizer.count(data)
        size, count, _, bits, zipped, _, back = rows[name]
        assert (size, count, back) == (f"{len(data):,}", f"{tokens:,}", "every byte")
        assert bits == f"{9 * tokens / 8:,.0f}" and zipped == f"{len(gzip.compress(data, 9, mtime=0)):,}"
    html = display.section.html()
    assert "Some files." in html and "Verified: it is sound" in html and ">aaaa</span>" in html and "&lt;" in html
    assert display.foot == ["Whose they are."]


def test_large_files_are_not_compressed(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.bench.bytes_exhibit.COMPRESSED", 400)
    rows = shown(RunTokenizer, source, tmp_path / "out").comparison.rows
    assert [row[5] == "-" for row in rows] == [len(FILES[row[0]]) > 400 for row in rows]


def test_programs_are_shown_in_hexadecimal_by_any_tokenizer(source: Source, tmp_path: Path) -> None:
    display = shown(RunTokenizer, replace(source, programs=True), tmp_path / "out")
    assert display.title == "Programs" and ">61616161</span>" in display.section.html()


def test_a_second_run_goes_on_with_the_store(source: Source, tmp_path: Path) -> None:
    first = shown(RunTokenizer, source, tmp_path / "out")
    (store,) = (tmp_path / "out").glob("text-*.store")
    times = {path: path.stat().st_mtime_ns for path in store.rglob("*.parquet")}
    assert len(TokenStore(store)) == len(FILES)
    assert shown(RunTokenizer, source, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*.parquet")} == times


def test_what_comes_back_changed_is_said(source: Source, tmp_path: Path) -> None:
    display = shown(Shouting, source, tmp_path / "out")
    assert "poem.txt came back changed" in " ".join(display.problems)
    display = shown(Honest, source, tmp_path / "other")
    assert not display.problems
    assert [row[-1] for row in display.comparison.rows] == [
        "with losses",
        "every byte",
        "with losses",
    ]


def test_tokens_that_mean_nothing_alone_are_numbers(source: Source, tmp_path: Path) -> None:
    tokenizer = EqualInfoTokenizer.Config(bits=32, token_bits=16, model=Counts(order=1)).build().fit([b"aaaa <b>"])
    exhibit = exhibit_of(tokenizer, "wide", source, tmp_path / "out")
    display = exhibit.display(lambda doing: None)
    assert not display.problems and f">[{tokenizer.ids(FILES['poem.txt'])[0]}]</span>" in display.section.html()


def test_empty_files_alone_have_no_mean(source: Source, tmp_path: Path) -> None:
    display = shown(RunTokenizer, Source(source.paths[1:2], "Nothing."), tmp_path / "out")
    assert not display.cards and display.comparison.rows[0][3] == "0.00"


def test_files_that_are_refused_are_named(source: Source, tmp_path: Path) -> None:
    display = shown(Picky, source, tmp_path / "out")
    assert [row[0] for row in display.comparison.rows] == ["empty.txt", "poem.txt"]
    assert display.problems == ["bytes.bin was skipped: no zeros please"]
    with pytest.raises(InputError, match=r"of 1 file none could be shown: bytes\.bin was skipped: no zeros"):
        shown(Picky, Source(source.paths[2:], ""), tmp_path / "other")


def test_the_demo_has_text_and_programs_of_its_own() -> None:
    text, programs = demo_text(), demo_programs()
    assert [path.name for path in text.paths] == ["METADATA", "console.py"]
    assert programs.paths and all(path.is_file() for path in (*text.paths, *programs.paths))
