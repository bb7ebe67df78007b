"""The text engine beside `tokenizers` and tiktoken: 32,768 tokens, code, prose of many scripts, and executables."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from smalti.bpe.alphabets import GPT2
from smalti.bpe.tiktoken import ranks_of
from smalti.text.tokenizer_json import JsonTokenizer
from smalti.text.training import TextTraining, train_text

tokenizers = pytest.importorskip("tokenizers")
tiktoken = pytest.importorskip("tiktoken")
DATA = Path("../shared/data/text")
GPT2_RUST = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason="the shared texts are not here")]


@pytest.fixture(scope="module")
def ours() -> JsonTokenizer:
    texts = [text for name in ("code/python_stdlib.jsonl", "tatoeba/train.jsonl") for text in lines(name)]
    return JsonTokenizer(JsonTokenizer.Config(), train_text(texts, TextTraining()).dump())


def lines(name: str) -> list[str]:
    return [json.loads(line)["text"] for line in (DATA / name).read_text().splitlines()]


def text(kind: str) -> str:
    if kind == "code":
        return "".join(lines("code/cpp_headers.jsonl") + lines("code/python_stdlib.jsonl"))[:2_000_000]
    prose = "\n".join(lines("tatoeba/train.jsonl")) + (DATA / "wikitext2/valid.txt").read_text()
    return prose[:2_000_000]


def seconds(run: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize("kind", ["code", "prose"])
def test_text_has_the_ids_of_both_and_is_encoded_faster(ours: JsonTokenizer, kind: str) -> None:
    sample = text(kind)
    data = sample.encode()
    assert len(ours.vocab) == 1 and ours.vocab[0] == 32768
    ids = ours.ids(data).tolist()
    hugging_face = tokenizers.Tokenizer.from_str(ours.content.decode())
    ranks = ranks_of(ours._engine.encoder.merges)  # type: ignore[union-attr]
    by_rank = tiktoken.Encoding("test", pat_str=GPT2_RUST, mergeable_ranks=ranks, special_tokens={})
    assert ids == hugging_face.encode(sample, add_special_tokens=False).ids
    assert ids == by_rank.encode_ordinary(sample)
    assert ours.data(np.array(ids)) == data
    assert seconds(lambda: ours.ids(data)) < seconds(lambda: by_rank.encode_ordinary(sample))


def test_executables_have_the_ids_of_both(ours: JsonTokenizer) -> None:
    data = Path(sys.executable).resolve().read_bytes()[:2_000_000]
    encoder = ours._engine.encoder  # type: ignore[union-attr]
    ids = encoder.encode(np.frombuffer(data, np.uint8)).tolist()
    file = json.loads(ours.content)
    bare = tokenizers.Tokenizer.from_str(json.dumps({**file, "pre_tokenizer": None}))
    ranks = ranks_of(encoder.merges)
    by_rank = tiktoken.Encoding("test", pat_str=GPT2_RUST, mergeable_ranks=ranks, special_tokens={})
    whole, place = [], 0
    for start in range(0, len(data), 8192):  # theirs are slow on long pieces
        part = data[start : start + 8192]
        own = encoder.encode(np.frombuffer(part, np.uint8)).tolist()
        assert own == bare.encode(GPT2.text(part)).ids == by_rank._core_bpe.encode_single_piece(part)
        whole += own
        place += len(part)
    assert place == len(data) and len(ids) <= len(whole)


def test_counting_is_faster_than_encoding(ours: JsonTokenizer) -> None:
    data = text("code").encode()
    assert ours.count(data) == len(ours.ids(data))
    assert seconds(lambda: ours.count(data)) < 1.02 * seconds(lambda: ours.ids(data))
