"""Text into a store and back: rows in parts, whatever the blocks, shards and threads; every byte comes back."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from smalti.errors import ConfigError, InputError, StoreError, UnavailableError
from smalti.image.photo import PhotoTokenizer
from smalti.store import TokenDataset, TokenStore, decode_store, encode_again, encode_paths, verify
from smalti.store.kinds import coder_class
from smalti.store.media import considered
from smalti.text.base import IdArray, StreamDecoder, StreamEncoder
from smalti.tokens import Tokens
from tests.store.texts import check_rows, encode, expected_rows, noise, write_texts
from tests.text.runs import RunDecoder, RunEncoder, RunTokenizer

SIZES = {"a.txt": 5_000, "big.txt": 300_000, "c.md": 19_999, "long.py": 120_000, "z.txt": 1}


@pytest.fixture(scope="module")
def runs() -> RunTokenizer:
    return RunTokenizer.Config().build()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts") / "in", SIZES)


@pytest.fixture(scope="module")
def store(texts: Path, runs: RunTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It is only read."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    encode(texts, folder, runs)
    return folder


@pytest.mark.parametrize(
    ("max_row", "shard_bytes", "shard_size", "workers"),
    [
        (1000, 20_000, None, 2),
        (1000, 7_001, 3, 4),
        (50, 20_000, None, 1),
        (2**20, None, None, None),
        (4096, 3_000, 1, 0),
    ],
)
def test_rows_are_cut_from_the_ids_of_the_whole(
    texts: Path,
    tmp_path: Path,
    runs: RunTokenizer,
    max_row: int,
    shard_bytes: int | None,
    shard_size: int | None,
    workers: int | None,
) -> None:
    done = encode(
        texts, tmp_path / "store", runs,
        recipe={"max_row": max_row}, shard_bytes=shard_bytes, shard_size=shard_size, workers=workers,
    )  # fmt: skip
    sizes = [path.stat().st_size for path in texts.iterdir()]
    assert (done.encoded, done.failed, done.bytes, done.planned_bytes) == (len(sizes), 0, sum(sizes), sum(sizes))
    check_rows(tmp_path / "store", texts, runs, max_row)
    report = verify(tmp_path / "store")
    assert report.sound and report.samples == len(sizes)


def test_ids_and_parts_are_unique_and_only_last_rows_are_short(store: Path) -> None:
    frame = pd.read_parquet(store / "shards")
    assert not frame.duplicated(["id", "part"]).any()
    for _, rows in frame.groupby("id"):
        assert sorted(rows.part) == list(range(len(rows)))
        lengths = rows.sort_values("part").codes.map(len).tolist()
        assert all(length == 1000 for length in lengths[:-1]) and lengths[-1] <= 1000
        assert lengths[-1] > 0 or len(lengths) == 1
    assert frame[frame.id == "no bytes.txt"].codes.map(len).tolist() == [0]


def test_codes_take_the_smallest_type_and_few_bits(store: Path, tmp_path: Path, runs: RunTokenizer) -> None:
    import pyarrow.parquet as pq

    shard = next((store / "shards").glob("*.parquet"))
    assert str(pq.read_schema(shard).field("codes").type) == "list<element: uint16>"
    (tmp_path / "random.txt").write_bytes(np.random.default_rng(0).bytes(2_000_000))
    encode(tmp_path / "random.txt", tmp_path / "store", runs, recipe={}, shard_bytes=None)
    (shard,) = (tmp_path / "store" / "shards").iterdir()
    codes = len(runs.ids((tmp_path / "random.txt").read_bytes()))
    assert shard.stat().st_size * 8 <= 1.05 * 9 * codes


def test_shards_are_bounded_by_bytes_and_a_long_input_takes_several(store: Path) -> None:
    plan = [json.loads(line) for line in (store / "plan" / "00000.jsonl").read_text().splitlines()]
    assert all(sum(each["bytes"] for each in shard["inputs"]) <= 20_000 for shard in plan)
    pieces = [shard["inputs"] for shard in plan if shard["inputs"][0]["id"] == "big.txt"]
    assert len(pieces) == 15 and all(len(inputs) == 1 for inputs in pieces)
    assert [inputs[0]["piece"] for inputs in pieces] == list(range(15))
    assert [inputs[0]["until"] for inputs in pieces] == [*range(20_000, 300_000, 20_000), None]
    files = [f"{shard['shard']:05d}.parquet" for shard in plan if shard["inputs"][0]["id"] == "big.txt"]
    sizes = [pd.read_parquet(store / "shards" / file).codes.map(len).sum() for file in files]
    assert max(sizes) < 2.5 * min(sizes)


def test_the_header_says_format_2_and_nothing_of_networks(store: Path) -> None:
    header = json.loads((store / "store.json").read_text())
    assert header["format"] == 2 and header["recipe"] == {"max_row": 1000} and "torch" not in header
    assert header["samples"] == sum(entry["samples"] for entry in header["shards"]) == len(TokenStore(store).ids)
    assert sum(entry["rows"] for entry in header["shards"]) == len(TokenStore(store))


def test_stores_of_pictures_keep_format_1(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    encode_paths([photos], tmp_path / "store", tokenizer, reference="tiny")
    header = json.loads((tmp_path / "store" / "store.json").read_text())
    assert header["format"] == 1 and header["torch"] == torch.__version__
    assert all("rows" not in entry for entry in header["shards"])


def test_plans_that_older_versions_wrote_go_on(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    encode_paths([photos], tmp_path / "store", tokenizer, reference="tiny", shard_size=8)
    plan = tmp_path / "store" / "plan" / "00000.jsonl"
    rows = [json.loads(line) for line in plan.read_text().splitlines()]
    old = [{**row, "inputs": [{"id": i["id"], "path": i["path"]} for i in row["inputs"]]} for row in rows]
    plan.write_text("".join(json.dumps(row) + "\n" for row in old))
    (tmp_path / "store" / "shards" / "00001.parquet").unlink()
    assert encode_paths([photos], tmp_path / "store", tokenizer, reference="tiny").encoded == 8
    assert verify(tmp_path / "store").sound


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_sample_is_all_its_rows_and_a_number_is_one(store: Path, texts: Path, runs: RunTokenizer) -> None:
    opened = TokenStore(store)
    whole = runs.encode((texts / "long.py").read_bytes())
    assert opened["long.py"].equal(whole)
    parts = list(opened.parts("long.py"))
    assert [part.codes.shape[1] for part in parts[:-1]] == [1000] * (len(parts) - 1)
    numbers = opened.rows("long.py")
    assert all(opened[number].equal(part) for number, part in zip(numbers, parts, strict=True))
    assert {opened.id(number) for number in numbers} == {"long.py"}
    assert opened["no bytes.txt"].codes.shape == (1, 0, 1)
    for missing in (opened.parts, opened.codes, opened.rows, opened.__getitem__):
        with pytest.raises(KeyError, match="no sample"):
            missing("nothing.txt")


def test_a_dataset_gives_rows_to_workers(store: Path) -> None:
    loader = DataLoader(TokenDataset(store), batch_size=16, collate_fn=Tokens.cat, num_workers=1)
    lengths = torch.cat([batch.only.valid().sum(1) for batch in loader])
    assert lengths.tolist() == [row.codes.shape[1] for row in TokenStore(store)]
    assert len(pickle.loads(pickle.dumps(TokenStore(store)))) == len(lengths)


def test_tables_in_memory_are_bounded(store: Path) -> None:
    opened, whole = TokenStore(store, cache=100_000), TokenStore(store)
    opened = pickle.loads(pickle.dumps(opened))  # as workers of a data loader get it
    for number in np.random.default_rng(0).permutation(len(opened)).tolist():
        assert opened[number].equal(whole[number])
        assert sum(table.nbytes for table in opened._tables.values()) <= 100_000


# --- decoding --------------------------------------------------------------------------------------------------------


def test_every_byte_comes_back_under_its_own_name(
    store: Path, texts: Path, tmp_path: Path, runs: RunTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smalti.store.bytefiles.DECODED_AT_ONCE", 333)
    result = decode_store(store, tmp_path / "out", runs)
    assert not result.failed
    assert sorted(path.name for path in result.written) == sorted(path.name for path in texts.iterdir())
    assert all((tmp_path / "out" / path.name).read_bytes() == path.read_bytes() for path in texts.iterdir())


def test_some_are_decoded_and_none_as_pictures(store: Path, tmp_path: Path, runs: RunTokenizer) -> None:
    assert len(decode_store(store, tmp_path / "out", runs, select="*.md").written) == 1
    with pytest.raises(ConfigError, match="own name"):
        decode_store(store, tmp_path / "out", runs, suffix="png")
    with pytest.raises(StoreError, match="its decoder would give noise"):
        decode_store(store, tmp_path / "out", RunTokenizer.Config(seed=9).build())


def test_names_of_255_bytes_and_folders_survive(tmp_path: Path, runs: RunTokenizer) -> None:
    names = ["x" * 251 + ".txt", "deep/inner/a.txt", "per%cent.txt", "new\nline.txt"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    encode(tmp_path / "in", tmp_path / "store", runs, recursive=True)
    result = decode_store(tmp_path / "store", tmp_path / "out", runs)
    assert len(result.written) == 4 and not result.failed
    assert (tmp_path / "out" / names[0]).read_bytes() == names[0].encode()
    assert (tmp_path / "out" / names[1]).read_bytes() == names[1].encode()


# --- which files count -----------------------------------------------------------------------------------------------


def test_suffixes_and_customary_names_are_text(tmp_path: Path, runs: RunTokenizer) -> None:
    for name in ("a.TXT", "b.jsonl", "README", "Makefile", "c.bin", "d.png", "nothing", "e.html"):
        (tmp_path / name).write_text("text")
    done = encode(tmp_path, tmp_path / "store", runs)
    assert TokenStore(tmp_path / "store").ids == ["Makefile", "README", "a.TXT", "b.jsonl", "e.html"]
    assert done.skipped == 3
    named = encode([tmp_path / "c.bin", tmp_path / "nothing"], tmp_path / "named", runs)
    assert (named.encoded, named.skipped) == (2, 0)


def test_executables_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    pe = b"MZ" + b"\0" * 58 + (128).to_bytes(4, "little") + b"\0" * 64 + b"PE\0\0" + b"\0" * 20
    files = {
        "elf": (b"\x7fELF\x02\x01", True),
        "libx.so.1.2": (b"\x7fELF", True),
        "windows.exe": (pe, True),
        "dos.exe": (b"MZ" + b"\0" * 200, False),
        "short.exe": (b"MZ", False),
        "mac": (bytes.fromhex("cffaedfe") + b"\0" * 28, True),
        "mac.ppc": (bytes.fromhex("feedface") + b"\0" * 28, True),
        "fat": (bytes.fromhex("cafebabe00000002"), True),
        "Hello.class": (bytes.fromhex("cafebabe00000034"), False),
        "script.sh": (b"#!/bin/sh\n", False),
        "empty": (b"", False),
    }
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    counts = considered("executable")
    assert {name: counts(tmp_path / name) for name in files} == {name: is_one for name, (_, is_one) in files.items()}


def test_pipes_links_to_nowhere_and_folders_are_passed_over(tmp_path: Path, runs: RunTokenizer) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    (tmp_path / "in" / "folder.txt").mkdir()
    (tmp_path / "in" / "dangling.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "in" / "pipe.txt")
    done = encode(tmp_path / "in", tmp_path / "store", runs)
    assert (done.encoded, done.failed, done.skipped) == (1, 0, 2)


def test_two_inputs_of_one_id_stop_the_run(tmp_path: Path, runs: RunTokenizer) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.txt").write_text(name)
    with pytest.raises(InputError, match=r"same\.txt"):
        encode([tmp_path / "a", tmp_path / "b"], tmp_path / "store", runs)
    assert not (tmp_path / "store").exists()


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{"size": 8}, {"threads": 2}, {"device": "cpu"}, {"max_row": 0}])
def test_what_means_nothing_to_text_is_refused(
    texts: Path, tmp_path: Path, runs: RunTokenizer, asked: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(asked))):
        encode(texts, tmp_path / "store", runs, recipe=asked)
    assert not (tmp_path / "store").exists()


def test_rows_mean_nothing_to_pictures(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    with pytest.raises(ConfigError, match="max_row"):
        encode_paths([photos], tmp_path / "store", tokenizer, reference="tiny", recipe={"max_row": 5})


def test_a_store_keeps_its_rows(texts: Path, tmp_path: Path, runs: RunTokenizer) -> None:
    encode([texts / "a.txt"], tmp_path / "store", runs)
    with pytest.raises(StoreError, match="max_row"):
        encode(texts, tmp_path / "store", runs, recipe={"max_row": 999})
    encode(texts, tmp_path / "store", runs, recipe={})
    check_rows(tmp_path / "store", texts, runs)


def test_a_tokenizer_of_no_known_kind_is_refused() -> None:
    with pytest.raises(UnavailableError):
        coder_class(object())  # type: ignore[arg-type]


# --- wide codes ------------------------------------------------------------------------------------------------------


class WideTokenizer(RunTokenizer):
    """Ids of 30 bits, which are stored packed."""

    def __init__(self, config: RunTokenizer.Config, order: torch.Tensor) -> None:
        super().__init__(config, order)
        self.vocab = (2**30,)

    def stream_encoder(self) -> StreamEncoder:
        class Encoder(RunEncoder):
            def _encode(self, data: bytes, last: bool) -> IdArray:
                return super()._encode(data, last).astype(np.uint32) << 21

        return Encoder(self)

    def stream_decoder(self) -> StreamDecoder:
        class Decoder(RunDecoder):
            def push(self, ids: IdArray) -> bytes:
                return super().push(ids >> 21)

        return Decoder(self)


def test_packed_codes_come_back_too(texts: Path, tmp_path: Path) -> None:
    tokenizer = RunTokenizer.Config().build()
    wide = WideTokenizer(tokenizer.config, tokenizer.order)
    encode(texts, tmp_path / "store", wide)
    assert verify(tmp_path / "store").sound
    check_rows(tmp_path / "store", texts, wide)
    decode_store(tmp_path / "store", tmp_path / "out", wide)
    assert all((tmp_path / "out" / path.name).read_bytes() == path.read_bytes() for path in texts.iterdir())


# --- encoding anew ---------------------------------------------------------------------------------------------------


def test_encoding_anew_finds_what_changed(tmp_path: Path, runs: RunTokenizer) -> None:
    folder = write_texts(tmp_path / "in", {"a.txt": 50_000, "b.txt": 100})
    encode(folder, tmp_path / "store", runs)
    again = encode_again(tmp_path / "store", runs, 1000)
    assert again.samples == len(list(folder.iterdir())) and not again.differing and not again.unreadable
    (folder / "a.txt").write_bytes(noise(50_000, 0)[:40_000] + b"!")
    (folder / "b.txt").unlink()
    again = encode_again(tmp_path / "store", runs, 1000)
    old, new = (
        sum(map(len, expected_rows(runs, data, 1000))) for data in (noise(50_000, 0), (folder / "a.txt").read_bytes())
    )
    assert old - new <= again.differing <= old - new + 2
    assert [line.split(":")[0] for line in again.unreadable] == ["b.txt"]
