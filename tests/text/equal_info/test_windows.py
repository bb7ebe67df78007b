"""Windows against the sheet's pseudocode in Python integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.errors import ConfigError
from smalti.text.equal_info.counts import CountModel
from smalti.text.equal_info.model import ByteArray, Cursor, NextByte, WeightArray
from smalti.text.equal_info.windows import (
    WindowEncoder,
    decode_windows,
    encode_windows,
    greedy_windows,
    window_encoder,
)
from tests.text.equal_info import reference
from tests.text.equal_info.texts import AWKWARD, noise, prose

COUNTS = np.random.default_rng(0).integers(1, 50, (256, 256)) ** 3
ORDER1 = CountModel.of_counts(COUNTS)
TRAINING = [prose(6000, seed=1)]
FITTED = CountModel.fit(TRAINING, 3, longest=40)
MODELS = {
    "order1": (ORDER1, reference.order1(COUNTS)),
    "fitted": (FITTED, reference.witten_bell(TRAINING, 3, 40)),
}
BITS = (9, 10, 16, 24, 32, 48, 61, 62, 63, 64, 128)


class Uneven(NextByte):
    """Weights as uneven as they may be."""

    def __init__(self, byte: int) -> None:
        self.row = np.ones(256, np.int64)
        self.row[byte] = 2**31 - 1 - 255

    def weights(self, contexts: ByteArray) -> WeightArray:
        return np.repeat(self.row[None], len(contexts), 0)

    def cursor(self) -> Cursor:
        row = self.row

        class Same(Cursor):
            weights = property(lambda self: row)

            def push(self, byte: int) -> None:
                pass

        return Same()


@pytest.mark.parametrize("name", MODELS)
@given(data=st.binary(max_size=60), bits=st.sampled_from(BITS))
@settings(max_examples=40, deadline=None)
def test_exact_windows_are_those_of_the_sheet(name: str, data: bytes, bits: int) -> None:
    model, weights = MODELS[name]
    found = encode_windows(data, model, bits)
    assert list(zip(found.words.tolist(), found.lengths.tolist(), strict=True)) == reference.exact(data, weights, bits)


@pytest.mark.parametrize("bits", [9, 16, 24, 32, 48, 62])
def test_exact_windows_of_prose_are_those_of_the_sheet(bits: int) -> None:
    model, weights = MODELS["fitted"]
    text = prose(400)
    found = encode_windows(text, model, bits)
    assert list(zip(found.words.tolist(), found.lengths.tolist(), strict=True)) == reference.exact(text, weights, bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", MODELS)
def test_any_bytes_come_back(name: str, bits: int) -> None:
    for data in AWKWARD:
        found = encode_windows(data, MODELS[name][0], bits)
        assert decode_windows(found.words, MODELS[name][0], bits) == data
        assert found.lengths.sum() == len(data) and (found.lengths > 0).all()


@given(st.lists(st.integers(0, 2**62 - 1), max_size=20), st.sampled_from([9, 16, 24, 48, 62]))
@settings(max_examples=60, deadline=None)
def test_any_word_is_some_text_and_is_the_word_of_that_text(numbers: list[int], bits: int) -> None:
    words = np.array([number % 2**bits for number in numbers], np.uint64)
    for name, (model, weights) in MODELS.items():
        texts = [decode_windows(words[i : i + 1], model, bits) for i in range(len(words))]
        assert texts == [reference.text_of(word, weights, bits) for word in words.tolist()], name
        assert decode_windows(words, model, bits) == b"".join(texts)
        for word, text in zip(words.tolist(), texts, strict=True):
            assert encode_windows(text, model, bits).words.tolist() == ([word] if word else [])


def test_nine_bits_have_as_many_windows_as_words() -> None:
    texts = [decode_windows(np.array([word]), FITTED, 9) for word in range(512)]
    assert len(set(texts)) == 512 and texts == sorted(texts)
    assert {text for text in texts if len(text) == 1} == {bytes([byte]) for byte in range(256)}


@pytest.mark.parametrize("bits", [16, 48, 62])
def test_machine_integers_and_python_integers_give_one_result(bits: int) -> None:
    data = prose(2000) + noise(300)
    slow = WindowEncoder(FITTED, bits)
    expected = [*slow.push(data).words.tolist(), *slow.finish().words.tolist()]
    assert encode_windows(data, FITTED, bits).words.tolist() == expected


@pytest.mark.parametrize("bits", [9, 62, 64])
def test_the_most_uneven_weights_lose_nothing(bits: int) -> None:
    for byte in (0, 255):
        model = Uneven(byte)
        raw = CountModel.of_counts(model.row)
        for data in (bytes([byte]) * 50 + b"x" + bytes([byte]), noise(50)):
            found = encode_windows(data, model, bits)
            assert found.words.tolist() == encode_windows(data, raw, bits).words.tolist()
            assert decode_windows(found.words, model, bits) == decode_windows(found.words, raw, bits) == data


@pytest.mark.parametrize("bits", [16, 48, 100])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_blocks_give_the_windows_of_the_whole(bits: int, size: int) -> None:
    data = prose(700) + noise(200) + b"\0" * 300
    whole = encode_windows(data, FITTED, bits)
    encoder, words, taken = window_encoder(FITTED, bits), list[int](), 0
    for start in range(0, len(data), size):
        words += encoder.push(data[start : start + size]).words.tolist()
        taken += len(data[start : start + size])
        assert taken - encoder.open == whole.lengths[: len(words)].sum()
    assert [*words, *encoder.finish().words.tolist()] == whole.words.tolist()


@pytest.mark.parametrize("bits", [16, 24, 32, 40])
def test_greedy_windows_are_the_longest_whose_code_fits(bits: int) -> None:
    text = prose(60) + noise(4)
    for name, (model, weights) in MODELS.items():
        found = greedy_windows(text, model, bits)
        pairs = list(zip(found.words.tolist(), found.lengths.tolist(), strict=True))
        assert pairs == reference.greedy(text, weights, bits), name


def test_windows_that_hold_no_byte_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than 8 bits"):
        greedy_windows(b"\x80", Uneven(0), 8)
    for bits in (0, 8):
        with pytest.raises(ConfigError, match="at least 9"):
            encode_windows(b"a", FITTED, bits)
