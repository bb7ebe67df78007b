"""Published files are read, and what is written loads elsewhere with the same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import Sequence as DecoderSequence
from tokenizers.models import BPE
from transformers import AutoTokenizer

from smalti.errors import CheckpointError
from smalti.text.visual_unicode import UnicodeVocabulary, VisualUnicode
from smalti.text.visual_unicode.files import read_vocabulary, write_vocabulary
from tests.text.visual_unicode.material import BEYOND, NGRAMS, SCRIPTS

TEXT = "<s>the anthem " + " ".join(SCRIPTS.values()) + BEYOND + "\n[INST] ab\u2028ab"


@pytest.fixture(scope="module")
def vocabulary() -> UnicodeVocabulary:
    return UnicodeVocabulary.of_ngrams(NGRAMS)


def built_by_hugging_face(vocabulary: UnicodeVocabulary) -> Tokenizer:
    """As the published notebook builds it."""
    rules = [tuple(pair) for pair in vocabulary.merges]
    tokenizer = Tokenizer(BPE(vocab=dict(vocabulary.ids), merges=rules, unk_token="<unk>"))
    tokenizer.decoder = DecoderSequence([])
    tokenizer.add_special_tokens([vocabulary.tokens[index] for index in vocabulary.specials])
    return tokenizer


def same(one: UnicodeVocabulary, other: UnicodeVocabulary) -> bool:
    return (one.tokens, one.merges, one.specials, one.unknown) == (
        other.tokens, other.merges, other.specials, other.unknown,
    )  # fmt: skip


def test_a_file_of_hugging_face_is_read(vocabulary: UnicodeVocabulary, tmp_path: Path) -> None:
    reference = built_by_hugging_face(vocabulary)
    reference.save(str(tmp_path / "tokenizer.json"))
    assert same(read_vocabulary(tmp_path), vocabulary)
    tokenizer = VisualUnicode.from_files(tmp_path / "tokenizer.json")
    assert tokenizer.ids(TEXT.encode()).tolist() == reference.encode(TEXT, add_special_tokens=False).ids


def test_lists_of_strings_and_rules_are_read(vocabulary: UnicodeVocabulary, tmp_path: Path) -> None:
    built_by_hugging_face(vocabulary).model.save(str(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {"vocab.json", "merges.txt"}
    assert same(read_vocabulary(tmp_path), vocabulary)


def test_special_tokens_of_lists_come_from_their_settings(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "<unk>": 1, "<x>": 2}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert read_vocabulary(tmp_path).specials == (1,)
    named = {"1": {"content": "<unk>", "special": True}, "2": {"content": "<x>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": named}))
    assert read_vocabulary(tmp_path).specials == (1, 2)


def test_both_ways_to_write_rules_are_read(vocabulary: UnicodeVocabulary, tmp_path: Path) -> None:
    content = json.loads(write_vocabulary(vocabulary))
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert same(read_vocabulary(tmp_path), vocabulary)


@pytest.mark.parametrize("on_unk", ["unk", "byte"])
@pytest.mark.parametrize("match_specials", [True, False])
def test_a_saved_folder_loads_in_transformers(on_unk: Any, match_specials: bool, tmp_path: Path) -> None:
    config = VisualUnicode.Config(on_unk=on_unk, match_specials=match_specials)
    tokenizer = VisualUnicode.from_ngrams(NGRAMS, config)
    tokenizer.save(tmp_path / "saved")
    reference = AutoTokenizer.from_pretrained(tmp_path / "saved")
    ids = reference(TEXT, add_special_tokens=False).input_ids
    assert tokenizer.ids(TEXT.encode()).tolist() == ids
    assert reference.decode(ids) == tokenizer.decode(tokenizer.encode(TEXT), output="text")[0]


def test_ids_that_others_would_not_give_are_not_written(tmp_path: Path) -> None:
    spelled_like_a_byte = VisualUnicode.from_ngrams(["<0x41>"], VisualUnicode.Config(on_unk="byte"))
    for tokenizer in (VisualUnicode.Config(on_unk="surrogate-escape").build(), spelled_like_a_byte):
        tokenizer.save(tmp_path / "saved")
        assert not (tmp_path / "saved" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "pre_tokenizer"),
        ({"normalizer": {"type": "NFC"}}, "normalizer"),
        ({"added_tokens": [{"id": 0, "content": "a", "special": False}]}, "added tokens"),
        ({"added_tokens": [{"id": 0, "content": "a", "special": True, "lstrip": True}]}, "added tokens"),
        ({"model": {"type": "Unigram", "vocab": []}}, "byte pair encoding"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "<unk>": 1}, "merges": [["a", "b"]]}}, "'b'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "<unk>": 1}, "merges": [["a", "a"]]}}, "'aa'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "<unk>": 2}, "merges": []}}, "ids"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}, "<unk>"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "<unk>": 1}, "merges": ["aa"]}}, "damaged"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "<unk>": 1}, "byte_fallback": True}}, "byte_fallback"),
    ],
)
def test_files_that_mean_something_else_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = {"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "<unk>": 1}, "merges": []}}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(tmp_path)


def test_the_unknown_token_is_the_one_that_the_file_names(tmp_path: Path) -> None:
    content = {"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "?": 1}, "unk_token": "?", "merges": []}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert VisualUnicode.from_files(tmp_path).ids(b"ab").tolist() == [0, 1]


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither"):
        read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="can't be read"):
        read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match="object"):
        read_vocabulary(tmp_path)
