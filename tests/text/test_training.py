"""Training of text against Hugging Face's trainer: the same vocabulary and the same merges, ties included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smalti.text.tokenizer_json import JsonTokenizer
from smalti.text.training import BYTE_LEVEL, TextTraining, train_text
from tests.bpe.test_text import CORPUS

tokenizers = pytest.importorskip("tokenizers")
pre = tokenizers.pre_tokenizers
TEXT = Path("../shared/data/text")
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
NFKC = {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}
SPLIT = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": r"\p{N}{1,3}|\s*[\r\n]+| ?\p{L}+|\s+"},
            "behavior": "Isolated",
            "invert": False,
        },
        {**BYTE_LEVEL, "use_regex": False},
    ],
}


def theirs(texts: list[str], training: TextTraining) -> dict[str, Any]:
    """What Hugging Face's trainer makes of it."""
    file = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "version": "1.0", "added_tokens": [],
            "normalizer": training.normalizer, "pre_tokenizer": training.pre_tokenizer}  # fmt: skip
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(file))
    limits = {"limit_alphabet": training.limit_alphabet, "max_token_length": training.max_token_length}
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=training.vocab, min_frequency=training.min_count, special_tokens=list(training.specials),
        initial_alphabet=pre.ByteLevel.alphabet() if training.alphabet == "bytes" else list(training.alphabet),
        show_progress=False, **{name: limit for name, limit in limits.items() if limit is not None},
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def check(texts: list[str], training: TextTraining) -> None:
    ours, other = train_text(texts, training).model, theirs(texts, training)
    assert [tuple(pair) for pair in ours["merges"]] == [tuple(pair) for pair in other["merges"]]
    assert ours["vocab"] == other["vocab"]


@pytest.mark.parametrize(
    "training",
    [
        TextTraining(vocab=700, min_count=1),
        TextTraining(vocab=5000, min_count=2, specials=("<s>", "</s>")),
        TextTraining(vocab=5000, min_count=1, max_token_length=4),
        TextTraining(vocab=5000, min_count=1, max_token_length=2),
        TextTraining(vocab=5000, min_count=1, pre_tokenizer=SPLIT, max_token_length=8),
        TextTraining(vocab=5000, alphabet=(), min_count=2, specials=("<unk>", "a", "▁the"), pre_tokenizer=METASPACE),
        TextTraining(vocab=900, alphabet=("x", "€"), pre_tokenizer=METASPACE, normalizer=NFKC, min_count=1),
        TextTraining(vocab=600, alphabet=(), pre_tokenizer={"type": "Whitespace"}, min_count=1),
        TextTraining(vocab=400, alphabet=(), pre_tokenizer=None, min_count=1),
        TextTraining(vocab=10, specials=("<s>",)),
    ],
)
def test_merges_are_those_of_hugging_face(training: TextTraining) -> None:
    check([*CORPUS, "", CORPUS[0]], training)


def test_rare_characters_are_left_out_where_the_alphabet_is_limited() -> None:
    texts = ["aaaa bbb cc d", "aaaa bbb cc", "ab abc"]
    training = TextTraining(
        vocab=50, alphabet=(), limit_alphabet=3, min_count=1, pre_tokenizer={"type": "WhitespaceSplit"}
    )
    check(texts, training)
    assert "d" not in train_text(texts, training).model["vocab"]


@pytest.mark.skipif(not TEXT.is_dir(), reason="the shared texts are not here")
@pytest.mark.parametrize(("file", "start"), [("code/python_stdlib.jsonl", 0), ("tatoeba/train.jsonl", 1_000_000)])
def test_a_megabyte_gives_the_merges_of_hugging_face(file: str, start: int) -> None:
    text = (TEXT / file).read_text()[start : start + 1_000_000]
    texts = [text[place : place + 20_000] for place in range(0, len(text), 20_000)]
    check(texts, TextTraining(vocab=20_000, specials=("<|endoftext|>",)))


def test_a_trained_file_is_a_tokenizer() -> None:
    ours = JsonTokenizer(JsonTokenizer.Config(), train_text(CORPUS, TextTraining(vocab=400, min_count=1)).dump())
    data = " ".join(CORPUS).encode()
    assert ours.engine == "smalti" and ours.lossless and ours.data(ours.ids(data)) == data
    assert len(ours.ids(data)) < 0.7 * len(data)
