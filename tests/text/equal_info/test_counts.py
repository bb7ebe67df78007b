"""Count models against dictionaries of Python integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.errors import CheckpointError, ConfigError
from smalti.text.equal_info import grams
from smalti.text.equal_info.counts import CountModel
from smalti.text.equal_info.grams import MAX_ORDER, Grams
from smalti.text.equal_info.model import MAX_TOTAL
from tests.text.equal_info import reference
from tests.text.equal_info.texts import prose

FEW = st.binary(max_size=30).map(lambda data: bytes(byte % 3 for byte in data))  # few letters: contexts recur


@given(st.lists(FEW, max_size=4), st.integers(0, 6), FEW)
@settings(max_examples=80, deadline=None)
def test_weights_are_those_of_back_off_from_dictionaries(samples: list[bytes], order: int, window: bytes) -> None:
    model = CountModel.fit(samples, order, longest=20)
    weights, cursor = reference.witten_bell(samples, order, 20), model.cursor()
    for length in range(len(window) + 1):
        expected = weights(window[:length])
        if any(samples):
            assert cursor.weights.tolist() == expected
        contexts = np.frombuffer(window[:length], np.uint8)[None]
        assert np.array_equal(model.weights(contexts)[0], cursor.weights)
        if length < len(window):
            cursor.push(window[length])


def test_without_samples_all_bytes_weigh_the_same() -> None:
    for samples in ([], [b""], [b"", b""]):
        assert len(set(CountModel.fit(samples, 3).cursor().weights.tolist())) == 1


def test_raw_counts_are_the_weights() -> None:
    counts = np.random.default_rng(1).integers(1, 2**14, (256, 256))
    model = CountModel.of_counts(counts)
    assert np.array_equal(model.weights(np.zeros((1, 0), np.uint8))[0], counts.sum(0))
    previous = np.arange(256, dtype=np.uint8)[:, None]
    assert np.array_equal(model.weights(previous), counts)
    assert np.array_equal(model.weights(np.concatenate([previous[::-1], previous], axis=1)), counts)
    unigram = CountModel.of_counts(counts[0])
    assert np.array_equal(unigram.weights(previous)[17], counts[0])


@pytest.mark.parametrize(
    "counts", [np.zeros((256, 256), int), np.full((256, 256), MAX_TOTAL // 256), np.ones(255, int), np.ones((256, 256))]
)
def test_counts_that_are_no_weights_are_refused(counts: np.ndarray) -> None:
    with pytest.raises(ConfigError):
        CountModel.of_counts(counts)


@pytest.mark.parametrize("order", [-1, 7])
def test_orders_out_of_range_are_refused(order: int) -> None:
    with pytest.raises(ConfigError, match="order"):
        CountModel.fit([b"abc"], order)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_grams_do_not_depend_on_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [prose(900), b"", b"a", b"\0" * 100, prose(333, seed=2)]
    whole = Grams.of(samples, 4)
    monkeypatch.setattr(grams, "BLOCK", block)
    parts = Grams.of(iter(samples), 4)
    assert np.array_equal(whole.keys, parts.keys) and np.array_equal(whole.counts, parts.counts)
    assert whole.counts.sum() == sum(map(len, samples))


def test_contexts_that_are_too_rare_are_left_out() -> None:
    samples = [prose(3000), b"XYZ"]
    full, pruned = CountModel.fit(samples, 4), CountModel.fit(samples, 4, least=3)
    assert len(pruned.link) < len(full.link)
    # A context that occurs often keeps its weights; one that occurs once has those of the shorter.
    often = np.frombuffer(b"the ", np.uint8)[None]
    assert np.array_equal(full.weights(often), pruned.weights(often))
    rare = np.frombuffer(b"XY", np.uint8)[None]
    assert np.array_equal(pruned.weights(rare)[0], pruned.weights(rare[:, :0])[0])


def test_damaged_arrays_are_refused() -> None:
    model = CountModel.fit([prose(500)], 2)
    arrays = model.tensors()
    again = CountModel.from_tensors(arrays, 192)
    assert np.array_equal(again.cursor().weights, model.cursor().weights)
    for name, change in {
        "targets": lambda x: x + len(model.link),
        "link": lambda x: x + 1,
        "first": lambda x: x[::-1].copy(),
        "keep": lambda x: -x,
        "amounts": lambda x: x[:-1],
        "symbols": lambda x: x.astype(np.int32),
    }.items():
        with pytest.raises(CheckpointError):
            CountModel.from_tensors({**arrays, name: change(arrays[name])}, 192)
    with pytest.raises(CheckpointError):
        CountModel.from_tensors({name: arrays[name] for name in list(arrays)[1:]}, 192)


def test_links_that_lead_further_than_the_longest_context_are_refused() -> None:
    def chain(nodes: int) -> dict[str, np.ndarray]:
        links = np.maximum(np.arange(nodes, dtype=np.int32) - 1, 0)
        nothing, first = np.zeros(0, np.int32), np.zeros(nodes + 1, np.int32)
        keep = np.zeros(nodes, np.int32)
        return {"link": links, "keep": keep, "first": first, "symbols": np.zeros(0, np.uint8), "amounts": nothing,
                "targets": nothing}  # fmt: skip

    CountModel.from_tensors(chain(MAX_ORDER + 1), 192)
    with pytest.raises(CheckpointError):
        CountModel.from_tensors(chain(MAX_ORDER + 2), 192)
