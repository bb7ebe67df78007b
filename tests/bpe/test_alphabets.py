"""Byte alphabets: each is a bijection, and files show which they use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.bpe.alphabets import GPT2, LATIN1, Alphabet, alphabet_of, escaped_latin1
from smalti.errors import CheckpointError, InputError

SPECIALS = ["<s>", "«", "»", "long", "中"]
ESCAPED = escaped_latin1(SPECIALS)
ALPHABETS = [GPT2, LATIN1, ESCAPED]


@given(st.binary())
def test_bytes_come_back(data: bytes) -> None:
    for alphabet in ALPHABETS:
        assert len(alphabet.text(data)) == len(data)
        assert alphabet.data(alphabet.text(data)) == data


def test_gpt2_is_the_alphabet_of_tokenizers() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    assert set(GPT2.characters) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "aé中🙂\x00\x7f \n"
    assert GPT2.text(text.encode()) == level.pre_tokenize_str(text)[0][0]


def test_bytes_that_look_like_a_special_token_are_escaped_in_the_order_of_ids() -> None:
    assert ESCAPED.characters[0xAB] == "\ue000" and ESCAPED.characters[0xBB] == "\ue001"
    assert [place for place in range(256) if ESCAPED.characters[place] != chr(place)] == [0xAB, 0xBB]
    assert escaped_latin1(["<s>", "中"]) is LATIN1


def test_a_character_that_is_no_byte_is_refused() -> None:
    with pytest.raises(InputError, match="中"):
        GPT2.data("a中")
    with pytest.raises(InputError, match="256"):
        Alphabet("latin-1", "abc")
    assert GPT2.holds("Ġthe") and not GPT2.holds("the 中")


def vocab(characters: str, *others: str) -> dict[str, int]:
    return {token: place for place, token in enumerate([*others, *characters])}


@pytest.mark.parametrize("kind", ["auto", "escaped"])
def test_files_show_their_alphabet(kind: str) -> None:
    escaped = vocab(ESCAPED.characters, *SPECIALS)
    assert alphabet_of(vocab(GPT2.characters), byte_level=True) is GPT2
    assert alphabet_of(vocab(LATIN1.characters, "<s>"), byte_level=False, specials=["<s>"]) is LATIN1
    assert alphabet_of(escaped, byte_level=False, specials=SPECIALS, kind=kind) == ESCAPED  # type: ignore[arg-type]
    assert alphabet_of(escaped, byte_level=False, specials=["<s>"], glyphs=["«", "»", "★"]) == ESCAPED
    assert alphabet_of({"a": 0, "中": 1, "\ue000": 2}, byte_level=False) is None
    assert alphabet_of({"a": 0}, byte_level=False) is None


def test_escapes_that_nothing_explains_are_refused() -> None:
    with pytest.raises(CheckpointError, match="2 private-use"):
        alphabet_of(vocab(ESCAPED.characters), byte_level=False, specials=["<s>"])
