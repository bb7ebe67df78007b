"""Files of bytes for the stores of text, and what their rows must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from smalti.store import Progress, TokenStore, encode_paths
from smalti.testing.text import adversarial
from smalti.text.base import IdArray
from tests.text.runs import RunTokenizer


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes of four letters, so that there are runs of every length."""
    return np.random.default_rng(seed).integers(97, 101, size, np.uint8).tobytes()


def write_texts(folder: Path, sizes: dict[str, int]) -> Path:
    """A folder of files of so many bytes, and of bytes that tokenizers get wrong."""
    folder.mkdir()
    for seed, (name, size) in enumerate(sizes.items()):
        (folder / name).write_bytes(noise(size, seed))
    for name, data in adversarial().items():
        (folder / f"{name}.txt").write_bytes(data)
    return folder


def encode(paths: Path | list[Path], store: Path, tokenizer: RunTokenizer, **options: Any) -> Progress:
    """Encodes with rows of 1000 tokens and shards of 20 kB, unless other options are given."""
    named = paths if isinstance(paths, list) else [paths]
    options = {"recipe": {"max_row": 1000}, "shard_bytes": 20_000, "workers": 2, **options}
    return encode_paths(named, store, tokenizer, reference="runs", **options)


def expected_rows(tokenizer: RunTokenizer, data: bytes, max_row: int) -> list[IdArray]:
    """The rows of one sample, cut from the ids of the whole."""
    ids = tokenizer.ids(data)
    return [ids[start : start + max_row] for start in range(0, max(len(ids), 1), max_row)]


def check_rows(store: Path, folder: Path, tokenizer: RunTokenizer, max_row: int = 1000) -> None:
    """Whether a store holds exactly the samples of a folder, each with the rows that it must have."""
    opened = TokenStore(store)
    assert set(opened.ids) == {path.name for path in folder.iterdir()}
    total = 0
    for name in opened.ids:
        rows = [codes[:, 0] for codes in opened.codes(name)]
        wanted = expected_rows(tokenizer, (folder / name).read_bytes(), max_row)
        assert len(rows) == len(wanted), name
        assert all(np.array_equal(row, ids) for row, ids in zip(rows, wanted, strict=True)), name
        total += len(rows)
    assert len(opened) == total
