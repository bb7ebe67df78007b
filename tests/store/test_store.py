"""Encoding into a store, reading it in every way, decoding it, and going on with it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from smalti.errors import InputError, StoreError
from smalti.generate.autoregressive import AutoregressiveTransformer
from smalti.image.io import read_image
from smalti.image.photo import PhotoTokenizer
from smalti.nn.transformer import Transformer
from smalti.store import Progress, TokenDataset, TokenStore, decode_store, encode_again, encode_paths, verify
from smalti.store.encode import writing
from smalti.store.shard import file_hash
from smalti.tokens import Tokens


def encode(photos: Path, store: Path, tokenizer: PhotoTokenizer, **options: object) -> Progress:
    options = {"workers": 0, "shard_size": 8, "recipe": {"threads": 1}, **options}
    return encode_paths([photos], store, tokenizer, reference="tiny", **options)  # type: ignore[arg-type]


def test_the_store_holds_the_codes_that_encode_gives(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    done = encode(photos, tmp_path / "store", tokenizer)
    assert (done.encoded, done.failed, done.skipped) == (20, 0, 0)
    store = TokenStore(tmp_path / "store")
    assert len(store) == 20 and store.ids == sorted(file.name for file in photos.iterdir())
    for name in store.ids:
        assert store[name].equal(tokenizer.encode(read_image(photos / name)[None]))
    assert verify(tmp_path / "store").sound
    again = encode_again(tmp_path / "store", tokenizer, 100)
    assert (again.samples, again.differing) == (20, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer, workers: int) -> None:
    encode(photos, tmp_path / "one", tokenizer)
    encode(photos, tmp_path / "other", tokenizer, workers=workers)
    one, other = TokenStore(tmp_path / "one"), TokenStore(tmp_path / "other")
    assert one.ids == other.ids
    assert all(a.equal(b) for a, b in zip(one, other, strict=True))


def test_pandas_and_datasets_read_the_shards(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    encode(photos, tmp_path / "store", tokenizer)
    shards = tmp_path / "store" / "shards"
    frame = pd.read_parquet(shards)
    assert len(frame) == 20
    first = tokenizer.encode(read_image(photos / frame.id[0])[None])
    assert np.array_equal(frame.codes[0], first.codes.flatten().numpy())
    import datasets

    loaded = datasets.load_dataset("parquet", data_files=str(shards / "*.parquet"), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"][0]["codes"] == first.codes.flatten().tolist()


def test_a_dataset_feeds_a_generator(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    encode(photos, tmp_path / "store", tokenizer, recipe={"threads": 1, "size": 8})
    dataset = TokenDataset(tmp_path / "store", transform=lambda tokens: tokens)
    loader = DataLoader(TokenDataset(tmp_path / "store"), batch_size=8, collate_fn=Tokens.cat, num_workers=1)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [8, 8, 4] and len(dataset) == 20
    assert batches[1][3].equal(TokenStore(tmp_path / "store")[11])
    torch.manual_seed(0)
    sizes = Transformer.Config(width=32, layers=1, heads=2, hidden=32, context=8)
    generator = AutoregressiveTransformer.Config(streams=batches[0].spec, transformer=sizes).build()
    labels = torch.zeros(8, dtype=torch.int64)
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = generator(batches[0], label=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_decoding_writes_a_file_per_id(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    encode(photos, tmp_path / "store", tokenizer)
    result = decode_store(tmp_path / "store", tmp_path / "out", tokenizer, select="0*", suffix="png")
    assert len(result.written) == 10 and not result.failed
    original = read_image(photos / "03.png")
    expected = tokenizer.decode(tokenizer.encode(original[None]))[0]
    got = read_image(tmp_path / "out" / "03.png")
    assert got.shape == original.shape
    assert (got - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_a_second_run_encodes_only_what_is_new_or_failed(
    photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer
) -> None:
    broken = photos / "broken.png"
    broken.write_bytes(b"no picture")
    first = encode(photos, tmp_path / "store", tokenizer)
    assert (first.encoded, first.failed) == (20, 1)
    errors = [json.loads(line) for line in (tmp_path / "store" / "errors.jsonl").read_text().splitlines()]
    assert [error["id"] for error in errors] == ["broken.png"] and "not an image" in errors[0]["error"]
    shutil.copy(photos / "00.png", broken)
    shutil.copy(photos / "00.png", photos / "new.png")
    second = encode(photos, tmp_path / "store", tokenizer)
    assert (second.encoded, second.failed, second.already) == (2, 0, 20)
    assert (tmp_path / "store" / "errors.jsonl").read_text() == ""
    assert len(TokenStore(tmp_path / "store")) == 22
    assert verify(tmp_path / "store").sound


def test_a_size_rule_belongs_to_the_store(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    encode(photos, tmp_path / "store", tokenizer, recipe={"threads": 1, "size": 16})
    assert {tuple(tokens.side["size"][0].tolist()) for tokens in TokenStore(tmp_path / "store")} == {(16, 16)}  # type: ignore[union-attr]
    with pytest.raises(StoreError, match="size"):
        encode(photos, tmp_path / "store", tokenizer, recipe={"size": 12})


def test_another_tokenizer_is_refused(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    encode(photos, tmp_path / "store", tokenizer)
    torch.manual_seed(1)
    other = PhotoTokenizer.Config.tiny().build()
    for action in (
        lambda: encode(photos, tmp_path / "store", other),
        lambda: decode_store(tmp_path / "store", tmp_path / "out", other),
        lambda: encode_again(tmp_path / "store", other, 1),
    ):
        with pytest.raises(StoreError):
            action()


def test_a_second_writer_is_refused_and_a_dead_one_forgotten(
    photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer
) -> None:
    store = tmp_path / "store"
    ready, release = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with writing(store):
            os.write(ready[1], b"x")
            os.read(release[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(StoreError, match=f"pid {child}"):
        encode(photos, store, tokenizer)
    os.write(release[1], b"x")
    os.waitpid(child, 0)
    assert encode(photos, store, tokenizer).encoded == 20


@pytest.mark.skipif(sys.platform != "linux", reason="file names of arbitrary bytes exist on Linux only")
def test_odd_names_survive(tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    picture = Image.new("RGB", (8, 8))
    names = [
        b"new\nline.png",
        b"\xff\xfe.png",
        b"per%cent.png",
        b"x" * 251 + b".png",
        "grün 色.png".encode(),
        b"-o.png",
    ]
    for name in names:
        picture.save(os.path.join(os.fsencode(folder), name), "png")
    done = encode(folder, tmp_path / "store", tokenizer)
    assert (done.encoded, done.failed) == (len(names), 0)
    ids = TokenStore(tmp_path / "store").ids
    assert set(ids) == {
        "new%0Aline.png", "%FF%FE.png", "per%25cent.png", "x" * 251 + ".png", "grün 色.png", "-o.png"
    }  # fmt: skip
    assert verify(tmp_path / "store").sound
    assert encode(folder, tmp_path / "store", tokenizer).already == len(names)
    result = decode_store(tmp_path / "store", tmp_path / "out", tokenizer)
    assert len(result.written) == len(names)


def test_two_inputs_of_one_id_stop_the_run_before_it_starts(tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "same.png")
    with pytest.raises(InputError, match=r"same\.png"):
        encode_paths([tmp_path / "a", tmp_path / "b"], tmp_path / "store", tokenizer, reference="tiny")
    assert not (tmp_path / "store").exists()


def test_suffixes_decide_what_is_considered_and_content_what_reads_it(
    photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer
) -> None:
    shutil.copy(photos / "00.png", photos / "really-a-png.jpg")
    (photos / "notes.txt").write_text("no picture")
    (photos / "deep").mkdir()
    shutil.copy(photos / "00.png", photos / "deep" / "inner.png")
    (photos / "loop").symlink_to(photos)
    done = encode(photos, tmp_path / "store", tokenizer, recursive=True)
    assert (done.encoded, done.skipped) == (22, 1)
    assert "deep/inner.png" in TokenStore(tmp_path / "store").ids
    named = encode_paths([photos / "notes.txt"], tmp_path / "named", tokenizer, reference="tiny")
    assert (named.encoded, named.failed) == (0, 1)


def test_a_glob_narrows_the_inputs(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    assert encode(photos, tmp_path / "store", tokenizer, glob="1?.png").encoded == 10


def test_an_id_never_leads_outside_the_folder(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    encode(photos, tmp_path / "store", tokenizer, shard_size=100)
    shard = tmp_path / "store" / "shards" / "00000.parquet"
    table = pq.read_table(shard)
    evil = ["../escaped.png", "/tmp/escaped.png", *table.column("id").to_pylist()[2:]]
    pq.write_table(table.set_column(0, "id", [evil]), shard)
    header = json.loads((tmp_path / "store" / "store.json").read_text())
    header["shards"][0]["sha256"] = file_hash(shard)  # whoever forges a store forges its hashes too
    (tmp_path / "store" / "store.json").write_text(json.dumps(header))
    result = decode_store(tmp_path / "store", tmp_path / "out", tokenizer)
    assert [name for name, _ in result.failed] == ["../escaped.png", "/tmp/escaped.png"]
    assert not (tmp_path / "escaped.png").exists()


def test_codes_columns_stay_within_five_percent_of_their_bits(tmp_path: Path) -> None:
    from smalti.store.format import columns_of
    from smalti.store.shard import write_shard
    from smalti.store.table import to_table
    from smalti.tokens import Tokens

    rng = np.random.default_rng(0)
    for bits in (8, 10, 12, 13, 14, 16, 18, 20, 40):
        codes = torch.from_numpy(rng.integers(0, 2**bits, (2000, 256, 1)))
        rows = [Tokens.of(codes[i : i + 1], (2**bits,)) for i in range(len(codes))]
        columns = columns_of(rows[0].spec)
        write_shard(tmp_path / "x.parquet", to_table([str(i) for i in range(2000)], rows, columns), columns, [])
        group = pq.read_metadata(tmp_path / "x.parquet").row_group(0)
        size = sum(
            group.column(i).total_compressed_size
            for i in range(group.num_columns)
            if group.column(i).path_in_schema.startswith("codes")
        )
        assert size * 8 <= 1.05 * bits * codes.numel(), bits


def test_streams_and_slots_of_any_width_come_back(tmp_path: Path) -> None:
    from smalti.store.format import columns_of
    from smalti.store.shard import read_shard, write_shard
    from smalti.store.table import from_row, to_table
    from smalti.tokens import Stream, Tokens

    rng = np.random.default_rng(0)
    rows = []
    for index in range(5):
        coarse = torch.from_numpy(rng.integers(0, 200, (1, 2 + index, 2)))
        fine = torch.from_numpy(np.stack([rng.integers(0, v, (1, 3, 4)) for v in (9, 70000)], -1))
        wide = torch.from_numpy(rng.integers(0, 2**62, (1, 7, 1)))
        side = {"caption": (f"row {index}",), "scale": torch.tensor([0.5 * index]), "size": torch.tensor([[1, index]])}
        streams = {
            "coarse": Stream(coarse, (200, 200)),
            "fine": Stream(fine, (9, 70000)),
            "wide": Stream(wide, (2**62,)),
        }
        rows.append(Tokens(streams, side))
    columns = columns_of(rows[0].spec)
    assert [column.name for column in columns] == ["codes.coarse", "codes.fine.0", "codes.fine.1", "codes.wide"]
    write_shard(tmp_path / "x.parquet", to_table([f"{i}" for i in range(5)], rows, columns), columns, [])
    table = read_shard(tmp_path / "x.parquet")
    assert all(from_row(table, i, columns).equal(row) for i, row in enumerate(rows))
