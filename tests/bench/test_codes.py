"""Code statistics against counting by hand, known laws, and any split of the data."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.bench.codes import CodeReport, CodeStatistics, agreement, expected_usage
from smalti.errors import ConfigError, InputError


def report(codes: Tensor, vocab: tuple[int, ...], joint: bool = True) -> CodeReport:
    statistics = CodeStatistics(vocab, joint)
    statistics.update(codes)
    return statistics.compute()


def draws(vocab: tuple[int, ...], count: int, seed: int = 0) -> Tensor:
    """Skewed codes: small values are likelier."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(count, len(vocab), generator=generator, dtype=torch.float64) ** 2
    return (shares * torch.tensor(vocab, dtype=torch.float64)).long()


def entropy_by_hand(values: list[object]) -> float:
    return -sum(count / len(values) * math.log2(count / len(values)) for count in Counter(values).values())


def test_uniform_codes_fill_the_codebook() -> None:
    codes = torch.randint(64, (100_000, 1), generator=torch.Generator().manual_seed(0))
    slot = report(codes, (64,)).slots[0]
    assert slot.perplexity == pytest.approx(64, rel=0.02)
    assert slot.usage == slot.active == 1
    assert slot.efficiency == pytest.approx(1, abs=1e-3)


def test_a_constant_code_has_perplexity_one() -> None:
    slot = report(torch.full((500, 1), 3), (64,)).slots[0]
    assert (slot.perplexity, slot.entropy, slot.used) == (1, 0, 1)
    assert slot.usage == 1 / 64


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 200), st.integers(0, 9))
def test_every_number_equals_counting_by_hand(vocab: list[int], count: int, seed: int) -> None:
    codes = draws(tuple(vocab), count, seed)
    result = report(codes, tuple(vocab))
    for slot, size in enumerate(vocab):
        values = codes[:, slot].tolist()
        found = result.slots[slot]
        assert found.count == count
        assert found.used == len(set(values))
        assert found.entropy == pytest.approx(entropy_by_hand(values), abs=1e-12)
        assert found.active == sum(n > 0.01 * count / size for n in Counter(values).values()) / size
    assert result.joint is not None
    assert result.joint.used == len(set(map(tuple, codes.tolist())))
    assert result.joint.entropy == pytest.approx(entropy_by_hand(list(map(tuple, codes.tolist()))), abs=1e-12)
    assert result.joint.entropy <= result.bits_entropy + 1e-9
    assert result.bits_nominal == pytest.approx(math.log2(math.prod(vocab)))


@pytest.mark.parametrize("vocab", [(64,), (7, 300), (2**30, 2**30), (2**62,), (2**63, 2**63, 5)])
def test_any_split_and_merge_gives_the_one_shot_value(vocab: tuple[int, ...]) -> None:
    codes = draws(tuple(min(size, 40) for size in vocab), 90) + torch.tensor([size - min(size, 40) for size in vocab])
    gathered = CodeStatistics(vocab)
    for start, end in pairwise([0, 1, 17, 17, 60, 90]):
        worker = CodeStatistics(vocab)
        worker.update(codes[start:end])
        gathered.merge(worker)
    assert gathered.compute() == report(codes, vocab)
    tuples = list(map(tuple, codes.tolist()))
    joint = gathered.compute().joint
    assert joint is not None and joint.used == len(set(tuples))
    assert joint.entropy == pytest.approx(entropy_by_hand(list(tuples)), abs=1e-12)


def test_positions_of_any_extent_and_masks() -> None:
    codes = draws((5, 5), 24).reshape(2, 3, 4, 2)
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[0, 1:, :2] = True
    statistics = CodeStatistics((5, 5))
    statistics.update(codes, mask)
    assert statistics.compute() == report(codes[mask], (5, 5))
    statistics.update(codes, torch.zeros_like(mask))
    assert statistics.compute().slots[0].count == 4


def test_the_joint_count_can_be_left_out() -> None:
    assert report(draws((5, 5), 30), (5, 5), joint=False).joint is None
    one = report(draws((5,), 30), (5,))
    assert one.joint == one.slots[0]
    with pytest.raises(ConfigError):
        CodeStatistics((5, 5)).merge(CodeStatistics((5, 5), joint=False))


def test_expected_usage_is_what_uniform_draws_reach() -> None:
    generator = torch.Generator().manual_seed(1)
    reached = [len(torch.randint(100, (150,), generator=generator).unique()) / 100 for _ in range(300)]
    assert sum(reached) / 300 == pytest.approx(expected_usage(100, 150), abs=0.01)
    assert expected_usage(2**60, 1000) == pytest.approx(1000 / 2**60)
    assert expected_usage(1, 5) == 1


def test_agreement() -> None:
    assert agreement(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == 0.75
    with pytest.raises(InputError):
        agreement(torch.zeros(3), torch.zeros(4))


@pytest.mark.parametrize(
    "codes", [torch.tensor([[5]]), torch.tensor([[-1]]), torch.tensor([[0, 1]]), torch.zeros(3, 1)]
)
def test_codes_that_do_not_fit_are_refused(codes: Tensor) -> None:
    with pytest.raises(InputError):
        report(codes, (5,))


def test_nothing_gathered_has_no_value() -> None:
    with pytest.raises(InputError, match="no codes"):
        CodeStatistics((4,)).compute()
    with pytest.raises(InputError, match="vocabulary"):
        CodeStatistics(())
