"""Ids against the definition of encoding by rank, against Hugging Face, and in blocks of every size."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from smalti.errors import ConfigError, InputError
from smalti.text.visual_unicode import UnicodeVocabulary
from smalti.text.visual_unicode import encoder as encoding
from smalti.text.visual_unicode.encoder import OnUnknown, Rules, Texts, UnicodeDecoder, UnicodeEncoder
from smalti.text.visual_unicode.files import write_vocabulary
from tests.text.visual_unicode.material import BEYOND, NGRAMS, SCRIPTS, small_vocabulary

SMALL = small_vocabulary()
MODES: tuple[OnUnknown, ...] = ("unk", "surrogate-escape", "byte")


def by_definition(vocabulary: UnicodeVocabulary, text: str) -> list[int]:
    """The best rule's leftmost place, again and again."""
    ranks = {tuple(pair): rank for rank, pair in enumerate(vocabulary.merges)}
    parts = list(text)
    while True:
        places = [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not places:
            return [vocabulary.ids.get(part, vocabulary.unknown) for part in parts]
        _, place = min(places)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def encoded(rules: Rules, data: bytes, step: int | None = None) -> list[int]:
    encoder = UnicodeEncoder(rules)
    step = step or max(1, len(data))
    blocks = [encoder.push(data[start : start + step]) for start in range(0, len(data), step)]
    ids = np.concatenate([*blocks, encoder.finish()])
    assert encoder.position == len(data)
    return ids.tolist()


def decoded(rules: Rules, ids: list[int], step: int | None = None) -> bytes:
    decoder = UnicodeDecoder(Texts.of(rules, keep_specials=True))
    array, step = np.array(ids, np.uint32), step or max(1, len(ids))
    blocks = [decoder.push(array[start : start + step]) for start in range(0, len(ids), step)]
    return b"".join([*blocks, decoder.finish()])


@pytest.fixture(scope="module")
def vocabulary() -> UnicodeVocabulary:
    return UnicodeVocabulary.of_ngrams(NGRAMS)


@pytest.fixture(scope="module")
def rules(vocabulary: UnicodeVocabulary) -> dict[str, Rules]:
    return {mode: Rules(vocabulary, mode, match_specials=True) for mode in MODES}


@pytest.fixture(scope="module")
def dense() -> list[UnicodeVocabulary]:
    """Vocabularies over three letters, in which nothing is a border."""
    draw = random.Random(0)
    sets = [{"".join(draw.choices("abc", k=draw.randint(2, 6))) for _ in range(count)} for count in (4, 12, 40, 150)]
    return [UnicodeVocabulary.of_ngrams(ngrams) for ngrams in sets]


def test_ids_follow_the_definition(vocabulary: UnicodeVocabulary, rules: dict[str, Rules]) -> None:
    for text in (*SCRIPTS.values(), "the interesting anthem", "abcabababcbabaaaaa", BEYOND, ""):
        assert encoded(rules["unk"], text.encode()) == by_definition(vocabulary, text)


def test_ids_follow_the_definition_where_nothing_is_a_border(dense: list[UnicodeVocabulary]) -> None:
    draw = random.Random(1)
    for vocabulary in dense:
        rules = Rules(vocabulary, "unk", match_specials=True)
        for length in (1, 2, 3, 10, 33, 200):
            for _ in range(20):
                text = "".join(draw.choices("abc", k=length))
                assert encoded(rules, text.encode()) == by_definition(vocabulary, text)


def test_rules_that_use_what_no_rule_makes_do_no_harm() -> None:
    ngrams = ["yz", "xyz", "wxyz", "wxy", "vwxyz", "ghi", "fghi", "gh", "abcd"]  # nothing makes wxy, ghi by hi, abcd
    vocabulary = UnicodeVocabulary.of_ngrams(ngrams)
    rules = Rules(vocabulary, "unk", match_specials=True)
    for text in ("vwxyz", "wxyzwxy", "fghifghi ghi", "abcdvwxyzwxyv"):
        for step in (None, 1, 2):
            assert encoded(rules, text.encode(), step) == by_definition(vocabulary, text)


def test_sparse_vocabularies_follow_the_definition() -> None:
    draw = random.Random(3)
    for count in (20, 100, 400):
        ngrams = {"".join(draw.choices("abcdefgh", k=draw.randint(2, 5))) for _ in range(count)}
        vocabulary = UnicodeVocabulary.of_ngrams(ngrams)
        rules = Rules(vocabulary, "unk", match_specials=True)
        for _ in range(60):
            text = "".join(draw.choices([*ngrams, *"abcdefgh "], k=12))
            assert encoded(rules, text.encode()) == by_definition(vocabulary, text)


def test_a_token_of_characters_and_of_the_unknown_token_is_refused() -> None:
    ids = {token: index for index, token in enumerate(["a", "<", "u", ">", "<u", "<u>", "a<u>", "a<", "u>", "a<u"])}
    merges = [["a", "<u>"], ["a<", "u>"], ["<", "u"], ["a", "<"], ["u", ">"]]
    with pytest.raises(ConfigError, match="unknown token"):
        Rules(UnicodeVocabulary.of_merges(ids, merges, [], "<u>"), "unk", match_specials=True)


@pytest.mark.parametrize("mode", ["unk", "byte"])
def test_ids_are_those_of_hugging_face(vocabulary: UnicodeVocabulary, rules: dict[str, Rules], mode: str) -> None:
    reference = Tokenizer.from_str(write_vocabulary(vocabulary, bytes_after=mode == "byte").decode())
    mixed = " ".join(SCRIPTS.values()) + BEYOND + "<s>[INST]<unk></s><s <special_token_57367>\x00\n\u2028"
    for text in (mixed, mixed * 50, "ab" * 3000, ""):
        assert encoded(rules[mode], text.encode()) == reference.encode(text, add_special_tokens=False).ids


def test_blocks_of_any_size_give_the_ids_of_the_whole(rules: dict[str, Rules]) -> None:
    text = ("the <s>anthem 한국의한국에서 🙂 <special_token_57367><unk></s> aaabab " * 3).encode() + b"\xff\xe2\x82"
    for each in rules.values():
        whole = encoded(each, text)
        for step in (*range(1, 40), 64, 100):
            assert encoded(each, text, step) == whole


def test_long_runs_without_a_border_are_given_before_they_end(
    dense: list[UnicodeVocabulary], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "LONG_RUN", 64)
    draw = random.Random(2)
    for vocabulary in dense:
        rules = Rules(vocabulary, "unk", match_specials=True)
        for text in ("".join(draw.choices("abc", k=4000)), "ab" * 2000, "abc" * 1300, "a" * 4000):
            data = text.encode()
            whole = encoded(rules, data)
            for step in (7, 100, 1000):
                assert encoded(rules, data, step) == whole
            encoder = UnicodeEncoder(rules)
            encoder.push(data)
            assert encoder.position > len(data) - 64 * 6 - 700, "the run is held back"


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="abc <s>🙂é\n", max_size=60), st.integers(1, 9))
def test_blocks_of_random_texts(text: str, step: int) -> None:
    rules = Rules(SMALL, "byte", match_specials=True)
    assert encoded(rules, text.encode(), step) == encoded(rules, text.encode())


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["surrogate-escape", "byte"]), st.integers(1, 9))
def test_any_bytes_come_back(data: bytes, mode: OnUnknown, step: int) -> None:
    rules = Rules(SMALL, mode, match_specials=True)
    ids = encoded(rules, data)
    assert decoded(rules, ids) == decoded(rules, ids, step) == data
    assert encoded(rules, data, step) == ids


def test_of_special_tokens_the_first_and_then_the_longest_counts() -> None:
    rules = Rules(SMALL, "unk", match_specials=True)
    ids = SMALL.ids
    assert encoded(rules, b"<s>ab<<s>b") == [ids["<s>a"], ids["b"], ids["<"], ids["<s>"], ids["b"]]
    for step in range(1, 8):
        assert encoded(rules, b"<s>ab<s>", step) == [ids["<s>a"], ids["b"], ids["<s>"]]


def test_special_tokens_are_text_where_they_are_not_wanted(vocabulary: UnicodeVocabulary) -> None:
    plain = Rules(vocabulary, "unk", match_specials=False)
    assert encoded(plain, b"<s>") == by_definition(vocabulary, "<s>")
    assert 57345 not in encoded(plain, b"<s>")


def test_an_encoder_that_starts_at_a_position_gives_the_rest(rules: dict[str, Rules]) -> None:
    text = ("the anthem 🙂 of \xff 한국의 " * 20).encode() + b"\xf0\x9f the"
    for each in rules.values():
        encoder, given_ids, whole = UnicodeEncoder(each), 0, encoded(each, text)
        for start in range(0, len(text), 11):
            given_ids += len(encoder.push(text[start : start + 11]))
            assert encoded(each, text[encoder.position :]) == whole[given_ids:]


def test_characters_of_twenty_scripts_come_back(rules: dict[str, Rules]) -> None:
    assert len(SCRIPTS) >= 20
    for text in SCRIPTS.values():
        for each in rules.values():
            assert decoded(each, encoded(each, text.encode())) == text.encode()


def test_what_has_no_token_is_lost_as_published_or_kept_on_demand(rules: dict[str, Rules]) -> None:
    ids = encoded(rules["unk"], "a🙂b".encode())
    assert ids == [97, 57347, 98] and decoded(rules["unk"], ids) == b"a<unk>b"
    assert encoded(rules["unk"], "\ue000\uffff".encode()) == [57347, 57347]
    assert decoded(rules["unk"], encoded(rules["unk"], b"a\xff\xe2\x82b")) == "a\ufffd\ufffdb".encode()
    assert encoded(rules["surrogate-escape"], "🙂".encode()) == [57599, 0x1F642 >> 10, 0x1F642 & 1023]
    assert encoded(rules["byte"], "🙂".encode()) == [65536 + byte for byte in "🙂".encode()]
    for mode in ("surrogate-escape", "byte"):
        for data in (
            BEYOND.encode(),
            b"\xff\x00\xed\xa0\x80\xc0\x80\xf4\x90\x80\x80\xe2\x82",
            b"<special_token_57599>",
        ):
            assert decoded(rules[mode], encoded(rules[mode], data)) == data


@pytest.mark.parametrize(
    "data", [b"\xff", b"\xc3", b"\xe2\x82", b"a\xf0\x9f\x99", b"\xed\xa0\x80", b"\xf5\x80", b"\x80a"]
)
def test_illegal_bytes_are_replaced_as_python_does(rules: dict[str, Rules], data: bytes) -> None:
    ids = encoded(rules["unk"], data)
    assert "".join(rules["unk"].vocabulary.tokens[index] for index in ids) == data.decode("utf-8", "replace")


def test_damaged_escapes_are_refused(rules: dict[str, Rules]) -> None:
    escape = rules["surrogate-escape"]
    for ids in ([57599, 0x4E00, 5], [57599, 5, 1024], [57599, 55, 5], [57599, 5], [57599]):
        with pytest.raises(InputError, match="escape"):
            decoded(escape, ids)


def test_ids_outside_the_vocabulary_are_refused(rules: dict[str, Rules]) -> None:
    with pytest.raises(InputError, match=r"0\.\.65535"):
        decoded(rules["unk"], [65536])
    with pytest.raises(InputError, match=r"0\.\.65791"):
        decoded(rules["byte"], [65792])


def test_escapes_need_their_characters() -> None:
    ids = {"a": 0, "<unk>": 1}
    with pytest.raises(ConfigError, match="surrogate-escape"):
        Rules(UnicodeVocabulary.of_merges(ids, [], ["<unk>"]), "surrogate-escape", match_specials=True)


def test_a_million_equal_letters_take_little_time(rules: dict[str, Rules]) -> None:
    encoded(rules["unk"], b"a" * 100)
    start = time.process_time()
    ids = encoded(rules["unk"], b"a" * 1_000_000)
    assert time.process_time() - start < 2
    assert decoded(rules["unk"], ids) == b"a" * 1_000_000
