"""Windows of a model in floats: what comes back is what went in, or it is refused."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from smalti.errors import InputError
from smalti.text.equal_info.model import ByteArray, Cursor, NextByte, WeightArray
from smalti.text.equal_info.neural import ByteTransformer, NeuralModel, Training, integer_weights, train_network
from smalti.text.equal_info.online import RAW, BlockCoder, BlockDecoder, BlockEncoder, bytes_of, tokens_of
from smalti.text.equal_info.tokenizer import EqualInfoTokenizer, Neural
from tests.text.equal_info.texts import AWKWARD, noise, prose

TINY = Neural(layers=1, width=16, heads=2, longest=12, block=100, training=Training(steps=20, batch=8))


def tokenizer(**changes: object) -> EqualInfoTokenizer:
    torch.manual_seed(0)
    return EqualInfoTokenizer.Config(bits=24, token_bits=12, model=TINY.replace(**changes)).build()


@pytest.fixture(scope="module")
def trained() -> EqualInfoTokenizer:
    return tokenizer().fit([prose(5000, seed=1)])


class Flaky(NextByte):
    """Weights that are never twice the same, as those of a badly behaved device."""

    def __init__(self) -> None:
        self.draw = np.random.default_rng(0)

    def weights(self, contexts: ByteArray) -> WeightArray:
        return self.draw.integers(1, 2**20, (len(contexts), 256))

    def cursor(self) -> Cursor:
        model = self

        class Drawn(Cursor):
            weights = property(lambda self: model.weights(np.zeros((1, 0), np.uint8))[0])

            def push(self, byte: int) -> None:
                pass

        return Drawn()


def test_any_bytes_come_back(trained: EqualInfoTokenizer) -> None:
    for data in (*(sample[:300] for sample in AWKWARD), prose(450)):
        assert trained.data(trained.ids(data)) == data
    assert len(trained.ids(b"")) == 0


def test_training_makes_text_shorter(trained: EqualInfoTokenizer) -> None:
    text = prose(300, seed=4)
    assert len(trained.ids(text)) < len(tokenizer().ids(text))


def test_the_cursor_and_the_batch_see_the_same_network() -> None:
    network = ByteTransformer(1, 16, 2, longest=9).double()
    torch.nn.init.normal_(network.head.weight)
    model, window = NeuralModel(network), np.frombuffer(noise(11), np.uint8)
    cursor = model.cursor()
    for depth in range(len(window) + 1):
        batch = model.weights(window[None, :depth])[0]
        assert np.abs(cursor.weights - batch).max() <= 1
        if depth >= 9:
            assert (batch == 1).all()
        if depth < len(window):
            cursor.push(int(window[depth]))


def test_weights_follow_the_fixed_recipe() -> None:
    logits = torch.tensor([[0.0] * 255 + [40.0], [0.0] * 256])
    weights = integer_weights(logits)
    assert weights[0].tolist() == [1] * 255 + [2**20 - 1]
    assert weights[1].tolist() == [2**12] * 256


def test_a_model_that_does_not_repeat_itself_falls_back_to_the_bytes() -> None:
    coder = BlockCoder(Flaky(), 16, 16, 64, 1, {"weights": "flaky"})
    data = noise(150)
    encoder, decoder = BlockEncoder(coder), BlockDecoder(coder)
    ids = np.concatenate([encoder.push(data), encoder.finish()])
    assert int.from_bytes(bytes_of(ids[:8], 16, 16)[8:12], "big") == RAW + 64
    assert len(ids) == 3 * 8 + 32 + 32 + 11
    assert decoder.push(ids) + decoder.finish() == data


@pytest.mark.parametrize("token_bits", [1, 2, 3, 4, 6, 8, 12, 24])
def test_headers_fit_tokens_of_any_size(token_bits: int, trained: EqualInfoTokenizer) -> None:
    config = trained.config.replace(token_bits=token_bits)
    other = EqualInfoTokenizer(config, trained.model)
    for data in (prose(230), noise(130)):
        assert other.data(other.ids(data)) == data


@pytest.mark.parametrize("size", [7, 100, 101])
def test_blocks_give_the_ids_of_the_whole_and_any_position_is_a_restart(size: int, trained: EqualInfoTokenizer) -> None:
    data = prose(250) + noise(80)
    whole, encoder, ids = trained.ids(data), trained.stream_encoder(), np.zeros(0, np.uint16)
    for start in range(0, len(data), size):
        given = encoder.push(data[start : start + size])
        ids = np.concatenate([ids, given])
        assert not len(given) or trained.data(ids) == data[: encoder.position]
    rest = trained.ids(data[encoder.position :])
    assert np.array_equal(np.concatenate([ids, rest]), whole)
    assert np.array_equal(np.concatenate([ids, encoder.finish()]), whole)
    decoder, back = trained.stream_decoder(), b""
    for start in range(0, len(whole), size):
        back += decoder.push(whole[start : start + size])
    assert back + decoder.finish() == data


def test_every_flipped_bit_is_refused(trained: EqualInfoTokenizer) -> None:
    ids = trained.ids(prose(20))
    for place in range(len(ids)):
        for bit in range(12):
            flipped = ids.copy()
            flipped[place] ^= 1 << bit
            with pytest.raises(InputError):
                trained.data(flipped)


def test_a_flipped_bit_of_a_raw_block_is_refused() -> None:
    coder = BlockCoder(Flaky(), 12, 12, 64, 1, {})
    ids = coder.encode(b"abcd")
    for place in range(len(ids)):
        for bit in range(12):
            flipped = ids.copy()
            flipped[place] ^= 1 << bit
            with pytest.raises(InputError):
                decoder = BlockDecoder(coder)
                decoder.push(flipped)
                decoder.finish()


def test_missing_tokens_are_refused(trained: EqualInfoTokenizer) -> None:
    ids = trained.ids(prose(150))
    for end in (1, 10, len(ids) - 1):
        with pytest.raises(InputError, match="inside a block"):
            trained.data(ids[:end])


def test_other_weights_or_another_number_of_threads_are_refused(trained: EqualInfoTokenizer) -> None:
    ids = trained.ids(prose(120))
    with pytest.raises(InputError, match="other weights"):
        tokenizer().fit([prose(5000, seed=2)]).data(ids)
    threads = EqualInfoTokenizer(trained.config.replace(model=TINY.replace(threads=2)), trained.model)
    with pytest.raises(InputError, match="number of threads"):
        threads.data(ids)
    assert threads.data(threads.ids(b"abc")) == b"abc"


def test_a_tampered_fingerprint_is_refused(trained: EqualInfoTokenizer) -> None:
    coder = trained._blocks()
    ids = coder.encode(b"some text")
    for key in coder.fingerprint:
        other = BlockDecoder(replace(coder, fingerprint={**coder.fingerprint, key: "other"}))
        with pytest.raises(InputError, match="fingerprint"):
            other.push(ids)
    assert BlockDecoder(coder).push(ids) == b"some text"


def test_the_processs_own_number_of_threads_does_not_matter_and_stays(trained: EqualInfoTokenizer) -> None:
    data, before = prose(120), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        ids = trained.ids(data)
        torch.set_num_threads(2)
        assert np.array_equal(trained.ids(data), ids) and trained.data(ids) == data
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_that_code_at_once_do_not_disturb_one_another(trained: EqualInfoTokenizer) -> None:
    samples = [prose(90, seed=seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(trained.ids, samples))
    assert [trained.data(ids) for ids in together] == samples
    assert all(np.array_equal(trained.ids(data), ids) for data, ids in zip(samples, together, strict=True))


def test_another_process_decodes(trained: EqualInfoTokenizer, tmp_path: Path) -> None:
    folder, data = trained.save(tmp_path / "saved"), prose(250)
    np.save(tmp_path / "ids.npy", trained.ids(data))
    assert "threads" in (folder / "fingerprint.json").read_text()
    code = (
        "import sys, numpy\n"
        "from smalti.text.equal_info.tokenizer import EqualInfoTokenizer\n"
        f"tokenizer = EqualInfoTokenizer.load({str(folder)!r})\n"
        f"ids = numpy.load({str(tmp_path / 'ids.npy')!r})\n"
        "sys.stdout.buffer.write(tokenizer.data(ids))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == data


def test_crops_do_not_cross_samples() -> None:
    # Every sample is one letter over and over; a network that never saw a border gives other letters no chance.
    torch.manual_seed(0)
    network = ByteTransformer(1, 32, 2, longest=8)
    samples = [bytes([letter]) * 9 for letter in b"abcdefgh"] * 20
    train_network(network, samples, Training(steps=250, batch=32, rate=3e-3))
    weights = NeuralModel(network).weights(np.frombuffer(b"cccc", np.uint8)[None])[0]
    others = sum(int(weights[letter]) for letter in b"abdefgh")
    assert others < 0.04 * weights[ord("c")]  # across borders it would be a ninth
    with pytest.raises(InputError, match="no byte"):
        train_network(network, [b""], Training(steps=1))


def test_bytes_as_tokens_come_back() -> None:
    for token_bits in (1, 5, 8, 12, 16, 31, 62):
        for data in (b"", b"a", noise(33)):
            assert bytes_of(tokens_of(data, token_bits), token_bits, len(data)) == data
