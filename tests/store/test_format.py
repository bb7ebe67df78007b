"""docs/token-store.md is true: its vectors are what we pack, and its reader reads what we write."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from smalti.bits import pack_rows, unpack_rows
from smalti.image.photo import PhotoTokenizer
from smalti.store import TokenStore, encode_paths
from smalti.text.base import IdArray, StreamEncoder
from tests.store.texts import encode, write_texts
from tests.text.runs import RunEncoder, RunTokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "token-store.md").read_text()
VECTORS = re.findall(r"^\| ([\d, ]+) \| ([\d, ()]+) \| ([0-9a-f ]+) \|$", PAGE, re.MULTILINE)


ROWS = re.findall(r"^\| (\d+) \| (0: [^|]+) \|$", PAGE, re.MULTILINE)


def line(name: str, codes: torch.Tensor) -> str:
    """What the page's reader prints of a sample."""
    return f"{name} codes {codes.numel()} {codes.flatten()[:8].tolist()}"


@pytest.mark.parametrize(("widths", "codes", "data"), VECTORS)
def test_vectors_of_the_page(widths: str, codes: str, data: str) -> None:
    sizes = [int(width) for width in widths.split(",")]
    values = np.array([int(code) for code in re.findall(r"\d+", codes)], dtype=np.int64).reshape(1, -1, len(sizes))
    packed = pack_rows(values, sizes)
    assert packed[0].tobytes() == bytes.fromhex(data)
    assert (unpack_rows(packed, values.shape[1], sizes) == values).all()


def test_there_are_vectors() -> None:
    assert len(VECTORS) == 4 and len(ROWS) == 2


class ByteTokenizer(RunTokenizer):
    """A token per byte, under its own number."""

    def __init__(self) -> None:
        super().__init__(RunTokenizer.Config(), torch.arange(512))
        self.vocab = (256,)

    def stream_encoder(self) -> StreamEncoder:
        class Encoder(RunEncoder):
            def _encode(self, data: bytes, last: bool) -> IdArray:
                self.position += len(data)
                return np.frombuffer(data, np.uint8)

        return Encoder(self)


@pytest.mark.parametrize(("max_row", "rows"), ROWS)
def test_rows_in_parts_of_the_page(tmp_path: Path, max_row: str, rows: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"abcabca")
    encode_paths(
        [tmp_path / "a.txt"], tmp_path / "store", ByteTokenizer(), reference="bytes", recipe={"max_row": int(max_row)}
    )
    table = pq.read_table(tmp_path / "store" / "shards")
    assert (
        str(table.schema.field("codes").type) == "list<element: uint8>"
        and str(table.schema.field("part").type) == "int32"
    )
    expected = [
        {"id": "a.txt", "part": int(part), "codes": [int(code) for code in codes.split()]}
        for part, codes in (row.split(":") for row in rows.split(";"))
    ]
    assert table.to_pylist() == expected


def test_the_reader_of_the_page_reads_a_store(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    encode_paths([photos], tmp_path / "STORE", tokenizer, reference="tiny", shard_size=7)
    program = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert program is not None
    done = subprocess.run([sys.executable, "-c", program[1]], cwd=tmp_path, capture_output=True, text=True, check=True)
    store = TokenStore(tmp_path / "STORE")
    assert done.stdout.splitlines() == [line(name, store[name].codes) for name in store.ids]


def test_the_reader_of_the_page_reads_packed_codes(tmp_path: Path) -> None:
    from smalti.store.format import columns_of
    from smalti.store.shard import write_shard
    from smalti.store.table import to_table
    from smalti.tokens import Tokens

    codes = torch.from_numpy(np.random.default_rng(0).integers(0, [2**40, 2**20], (1, 3, 2, 2)))
    tokens = Tokens.of(codes, (2**40, 2**20))
    columns = columns_of(tokens.spec)
    (tmp_path / "STORE" / "shards").mkdir(parents=True)
    write_shard(tmp_path / "STORE" / "shards" / "0.parquet", to_table(["a"], [tokens], columns), columns, [])
    header = {"columns": [column.to_json() for column in columns], "shards": [{"file": "0.parquet"}]}
    (tmp_path / "STORE" / "store.json").write_text(json.dumps(header))
    program = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert program is not None
    done = subprocess.run([sys.executable, "-c", program[1]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [line("a", codes)]


def test_the_reader_of_the_page_joins_parts(tmp_path: Path) -> None:
    runs = RunTokenizer.Config().build()
    encode(write_texts(tmp_path / "in", {"a.txt": 70_000}), tmp_path / "STORE", runs)
    program = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert program is not None
    done = subprocess.run([sys.executable, "-c", program[1]], cwd=tmp_path, capture_output=True, text=True, check=True)
    store = TokenStore(tmp_path / "STORE")
    assert done.stdout.splitlines() == [line(name, store[name].codes) for name in store.ids]
