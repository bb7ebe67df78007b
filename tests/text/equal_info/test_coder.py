"""The reference coder against the sheet's steps in strings of digits, and what a coder must do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.errors import ConfigError, InputError
from smalti.text.equal_info.coder import ArithmeticEncoder, ArithmeticTokens, decode_bits, encode_bits
from smalti.text.equal_info.counts import CountModel
from tests.text.equal_info import reference
from tests.text.equal_info.texts import AWKWARD, noise, prose

COUNTS = np.random.default_rng(0).integers(1, 50, (256, 256))
MODEL = CountModel.of_counts(COUNTS)


@given(st.binary(max_size=40), st.sampled_from([22, 24, 31, 32, 33, 48, 62, 80]))
@settings(max_examples=40, deadline=None)
def test_bits_are_those_of_the_sheets_steps(data: bytes, precision: int) -> None:
    bits, _ = encode_bits(data, MODEL, precision)
    assert "".join(map(str, bits)) == reference.arithmetic_code(data, reference.order1(COUNTS), precision)


@pytest.mark.parametrize("precision", [24, 32, 62, 100])
@pytest.mark.parametrize("data", AWKWARD, ids=len)
def test_bits_decode_to_what_was_encoded(data: bytes, precision: int) -> None:
    bits, sizes = encode_bits(data, MODEL, precision)
    assert decode_bits(bits, len(data), MODEL, precision) == data
    assert len(bits) == (sizes[-1] if data else 0) + 1
    assert (np.diff(sizes) >= 0).all()


def test_a_code_is_as_long_as_the_text_is_improbable() -> None:
    text = prose(4000)
    model = CountModel.fit([prose(20000, seed=1)], 2, longest=None)
    cursor, entropy = model.cursor(), 0.0
    for byte in text:
        weights = cursor.weights
        entropy -= np.log2(weights[byte] / weights.sum())
        cursor.push(byte)
    bits, _ = encode_bits(text, model)
    assert abs(len(bits) - entropy) < 0.01 * entropy + 2


def test_a_probability_that_the_precision_can_not_hold_is_refused() -> None:
    weights = np.ones(256, np.int64)
    weights[7] = 2**30
    with pytest.raises(ConfigError, match="precision of 16 bits"):
        ArithmeticEncoder(16).push(3, weights)
    with pytest.raises(ConfigError, match="at least 2"):
        ArithmeticEncoder(1)


@pytest.mark.parametrize("token_bits", [1, 7, 8, 12, 16, 24])
@pytest.mark.parametrize("model", [MODEL, CountModel.of_counts(COUNTS.sum(0))], ids=["AC", "StaticAC"])
def test_a_stream_without_windows_comes_back_from_its_tokens(token_bits: int, model: CountModel) -> None:
    tokens = ArithmeticTokens(model, token_bits)
    for data in AWKWARD:
        ids, count = tokens.encode(data)
        assert tokens.decode(ids, count) == data
    assert len(tokens.encode(b"")[0]) == 0


def test_tokens_of_a_stream_are_its_bits() -> None:
    data = noise(200)
    bits, _ = encode_bits(data, MODEL)
    ids, _ = ArithmeticTokens(MODEL, 16).encode(data)
    joined = "".join(f"{each:016b}" for each in ids.tolist())
    assert joined.startswith("".join(map(str, bits))) and len(joined) - len(bits) < 16
    with pytest.raises(InputError, match=r"0\.\.65535"):
        ArithmeticTokens(MODEL, 16).decode(np.array([65536]), 1)
