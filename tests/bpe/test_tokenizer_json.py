"""tokenizer.json, both ways: what `tokenizers` and `transformers` read of ours, and what strangers' files mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smalti.bpe import Encoder, Merges
from smalti.bpe.alphabets import GPT2, LATIN1, Alphabet, escaped_latin1
from smalti.bpe.tokenizer_json import Added, Model, byte_file, byte_merges, read, token_bytes
from smalti.errors import CheckpointError, ConfigError

tokenizers = pytest.importorskip("tokenizers")

PAIRS = [(32, 32), (97, 98), (256, 256), (257, 99), (256, 97), (0, 171), (258, 258), (10, 10)]
MERGES = Merges.of_bytes(PAIRS)
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
SPECIALS = ("<|start|>", "<|end|>", "<|pad|>")
QUOTES = ("«", "<|end|>", "»")  # two of them look like bytes


def written(alphabet: Alphabet, **options: Any) -> dict[str, Any]:
    level = LEVEL if alphabet is GPT2 else None
    specials = QUOTES if alphabet.name == "escaped-latin-1" else SPECIALS
    added = [Added(264 + place, special) for place, special in enumerate(specials)]
    file = byte_file(MERGES, alphabet, added=added, pre_tokenizer=level, decoder=level or {"type": "Fuse"}, **options)
    return json.loads(file.dump())


@pytest.mark.parametrize("alphabet", [GPT2, LATIN1, escaped_latin1(QUOTES)], ids=lambda each: each.name)
def test_tokenizers_gives_the_ids_of_our_encoder(alphabet: Alphabet) -> None:
    theirs = tokenizers.Tokenizer.from_str(json.dumps(written(alphabet)))
    rng = np.random.default_rng(0)
    for data in (
        b"",
        b"     ab  abc  a",
        rng.choice([32, 97, 98, 99, 0, 10, 171, 187], 500).astype(np.uint8).tobytes(),
    ):
        ours = Encoder(MERGES).encode(np.frombuffer(data, np.uint8))
        text = data.decode("latin-1") if alphabet is GPT2 else alphabet.text(data)
        if alphabet is GPT2:  # it takes the UTF-8 of a text
            ours = Encoder(MERGES).encode(np.frombuffer(text.encode(), np.uint8))
            theirs.encode_special_tokens = True
        assert theirs.encode(text, add_special_tokens=False).ids == ours.tolist()


def test_transformers_loads_what_we_write(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_text(json.dumps(written(GPT2)))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    text = "abc   ab    a\n\n"
    ours = Encoder(MERGES).encode(np.frombuffer(text.encode(), np.uint8))
    assert fast(text, add_special_tokens=False)["input_ids"] == ours.tolist()
    assert fast.decode(ours.tolist(), clean_up_tokenization_spaces=False) == text
    assert len(fast) == 267 and fast.convert_tokens_to_ids("<|end|>") == 265


@pytest.mark.parametrize("alphabet", [GPT2, LATIN1], ids=lambda each: each.name)
def test_merges_come_back_from_pairs_and_from_strings(alphabet: Alphabet) -> None:
    data = written(alphabet)
    for merges in (data["model"]["merges"], [" ".join(pair) for pair in data["model"]["merges"]]):
        model = Model.of({**data["model"], "merges": merges})
        assert byte_merges(model, alphabet).pairs.tolist() == [list(pair) for pair in PAIRS]


def test_spaces_in_a_merge_are_read_so_that_the_parts_are_tokens() -> None:
    vocab = {token: place for place, token in enumerate([" ", "a", " a", "  ", "  a", "a a", "a  a", "   a"])}
    assert Model.of({"vocab": vocab, "merges": ["  a", "a  a", "   a"]}).merges == [
        (" ", "a"),
        ("a", " a"),
        (" ", " a"),
    ]
    with pytest.raises(CheckpointError, match="no merge of two tokens"):
        Model.of({"vocab": vocab, "merges": ["a b c"]})


def test_of_a_pair_that_is_written_twice_the_last_counts() -> None:
    data = written(GPT2)
    data["model"]["merges"].append(data["model"]["merges"][1])
    ours = byte_merges(Model.of(data["model"]), GPT2)
    assert ours.pairs.tolist() == [list(pair) for pair in [PAIRS[0], *PAIRS[2:], PAIRS[1]]]
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    for text in ("abab  abc", "ab\n\nab", "  abc"):
        ids = Encoder(ours).encode(np.frombuffer(text.encode(), np.uint8)).tolist()
        assert theirs.encode(text).ids == ids


def test_rules_of_tokens_that_nothing_makes_are_left_out() -> None:
    data = written(GPT2)
    data["model"]["vocab"] |= {"qq": 300, "qqa": 301}
    data["model"]["merges"].insert(0, ["qq", "a"])
    assert byte_merges(Model.of(data["model"]), GPT2).pairs.tolist() == [list(pair) for pair in PAIRS]


@pytest.mark.parametrize("specials_first", [False, True])
@pytest.mark.parametrize("renumbered", [False, True])
def test_ids_are_read_whatever_the_layout(specials_first: bool, renumbered: bool) -> None:
    specials = ["<|start|>", "<|end|>", "<|pad|>"]
    letters = list(LATIN1.characters)
    order = [*specials, *letters, "ab", "abc"] if specials_first else [*letters, "ab", "abc", *specials]
    vocab = {token: place for place, token in enumerate(order)}
    added = [
        {"id": place if renumbered else vocab[text], "content": text, "special": True}
        for place, text in enumerate(specials)
    ]
    content = json.dumps({
        "added_tokens": added, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"], ["ab", "c"]]},
    })  # fmt: skip
    file = read(content)
    assert {each.content: each.id for each in file.added} == {text: vocab[text] for text in specials}
    merges = byte_merges(Model.of(file.model), LATIN1)
    assert Encoder(merges).encode(np.frombuffer(b"\x00abca", np.uint8)).tolist() == [
        vocab[token] for token in ("\x00", "abc", "a")
    ]
    assert (
        token_bytes(file, LATIN1, ())[vocab["<|end|>"]] == b"<|end|>"
        and token_bytes(file, LATIN1, ())[vocab["\xff"]] == b"\xff"
    )


def test_added_tokens_outside_the_vocabulary_have_the_ids_that_tokenizers_gives() -> None:
    data = written(GPT2)
    for place, each in enumerate(data["added_tokens"]):
        del data["model"]["vocab"][each["content"]]
        each["id"] = 700 + place
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    assert {each.content: each.id for each in read(json.dumps(data)).added} == {
        special: theirs.token_to_id(special) for special in SPECIALS
    }


def test_what_is_no_file_is_refused() -> None:
    for content in ("{", "[]", '{"model": {}}', '{"model": {"vocab": {}}, "added_tokens": [{}]}'):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            read(content)
    with pytest.raises(CheckpointError, match="WordPiece"):
        Model.of({"type": "WordPiece", "vocab": {}})
    with pytest.raises(CheckpointError, match="no id"):
        Model.of({"vocab": {"a": 0}, "merges": [["a", "a"]]})
    with pytest.raises(CheckpointError, match="bytes have no token"):
        byte_merges(Model.of({"vocab": {"a": 0}, "merges": []}), GPT2)
    with pytest.raises(ConfigError, match="same token"):
        byte_file(MERGES, GPT2, texts={"ab": 400})
    with pytest.raises(ConfigError, match="same token"):
        byte_file(MERGES, LATIN1, added=[Added(264, "«")])
