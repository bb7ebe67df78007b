"""SIGKILL at any moment of encoding text, then the same command again: the rows are those of one whole run."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from smalti.store import TokenStore, verify
from smalti.store.shard import file_hash
from tests.store.killing import killed
from tests.store.texts import check_rows, encode, write_texts
from tests.text.runs import RunTokenizer

MANY = {f"{index:03d}.txt": 25 * index for index in range(150)}
LARGE = {"large.txt": 300_000, "larger.txt": 400_000}


def kill_until_done(folder: Path, out: Path, tokenizer: RunTokenizer, kills: int, seed: int) -> None:
    encode(folder, out / "whole", tokenizer)
    hashes = {path.name: file_hash(path) for path in (out / "whole" / "shards").iterdir()}
    rng, done, round_ = random.Random(seed), 0, 0
    while done < kills:
        store = out / f"store{round_}"
        round_ += 1
        limit = 0.1  # seconds; it grows, so that a busy machine gets through too
        while True:
            run = partial(encode, folder, store, tokenizer, workers=rng.choice([1, 2, 4]))
            if not killed(run, rng.uniform(0, limit)):
                break
            done, limit = done + 1, limit * 1.1
            if (store / "store.json").exists():
                assert not verify(store).problems
                opened = TokenStore(store)
                for name in opened.ids:  # those that are there are whole
                    ids = tokenizer.ids((folder / name).read_bytes())
                    assert len(opened.rows(name)) == max(1, -(-len(ids) // 1000))
        assert verify(store).sound
        check_rows(store, folder, tokenizer)
        assert {path.name: file_hash(path) for path in (store / "shards").iterdir()} == hashes
        assert not list(store.rglob("*.tmp"))


@pytest.mark.parametrize("files", [MANY, LARGE], ids=["many files", "large files"])
def test_eight_kills(tmp_path: Path, files: dict[str, int]) -> None:
    folder = write_texts(tmp_path / "in", files)
    kill_until_done(folder, tmp_path, RunTokenizer.Config().build(), kills=8, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("files", [MANY, LARGE], ids=["many files", "large files"])
def test_five_hundred_kills(tmp_path: Path, files: dict[str, int]) -> None:
    folder = write_texts(tmp_path / "in", files)
    kill_until_done(folder, tmp_path, RunTokenizer.Config().build(), kills=500, seed=1)
