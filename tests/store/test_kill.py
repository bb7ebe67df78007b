"""SIGKILL at any moment, then the same command again: no sample lost, none twice, no damaged shard."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from smalti.image.photo import PhotoTokenizer
from smalti.store import TokenStore, encode_paths, verify
from tests.store.killing import killed


def check(store: Path, expected: list[str]) -> None:
    assert not verify(store).problems
    assert not set(TokenStore(store).ids) - set(expected)


def kill_until_done(photos: Path, folder: Path, tokenizer: PhotoTokenizer, kills: int, seed: int) -> None:
    expected = sorted(file.name for file in photos.iterdir())
    reference = dict.fromkeys(expected)
    rng = random.Random(seed)
    done = 0
    round_ = 0
    while done < kills:
        store = folder / f"store{round_}"
        round_ += 1
        limit = 0.2  # seconds; it grows, so that a busy machine gets through too
        while True:
            # One thread: the thread pool of a forked process is not its own, and would be waited for for ever.
            run = partial(
                encode_paths, [photos], store, tokenizer, reference="tiny", shard_size=2, recipe={"threads": 1},
                workers=rng.choice([0, 0, 0, 1]),
            )  # fmt: skip
            finished = not killed(run, rng.uniform(0, limit))
            limit *= 1.1
            if (store / "store.json").exists():
                check(store, expected)
            if finished:
                break
            done += 1
        assert verify(store).sound
        assert Counter(TokenStore(store).ids) == Counter(expected)
        for name, tokens in zip(expected, (TokenStore(store)[name] for name in expected), strict=True):
            reference[name] = reference[name] or tokens  # type: ignore[assignment]
            assert tokens.equal(reference[name])  # type: ignore[arg-type]


def test_twenty_kills(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    kill_until_done(photos, tmp_path, tokenizer, kills=20, seed=0)


@pytest.mark.slow
def test_a_thousand_kills(photos: Path, tmp_path: Path, tokenizer: PhotoTokenizer) -> None:
    kill_until_done(photos, tmp_path, tokenizer, kills=1000, seed=1)
