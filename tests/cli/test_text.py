"""Text through `smalti encode`, `decode`, `verify`, `show` and `text`, as a user and a script meet them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from smalti import systems
from smalti.store import TokenStore
from tests.cli.conftest import Smalti
from tests.store.texts import write_texts
from tests.text.runs import RunTokenizer


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """`runs` is a system like any other."""
    own = {"name": "runs", "modality": ("text",), "entry": "tests.text.runs:RunTokenizer", "summary": "Runs of bytes."}
    record = replace(systems.find("binary-bpe"), status="works", ships=False, **own)
    monkeypatch.setattr(systems, "RECORDS", (*systems.RECORDS, record))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return RunTokenizer.Config().build().save(tmp_path_factory.mktemp("tokenizer") / "runs")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "in", {"a.txt": 5_000, "long.md": 60_000})


@pytest.fixture
def store(smalti: Smalti, texts: Path, runs: Path, tmp_path: Path) -> Path:
    assert (
        smalti("encode", texts, "-o", tmp_path / "store", "-t", runs, "--max-row", 1000, "--shard-bytes", 20_000).code
        == 0
    )
    return tmp_path / "store"


# --- encode, decode, verify ------------------------------------------------------------------------------------------


def test_text_goes_in_and_comes_back_byte_for_byte(smalti: Smalti, store: Path, texts: Path, tmp_path: Path) -> None:
    ran = smalti("decode", store, "-o", tmp_path / "out")
    files = list(texts.iterdir())
    assert ran.code == 0 and ran.out.strip() == f"{len(files)} files written to {tmp_path / 'out'}, 0 failed"
    assert all((tmp_path / "out" / file.name).read_bytes() == file.read_bytes() for file in files)
    ran = smalti("verify", store, "--again", 100)
    assert ran.code == 0 and f"{len(files)} samples in {len(TokenStore(store))} rows: sound" in ran.out
    assert f"{len(files)} samples encoded anew: 0 of " in ran.out


def test_encoding_says_how_fast_and_how_many(smalti: Smalti, texts: Path, runs: Path, tmp_path: Path) -> None:
    (texts / "picture.png").write_bytes(b"no text")
    ran = smalti("encode", texts, "-o", tmp_path / "store", "-t", runs)
    assert ran.code == 0 and not ran.err and "1 skipped" in ran.out and "MB/s" in ran.out
    ran = smalti("encode", texts, "-o", tmp_path / "other", "-t", runs, "--json")
    sizes = sum(file.stat().st_size for file in texts.iterdir()) - len(b"no text")
    assert ran.json["bytes"] == ran.json["planned_bytes"] == sizes
    assert ran.json["codes"] == sum(row.codes.shape[1] for row in TokenStore(tmp_path / "other"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", 64), "size means nothing to runs"),
        (("--threads", 2), "threads means nothing to runs"),
        (("--device", "cuda"), "works on the CPU"),
    ],
)
def test_options_of_pictures_are_refused(
    smalti: Smalti, texts: Path, runs: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    ran = smalti("encode", texts, "-o", tmp_path / "store", "-t", runs, *options)
    assert ran.code == 2 and message in ran.err and len(ran.err.splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_rows_are_refused_for_pictures(smalti: Smalti, pictures: Path, photo_folder: Path, tmp_path: Path) -> None:
    ran = smalti("encode", pictures, "-o", tmp_path / "store", "-t", photo_folder, "--max-row", 5)
    assert ran.code == 2 and "max_row means nothing to" in ran.err


def test_a_suffix_is_refused_for_text(smalti: Smalti, store: Path, tmp_path: Path) -> None:
    ran = smalti("decode", store, "-o", tmp_path / "out", "--suffix", "png")
    assert ran.code == 2 and "own name" in ran.err


def test_a_folder_without_text_is_code_2(smalti: Smalti, pictures: Path, runs: Path, tmp_path: Path) -> None:
    ran = smalti("encode", pictures, "-o", tmp_path / "store", "-t", runs)
    assert ran.code == 2 and "3 files were skipped, which are not text" in ran.err


def test_encoding_says_what_will_not_come_back(smalti: Smalti, texts: Path, tmp_path: Path) -> None:
    vocab = {"[UNK]": 0, "the": 1}
    file = {"model": {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "[UNK]"}, "decoder": {"type": "Fuse"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    given = ("encode", texts, "-r", "-t", tmp_path / "tokenizer.json")
    ran = smalti(*given, "-o", tmp_path / "store")
    assert ran.code == 0 and "decoding will not give back characters without a token" in ran.out
    assert smalti(*given, "-o", tmp_path / "other", "--json").json["losses"] == ["characters without a token"]


def test_bench_says_where_text_is_measured(smalti: Smalti, texts: Path, runs: Path) -> None:
    ran = smalti("bench", "reconstruct", "--data", texts, "-t", runs)
    assert ran.code == 2 and "smalti text stats" in ran.err


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_says_what_comes_back_and_how_many_ids_there_are(smalti: Smalti, runs: Path) -> None:
    for name in ("runs", runs):
        out = smalti("show", name).out
        assert "512 ids" in out and "yes: every byte comes back" in out
    ran = smalti("show", runs, "--json")
    assert ran.code == 0 and ran.json["name"] == "runs" and ran.json["vocabulary"] == 512 and ran.json["lossless"]


def test_show_prints_any_saved_folder(smalti: Smalti, photo_folder: Path) -> None:
    out = smalti("show", photo_folder).out
    assert "modality" in out and "image" in out and "codes hash" in out


# --- count -----------------------------------------------------------------------------------------------------------


def test_count_counts(smalti: Smalti, texts: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.bench.text.BLOCK", 10_000)  # the longer file is counted as a stream
    tokenizer = RunTokenizer.load(runs)
    wanted = {file.name: len(tokenizer.ids(file.read_bytes())) for file in texts.iterdir()}
    ran = smalti("text", "count", texts, "-t", runs, "--json", "--each")
    assert ran.code == 0 and {each["id"]: each["tokens"] for each in ran.json["files"]} == wanted
    assert ran.json["tokens"] == sum(wanted.values()) and ran.json["failed"] == []
    assert ran.json["bytes_per_token"] == pytest.approx(ran.json["bytes"] / ran.json["tokens"])
    ran = smalti("text", "count", texts, "-t", runs, "--each")
    assert f"{sum(wanted.values())} tokens" in ran.out and "long.md" in ran.out


def test_count_of_nothing_has_no_ratio(smalti: Smalti, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    ran = smalti("text", "count", tmp_path / "empty.txt", "-t", runs, "--json")
    assert ran.code == 0 and ran.json["tokens"] == 0 and ran.json["bytes_per_token"] is None


@pytest.mark.parametrize("command", ["count", "stats"])
def test_what_can_not_be_counted_is_code_2(
    smalti: Smalti, command: str, texts: Path, runs: Path, pictures: Path, photo_folder: Path
) -> None:
    for arguments, message in (
        ((pictures, "-t", runs), "no text among 1 paths"),
        ((texts / "nothing", "-t", runs), "does not exist"),
        ((texts, "-t", photo_folder), "tokenizes image, not text"),
        ((texts, "-t", "no-such-thing"), "no system is called"),
    ):
        ran = smalti("text", command, *arguments)
        assert ran.code == 2 and message in ran.err and len(ran.err.splitlines()) == 1


# --- stats -----------------------------------------------------------------------------------------------------------


def test_stats_of_files_and_of_their_store_are_the_same(smalti: Smalti, texts: Path, store: Path, runs: Path) -> None:
    of_files = smalti("text", "stats", texts, "-t", runs, "--json").json
    assert smalti("text", "stats", store, "--json").json == of_files
    both = smalti("text", "stats", store, texts, "--json").json
    assert both["tokens"] == 2 * of_files["tokens"] and both["entropy_bits_per_token"] == pytest.approx(
        of_files["entropy_bits_per_token"]
    )


def test_stats_are_those_of_a_corpus_that_one_can_count_by_hand(smalti: Smalti, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"aaaa" * 2 + b"b" + b"\xff" + b"aaaa" + b"b")  # tokens: aaaa 3, b 2, ff 1
    found = smalti("text", "stats", tmp_path / "a.txt", "-t", runs, "--json").json
    assert (found["samples"], found["bytes"], found["tokens"], found["used"]) == (1, 15, 6, 3)
    assert found["bytes_per_token"] == pytest.approx(15 / 6) and found["vocabulary"] == 512
    entropy = 0.5 + 1 / 3 * 1.5849625007 + 1 / 6 * 2.5849625007
    assert found["entropy_bits_per_token"] == pytest.approx(entropy)
    assert found["entropy_bits_per_byte"] == pytest.approx(entropy * 6 / 15)
    assert [(each["text"], each["hex"], each["count"]) for each in found["frequent"]] == [
        ("aaaa", "61616161", 3), ("b", "62", 2), ("\\xff", "ff", 1),
    ]  # fmt: skip
    assert found["token_lengths"] == {"1": pytest.approx(0.5), "4": pytest.approx(0.5)}
    assert found["unknown_share"] is None and found["lossless"] is True
    out = smalti("text", "stats", tmp_path / "a.txt", "-t", runs, "--top", 2).out
    assert '"aaaa"' in out and "2.500" in out and "3 of 512" in out and "none can be" in out


def test_unknown_tokens_are_counted(smalti: Smalti, texts: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = RunTokenizer.load(runs)
    unknown = int(tokenizer.ids(b"a")[0])
    monkeypatch.setattr(RunTokenizer, "unknown", property(lambda self: unknown))
    found = smalti("text", "stats", texts / "a.txt", "-t", runs, "--json").json
    ids = tokenizer.ids((texts / "a.txt").read_bytes())
    assert found["unknown_share"] == pytest.approx((ids == unknown).mean())


def test_stats_refuse_a_store_of_another_tokenizer(smalti: Smalti, store: Path, tmp_path: Path) -> None:
    other = RunTokenizer.Config(seed=3).build().save(tmp_path / "other")
    ran = smalti("text", "stats", store, "-t", other)
    assert ran.code == 2 and "another tokenizer" in ran.err


def test_stats_need_a_tokenizer(smalti: Smalti, texts: Path) -> None:
    ran = smalti("text", "stats", texts)
    assert ran.code == 2 and "--tokenizer" in ran.err


# --- convert ---------------------------------------------------------------------------------------------------------


def test_published_vocabularies_are_converted(smalti: Smalti, tmp_path: Path) -> None:
    from smalti.text.visual_unicode import VisualUnicode

    tokenizer = VisualUnicode.Config.tiny().build()
    published = tokenizer.save(tmp_path / "published")
    ran = smalti("convert", published / "tokenizer.json", "-s", "visual-unicode", "-o", tmp_path / "own", "--json")
    assert ran.code == 0 and ran.json["vocabulary"] == tokenizer.vocab[0]
    assert VisualUnicode.load(tmp_path / "own").ids("日本".encode()).tolist() == tokenizer.ids("日本".encode()).tolist()
    out = smalti("convert", published / "tokenizer.json", "-s", "visual-unicode", "-o", tmp_path / "own").out
    assert f"{tokenizer.vocab[0]} ids" in out and "smalti text stats FOLDER" in out
    (tmp_path / "config.yaml").write_text("a: 1\n")
    for options, message in (
        (("--config", tmp_path / "config.yaml"), "need no configuration"),
        (("--config", tmp_path / "none.yaml"), "can't be read"),
    ):
        ran = smalti("convert", published, "-s", "visual-unicode", "-o", tmp_path / "other", *options)
        assert ran.code == 2 and message in ran.err and not (tmp_path / "other").exists()
