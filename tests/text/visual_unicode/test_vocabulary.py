"""The layout of ids, the order of n-grams, and the rules that join them."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from smalti.errors import CheckpointError, ConfigError
from smalti.text.visual_unicode import UnicodeVocabulary, common_strings, top_ngrams
from smalti.text.visual_unicode.vocabulary import SPECIAL_NAMES, room, united
from tests.text.visual_unicode.material import NGRAMS


@pytest.fixture(scope="module")
def vocabulary() -> UnicodeVocabulary:
    return UnicodeVocabulary.of_ngrams(NGRAMS)


def test_characters_have_their_own_numbers(vocabulary: UnicodeVocabulary) -> None:
    assert len(vocabulary) == 65536
    for code in (*range(0xD800), *range(0xF900, 0xFFFF)):
        assert vocabulary.tokens[code] == chr(code)


def test_special_tokens_stand_where_they_are_published(vocabulary: UnicodeVocabulary) -> None:
    assert vocabulary.tokens[57344:57348] == ("<pad>", "<s>", "</s>", "<unk>")
    assert vocabulary.tokens[57356] == "[INST]"
    assert vocabulary.tokens[57344 + 22] == "[FILE_SEP]" == SPECIAL_NAMES[-1]
    assert vocabulary.tokens[57367] == "<special_token_57367>"
    assert vocabulary.specials == tuple(range(57344, 57600))
    assert vocabulary.tokens[vocabulary.unknown] == "<unk>"


def test_ngrams_fill_the_gaps_longest_first(vocabulary: UnicodeVocabulary) -> None:
    ordered = sorted(set(NGRAMS), key=lambda ngram: (-len(ngram), ngram))
    assert vocabulary.ngrams == ordered
    assert list(vocabulary.tokens[0xD800 : 0xD800 + len(ordered)]) == ordered
    assert vocabulary.tokens[0xD800 + len(ordered)] == f"<unused_{0xD800 + len(ordered)}>"
    assert vocabulary.tokens[0xE100] == "<unused_57600>"
    assert vocabulary.tokens[0xFFFF] == "<unused_65535>"


def test_the_second_gap_and_the_planes_beyond_are_filled_after_the_first() -> None:
    many = [chr(0x4E00 + place // 100) + chr(0x5E00 + place % 100) for place in range(9000)]
    large = UnicodeVocabulary.of_ngrams(many, 131072)
    assert large.tokens[0xDFFF] == sorted(many)[2047]
    assert large.tokens[0xE100] == sorted(many)[2048]
    assert large.tokens[0xF8FF] == sorted(many)[8191]
    assert large.tokens[0x10000] == sorted(many)[8192]
    assert large.tokens[0x1FFFF] == "<unused_131071>"


def test_every_way_to_cut_a_token_is_a_rule_long_ones_first(vocabulary: UnicodeVocabulary) -> None:
    tokens = {*vocabulary.tokens}
    expected = [
        [ngram[:place], ngram[place:]]
        for ngram in vocabulary.ngrams
        for place in range(1, len(ngram))
        if ngram[:place] in tokens and ngram[place:] in tokens
    ]
    assert vocabulary.merges == expected
    assert Counter(left + right for left, right in expected)["aba"] == 2


def test_what_is_a_token_anyway_is_passed_over_and_other_planes_may_have_tokens() -> None:
    vocabulary = UnicodeVocabulary.of_ngrams(["a", "<s>", "🙂", "🙂🙂", "🙂🙂"])
    assert vocabulary.tokens[0xD800:0xD803] == ("🙂🙂", "🙂", "<unused_55298>")
    assert vocabulary.merges == [["🙂", "🙂"]]


def test_what_finds_no_room_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert (room(), room(131072)) == (8192, 73727)
    many = [chr(0x4E00 + place // 100) + chr(0x5E00 + place % 100) for place in range(8195)]
    with caplog.at_level(logging.WARNING, "smalti"):
        vocabulary = UnicodeVocabulary.of_ngrams([*many, "longer"])
    assert "4 n-grams do not fit" in caplog.text
    assert vocabulary.ngrams == ["longer", *sorted(many)[:8191]]


@pytest.mark.parametrize("ngrams", [[""], ["a\ud800"]])
def test_strings_that_are_no_text_are_refused(ngrams: list[str]) -> None:
    with pytest.raises(ConfigError, match="can't be a token"):
        UnicodeVocabulary.of_ngrams(ngrams)


def test_sizes_that_do_not_hold_the_characters_are_refused() -> None:
    with pytest.raises(ConfigError, match="65536"):
        UnicodeVocabulary.of_ngrams([], 5000)


def test_top_ngrams_are_counted_inside_words_without_digits() -> None:
    texts = ["ab ab abc 2020年1月", "ab 3年月"]
    assert top_ngrams(texts, [2], 3) == [["ab", "年月", "bc"]]
    assert top_ngrams(texts, [2, 3], 1) == [["ab"], ["abc"]]


def test_top_ngrams_equal_plain_counting() -> None:
    text = "the other day they gathered there, then nothing"
    counts = Counter(word[i : i + 3] for word in text.split() for i in range(len(word) - 2))
    expected = sorted(counts, key=lambda ngram: (-counts[ngram], ngram))[:7]
    assert top_ngrams([text], [3], 7) == [expected]


def test_lists_are_cut_alike_so_that_their_union_fits() -> None:
    lists = [["a", "b", "c", "d"], ["b", "x"], ["y", "a", "z"]]
    assert united(lists, 100) == {*"abcdxyz"}
    assert united(lists, 6) == {*"abcxyz"}
    assert united(lists, 5) == {*"abxy"}
    assert united(lists, 3) == {*"aby"}
    assert united(lists, 2) == united([], 5) == set()


def test_common_strings_are_the_shortest_of_those_that_all_have() -> None:
    one, other = ["a", "ing", "the", "zz", " of"], ["the", "ing", " of", "zz", "q"]
    assert common_strings([one, other], 3) == ["zz", " of", "ing"]


def test_tensors_hold_everything(vocabulary: UnicodeVocabulary) -> None:
    again = UnicodeVocabulary.from_tensors(vocabulary.tensors())
    assert (again.tokens, again.merges) == (vocabulary.tokens, vocabulary.merges)
    assert (again.specials, again.unknown) == (vocabulary.specials, vocabulary.unknown)


def test_damaged_tensors_are_refused(vocabulary: UnicodeVocabulary) -> None:
    tensors = vocabulary.tensors()
    for name, changed in (
        ("pairs", tensors["pairs"] + 40000),
        ("text", tensors["text"][:-1]),
        ("ends", tensors["ends"].flip(0)),
        ("unknown", tensors["unknown"] + 10**6),
    ):
        with pytest.raises(CheckpointError):
            UnicodeVocabulary.from_tensors({**tensors, name: changed})
    with pytest.raises(CheckpointError, match="pairs"):
        UnicodeVocabulary.from_tensors({"text": tensors["text"]})
