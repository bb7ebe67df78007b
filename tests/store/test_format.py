"""docs/token-store.md is true: its vectors are what we pack, and its reader reads what we write."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from smalti.bits import pack_rows, unpack_rows
from smalti.image.photo import PhotoTokenizer
from smalti.store import TokenStore, encode_paths

PAGE = (Path(__file__).parents[2] / "docs" / "token-store.md").read_text()
VECTORS = re.findall(r"^\| ([\d, ]+) \| ([\d, ()]+) \| ([0-9a-f ]+) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("widths", "codes", "data"), VECTORS)
def test_vectors_of_the_page(widths: str, codes: str, data: str) -> None:
    sizes = [int(width) for width in widths.split(",")]
    values = np.array([int(code) for code in re.findall(r"\d+", codes)], dtype=np.int64).reshape(1, -1, len(sizes))
    packed = pack_rows(values, sizes)
    assert packed[0].tobytes() == bytes.fromhex(data)
    assert (unpack_rows(packed, values.shape[1], sizes) == values).all()


def test_there_are_vectors() -> None:
    assert len(VECTORS) == 4


def test_the_reader_of_the_page_reads_a_store(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    encode_paths([photos], tmp_path / "STORE", tokenizer, reference="tiny", shard_size=7)
    program = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert program is not None
    done = subprocess.run([sys.executable, "-c", program[1]], cwd=tmp_path, capture_output=True, text=True, check=True)
    store = TokenStore(tmp_path / "STORE")
    expected = [f"{name} codes {store[name].codes.flatten()[:8].tolist()}" for name in store.ids]
    assert done.stdout.splitlines() == expected


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
    assert done.stdout.splitlines() == [f"a codes {codes.flatten()[:8].tolist()}"]
