"""Whatever is wrong with a store or its inputs is found, named, and never becomes wrong codes."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.errors import SmaltiError, StoreError
from smalti.image.photo import PhotoTokenizer
from smalti.store import TokenStore, encode_paths, verify
from smalti.store import shard as shard_files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: PhotoTokenizer) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "in").mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "in" / f"{index:02d}.png")
    encode_paths([folder / "in"], folder / "store", tokenizer, reference="tiny", shard_size=4)
    return folder / "store"


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def test_every_flipped_bit_of_a_shard_is_found(store: Path) -> None:
    shard = store / "shards" / "00001.parquet"
    content = shard.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content) * 8, 400):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << (place % 8)
        shard.write_bytes(damaged)
        report = verify(store)
        assert any("00001.parquet" in problem for problem in report.problems), place


def test_reading_never_gives_wrong_codes(store: Path, whole: Path) -> None:
    """Page checksums find what damages a page even without the hashes; the footer may fail, or nothing is read."""
    shard = store / "shards" / "00001.parquet"
    content = shard.read_bytes()
    expected = list(TokenStore(whole))
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(content) * 8, 300):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << (place % 8)
        shard.write_bytes(damaged)
        try:
            rows = list(TokenStore(store))
        except (SmaltiError, KeyError, ValueError):
            continue
        assert all(a.codes.equal(b.codes) for a, b in zip(rows, expected, strict=True)), place


def test_every_truncation_is_found(store: Path) -> None:
    shard = store / "shards" / "00000.parquet"
    content = shard.read_bytes()
    for size in range(0, len(content), 64):
        shard.write_bytes(content[:size])
        assert not verify(store).sound


def test_missing_swapped_doubled_and_foreign_shards_are_found(store: Path) -> None:
    shards = store / "shards"
    first, second = shards / "00000.parquet", shards / "00001.parquet"
    shutil.copy(first, shards / "00009.parquet")
    assert any("00009.parquet is in no plan" in problem for problem in verify(store).problems)
    (shards / "00009.parquet").unlink()
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    assert len(verify(store).problems) == 2
    second.write_bytes(other)
    assert any("00000.parquet" in problem for problem in verify(store).problems)
    first.unlink()
    assert any("00000.parquet is listed" in problem for problem in verify(store).problems)


@pytest.mark.parametrize("field", ["format", "columns", "shards", "codes_hash", "recipe"])
def test_an_edited_header_is_refused_or_found(store: Path, field: str) -> None:
    header = json.loads((store / "store.json").read_text())
    del header[field]
    (store / "store.json").write_text(json.dumps(header))
    with pytest.raises(StoreError):
        verify(store)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": "1"}'])
def test_a_header_that_is_no_header_is_refused(store: Path, content: str) -> None:
    (store / "store.json").write_text(content)
    with pytest.raises(StoreError):
        TokenStore(store)


def test_a_header_can_not_point_outside_the_store(store: Path) -> None:
    header = json.loads((store / "store.json").read_text())
    header["shards"][0]["file"] = "../../etc/passwd"
    (store / "store.json").write_text(json.dumps(header))
    with pytest.raises(StoreError, match="outside"):
        TokenStore(store)


def test_damaged_files_of_many_kinds_are_recorded_and_the_rest_encoded(
    tmp_path: Path, photos: Path, tokenizer: PhotoTokenizer
) -> None:
    good = (photos / "00.png").read_bytes()
    Image.new("RGB", (64, 64)).save(tmp_path / "x.jpg")
    jpeg = (tmp_path / "x.jpg").read_bytes()
    bad = {
        "empty.png": b"",
        "text.jpg": b"hello",
        "truncated.png": good[: len(good) // 2],
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "header-only.png": good[:33],
        "wav.png": b"RIFF\x24\x00\x00\x00WAVEfmt ",
        "pdf.png": b"%PDF-1.4",
        "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }
    for name, content in bad.items():
        (photos / name).write_bytes(content)
    Image.new("1", (20000, 20000)).save(photos / "bomb.png")
    os.mkfifo(photos / "pipe.png")
    (photos / "dangling.png").symlink_to(tmp_path / "nowhere")
    (photos / "folder.png").mkdir()
    done = encode_paths([photos], tmp_path / "store", tokenizer, reference="tiny", workers=1, shard_size=7)
    assert done.encoded == 20
    errors = {
        json.loads(line)["id"]: json.loads(line)["error"]
        for line in (tmp_path / "store" / "errors.jsonl").read_text().splitlines()
    }
    assert set(errors) >= {*bad, "bomb.png"}
    assert all(len(error) > 10 for error in errors.values())
    assert verify(tmp_path / "store").sound


def test_a_full_disk_is_a_clear_error_and_the_store_goes_on_later(
    photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The k-th write fails, for every k until a run passes: the store is valid each time and ends complete."""
    store, failures = tmp_path / "store", 0
    for k in range(1, 60):
        calls = 0

        def failing(descriptor: int, k: int = k) -> None:
            nonlocal calls
            calls += 1
            if calls == k:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(shard_files.os, "fsync", failing)
        shutil.rmtree(store, ignore_errors=True)
        try:
            encode_paths([photos], store, tokenizer, reference="tiny", shard_size=5)
        except StoreError as error:
            assert "No space left" in str(error)
            failures += 1
        else:
            break
        finally:
            monkeypatch.undo()
        if (store / "store.json").exists():
            assert not verify(store).problems
        encode_paths([photos], store, tokenizer, reference="tiny", shard_size=5)
        assert verify(store).sound and len(TokenStore(store)) == 20
        assert not list(store.rglob("*.tmp"))
    assert failures > 10
