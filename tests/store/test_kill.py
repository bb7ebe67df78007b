"""SIGKILL at any moment, then the same command again: no sample lost, none twice, no damaged shard."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from smalti.image.photo import PhotoTokenizer
from smalti.store import TokenStore, encode_paths, verify


def killed_run(photos: Path, store: Path, tokenizer: PhotoTokenizer, seconds: float, workers: int) -> bool:
    """Encodes in a forked process that is killed after some time. True if it was done before."""
    child = os.fork()
    if child == 0:
        try:
            # One thread: the thread pool of a forked process is not its own, and would be waited for for ever.
            one = {"threads": 1}
            encode_paths([photos], store, tokenizer, reference="tiny", shard_size=2, workers=workers, recipe=one)
        finally:
            os._exit(0)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


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
            finished = killed_run(photos, store, tokenizer, rng.uniform(0, limit), workers=rng.choice([0, 0, 0, 1]))
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
