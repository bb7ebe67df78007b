"""Strangers' tokenizer.json as tokenizers of Smalti: the contract, the engine that is taken, prefixes and counts."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smalti
from smalti.errors import CheckpointError, InputError
from smalti.store.rows import RowReader
from smalti.store.shard import Span
from smalti.testing.text import check_text, check_text_tokenizer
from smalti.text.tokenizer_json import JsonTokenizer
from tests.bpe.test_text import CORPUS, samples, trained

tokenizers = pytest.importorskip("tokenizers")


def tokenizer(kind: str, name: str, options: str = "{}", **config: Any) -> JsonTokenizer:
    return JsonTokenizer(JsonTokenizer.Config(**config), trained(kind, name, options).to_str().encode())


def unigram() -> JsonTokenizer:
    theirs = tokenizers.Tokenizer(tokenizers.models.Unigram())
    theirs.pre_tokenizer, theirs.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    theirs.train_from_iterator(CORPUS * 2, trainer)
    return JsonTokenizer(JsonTokenizer.Config(), theirs.to_str().encode())


def test_the_contract_holds_for_a_new_tokenizer() -> None:
    check_text(JsonTokenizer)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("bytes", "llama3", "{}"), ("bytes", "prefix", "{}"), ("bytes", "deepseek", '{"ignore_merges": true}'),
        ("text", "metaspace first", '{"byte_fallback": true}'), ("text", "gemma", '{"byte_fallback": true}'),
    ],
)  # fmt: skip
def test_the_contract_holds_for_strangers_files(kind: str, name: str, options: str) -> None:
    ours = tokenizer(kind, name, options, special=True)
    assert ours.engine == "smalti" and ours.why == ""
    check_text_tokenizer(ours)


def test_what_smalti_does_not_do_is_left_to_tokenizers_and_said() -> None:
    ours = unigram()
    assert ours.engine == "tokenizers" and "Unigram" in ours.why and not ours.lossless
    check_text_tokenizer(ours)
    with pytest.raises(CheckpointError, match="Unigram"):
        JsonTokenizer(JsonTokenizer.Config(engine="smalti"), ours.content)


def test_both_engines_give_the_same_ids_and_offsets() -> None:
    ours, theirs = tokenizer("bytes", "o200k"), tokenizer("bytes", "o200k", engine="tokenizers")
    assert (ours.engine, theirs.engine) == ("smalti", "tokenizers")
    for text in samples(8):
        assert ours.ids(text.encode()).tolist() == theirs.ids(text.encode()).tolist()
        assert ours.offsets(text).tolist() == theirs.offsets(text).tolist()


def test_special_tokens_are_text_unless_they_are_asked_for() -> None:
    data = b"<s>hello</s>"
    plain, special = tokenizer("bytes", "gpt2"), tokenizer("bytes", "gpt2", special=True)
    assert not {1, 2} & set(plain.ids(data).tolist()) and {1, 2} <= set(special.ids(data).tolist())
    assert plain.data(plain.ids(data)) == special.data(special.ids(data)) == data
    assert plain.codes_hash != special.codes_hash


@pytest.mark.parametrize("name", ["llama3", "metaspace first", "unigram"])
def test_first_gives_a_beginning_of_the_text_that_encodes_to_its_first_tokens(name: str) -> None:
    ours = unigram() if name == "unigram" else tokenizer("bytes" if name == "llama3" else "text", name)
    for text in (" ".join(CORPUS), "a  b \n\n c   ", "東京🙂👍🏽 é", ""):
        ids = ours.ids(text.encode())
        for count in (0, 1, 2, 3, 5, 17, len(ids), len(ids) + 1):
            part = ours.first(text, count)
            again = ours.ids(part)
            assert text.encode().startswith(part)
            assert again.tolist() == ids[: len(again)].tolist() and min(count, len(ids)) - len(again) in range(4)
    with pytest.raises(InputError, match="-1"):
        ours.first("text", -1)


def test_long_text_is_counted_and_cut_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.text.tokenizer_json.BLOCK", 200)
    ours, data = tokenizer("bytes", "gpt2"), " ".join(CORPUS * 9).encode()
    ids = ours.ids(data)
    assert ours.count(data) == len(ids)
    part = ours.first(data, 70)
    assert ours.ids(part).tolist() == ids[:70].tolist() and data.startswith(part)
    encoder = ours.stream_encoder()
    assert len(encoder.push(data[:3000])) > 0 and 2500 < encoder.position <= 3000


def test_a_path_loads_and_a_saved_folder_holds_the_file(tmp_path: Path) -> None:
    content = trained("bytes", "gpt2").to_str()
    (tmp_path / "tokenizer.json").write_text(content)
    for found in (
        smalti.load(tmp_path / "tokenizer.json"),
        smalti.load("tokenizer-json", checkpoint=tmp_path / "tokenizer.json"),
        smalti.load("tokenizer-json", checkpoint=tmp_path),
        smalti.load(JsonTokenizer.from_files(tmp_path).save(tmp_path / "saved")),
    ):
        assert isinstance(found, JsonTokenizer) and found.content.decode() == content
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert theirs.encode(CORPUS[0]).ids == found.ids(CORPUS[0].encode()).tolist()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        JsonTokenizer.from_files(tmp_path / "saved" / "config.json")


@pytest.mark.parametrize("engine", ["auto", "smalti", "tokenizers"])
def test_files_that_can_not_be_repeated_are_refused(engine: Any) -> None:
    data = json.loads(trained("bytes", "gpt2").to_str())
    data["model"]["dropout"] = 0.1
    with pytest.raises(CheckpointError, match="dropout"):
        JsonTokenizer(JsonTokenizer.Config(engine=engine), json.dumps(data).encode())


def test_damaged_files_are_refused_by_name() -> None:
    data = json.loads(trained("bytes", "gpt2").to_str())
    vocab = data["model"]["vocab"]
    for change, message in (
        ({"pre_tokenizer": {"type": "Split"}}, "step of the file is damaged"),
        ({"normalizer": {"type": "Sequence"}}, "step of the file is damaged"),
        ({"pre_tokenizer": "x"}, "pre_tokenizer is 'x'"),
        *(
            ({"model": {**data["model"], "vocab": {**vocab, "zz": number}}}, f"'zz' has the id {number!r}")
            for number in ("7", -5, 10**9, True, None)
        ),
    ):
        with pytest.raises(CheckpointError, match=re.escape(message)):
            JsonTokenizer(JsonTokenizer.Config(), json.dumps({**data, **change}).encode())


def test_an_added_token_that_is_spelled_as_a_byte_leaves_that_byte_alone() -> None:
    theirs = tokenizers.Tokenizer.from_str(trained("bytes", "gpt2").to_str())
    theirs.add_tokens([tokenizers.AddedToken("\u00e9", normalized=False)])  # the id of the byte 0xE9
    ours = JsonTokenizer(JsonTokenizer.Config(), theirs.to_str().encode())
    for text in ("頁", "caf\u00e9 頁"):
        assert ours.ids(text.encode()).tolist() == theirs.encode(text, add_special_tokens=False).ids
        back = ours.data(ours.ids(text.encode())).decode("utf-8", "replace")
        assert back == theirs.decode(ours.ids(text.encode()).tolist(), skip_special_tokens=False)
    assert ours.losses == ["the added tokens '\u00e9', which decode to something else"]
    fallback = tokenizer("text", "gemma", '{"byte_fallback": true}', special=True)
    assert any("<0x41>" in loss for loss in fallback.losses)
    assert not tokenizer("text", "gemma", '{"byte_fallback": true}').losses[1:]


def test_only_marks_of_spaces_are_taken_off_where_the_decoder_knows_marks() -> None:
    theirs = tokenizers.Tokenizer.from_str(trained("text", "metaspace always").to_str())
    theirs.add_tokens([tokenizers.AddedToken(" ", normalized=False)])
    ours = JsonTokenizer(JsonTokenizer.Config(), theirs.to_str().encode())
    for text in (" ", " the", "the the"):
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.ids(text.encode()).tolist() == ids
        assert ours.data(np.array(ids)).decode() == theirs.decode(ids, skip_special_tokens=False)


def test_what_is_unknown_is_named() -> None:
    assert tokenizer("text", "plain").unknown == 0 and unigram().unknown == 0
    assert tokenizer("text", "plain", '{"byte_fallback": true}').unknown is None
    assert tokenizer("bytes", "gpt2").unknown is None


def test_tokens_keep_the_space_that_decoding_takes_off_a_text() -> None:
    ours = tokenizer("text", "metaspace first")
    spelled = [ours.token_bytes(token) for token in ours.ids(b"the the").tolist()]
    assert b"".join(filter(None, spelled)) == b" the the"


@pytest.mark.parametrize(("kind", "name"), [("bytes", "prefix"), ("text", "metaspace first"), ("text", "llama2")])
def test_text_with_a_space_in_front_is_stored_in_parts(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its encoder can't begin anew inside, so every row is found again from the beginning."""
    monkeypatch.setattr("smalti.text.tokenizer_json.BLOCK", 100)
    ours, path = tokenizer(kind, name, '{"byte_fallback": true}' if kind == "text" else "{}"), tmp_path / "text"
    path.write_bytes(" ".join(CORPUS * 3).encode())
    ids = ours.ids(path.read_bytes())
    encoder = ours.stream_encoder()
    assert len(encoder.push(path.read_bytes()[:2000])) > 100 and encoder.position == 0
    rows = RowReader(ours, path, 64, block=150)
    marks, found = [], []
    for row in rows:
        found.append(row)
        marks.append((rows.part, rows.mark))
    assert np.concatenate(found).tolist() == ids.tolist()
    for part, mark in marks[:-1:5]:
        after = Span(0, part, mark.byte, mark.skip, rows.state.size, rows.state.mtime_ns)
        rest = np.concatenate(list(RowReader(ours, path, 64, block=150, after=after)))
        assert rest.tolist() == ids[64 * part :].tolist()


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "o200k", "no regex"])
def test_a_million_letters_take_no_time(pattern: str) -> None:
    ours = tokenizer("bytes", pattern)
    ours.ids(b"aa bb")
    for data in (b"a" * 1_000_000, bytes(1_000_000), b" " * 1_000_000):
        began = time.perf_counter()
        ids = ours.ids(data)
        assert time.perf_counter() - began < 2
        assert ours.data(ids) == data
