"""Pyramid codes against enumeration by hand, brute force over all codewords, and the figures of the sheet."""

from __future__ import annotations

import itertools

import pytest
import torch

from smalti.errors import ConfigError, InputError, UnavailableError
from smalti.quantize import Quantizer, create
from smalti.quantize.enumeration import Enumeration, count, count_table, from_words, to_words
from smalti.quantize.pyramid import (
    Pyramid,
    beta_levels,
    directions,
    least_squares_gain,
    nearest_pulses,
    two_nearest_pulses,
)
from smalti.testing import check_quantizer

SMALL = [(dim, pulses) for dim in range(1, 6) for pulses in range(1, 7)]


def all_points(dim: int, pulses: int) -> list[tuple[int, ...]]:
    """Every point, from a product over coordinates."""
    span = range(-pulses, pulses + 1)
    return [y for y in itertools.product(span, repeat=dim) if sum(map(abs, y)) == pulses]


def in_order(dim: int, pulses: int) -> list[tuple[int, ...]]:
    """Every point in the order of the paper: a coordinate goes through 0, +1, -1, +2, ..."""
    return sorted(all_points(dim, pulses), key=lambda y: [2 * abs(v) - (v > 0) for v in y])


class Encode(torch.nn.Module):
    """What is exported."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.quantizer.encode(z)


@pytest.mark.parametrize(("dim", "pulses"), SMALL)
def test_the_numbers_of_all_points_are_0_to_n_in_the_published_order(dim: int, pulses: int) -> None:
    points = torch.tensor(in_order(dim, pulses))
    enumeration = Enumeration(dim, pulses)
    assert count(dim, pulses) == len(points) == enumeration.size
    numbers = torch.arange(len(points))
    assert torch.equal(enumeration.codes(points)[:, 0], numbers)
    assert torch.equal(enumeration.points(numbers[:, None]), points)
    assert enumeration.numbers(points) == numbers.tolist()
    assert torch.equal(enumeration.from_numbers(numbers.tolist()), points)


def test_published_counts() -> None:
    assert count(8, 8) == 157184
    assert count(16, 16) == 148348809216
    assert (count(16, 24) - 1).bit_length() == 46 and (count(64, 96) - 1).bit_length() == 192
    assert count_table(2, 2) == ((1, 0, 0), (1, 2, 2), (1, 4, 8))


@pytest.mark.parametrize(("dim", "pulses"), [(64, 96), (128, 128), (16, 40), (200, 7), (3, 500)])
def test_large_pyramids_round_trip_exactly(dim: int, pulses: int) -> None:
    points = nearest_pulses(torch.randn(300, dim, generator=torch.Generator().manual_seed(0)), pulses, "l1")
    enumeration = Enumeration(dim, pulses)
    numbers = enumeration.numbers(points)
    assert torch.equal(enumeration.from_numbers(numbers), points)
    words = to_words(numbers, -(-enumeration.bits // 32))
    assert from_words(words) == numbers and int(words.max()) < 2**32
    codes = enumeration.codes(points)
    assert codes.shape == (300, len(enumeration.vocab)) and bool((codes < torch.tensor(enumeration.vocab)).all())
    assert torch.equal(enumeration.points(codes), points)
    ends = [0, enumeration.size - 1]
    assert enumeration.numbers(enumeration.from_numbers(ends)) == ends


def test_the_number_after_the_last_point_is_refused() -> None:
    enumeration = Enumeration(64, 96)
    with pytest.raises(InputError):
        enumeration.from_numbers([enumeration.size])
    with pytest.raises(InputError):
        enumeration.points(to_words([enumeration.size], len(enumeration.vocab)))
    with pytest.raises(InputError):
        enumeration.numbers(torch.zeros(1, 64, dtype=torch.int64))
    with pytest.raises(ConfigError):
        Enumeration(4, 0)


@pytest.mark.parametrize(("dim", "pulses"), [(1, 3), (2, 7), (3, 4), (4, 6), (5, 3), (6, 2), (8, 1)])
@pytest.mark.parametrize("kind", ["normal", "spiky", "flat"])
def test_exact_search_finds_the_largest_cosine_of_all_points(dim: int, pulses: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(dim * 10 + pulses)
    x = torch.randn(200, dim, generator=generator)
    x = {"normal": x, "spiky": x**5, "flat": x.sign() + 0.1 * x}[kind]
    points = torch.tensor(all_points(dim, pulses)).double()
    cosines = x.double() @ (points / points.norm(dim=1, keepdim=True)).t()
    found = nearest_pulses(x, pulses).double()
    assert bool((found.abs().sum(1) == pulses).all())
    ours = (x.double() * found).sum(1) / found.norm(dim=1)
    torch.testing.assert_close(ours, cosines.amax(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dim", "pulses"), [(1, 3), (2, 1), (2, 7), (3, 4), (4, 6), (5, 3), (6, 2), (8, 1)])
@pytest.mark.parametrize("kind", ["normal", "spiky", "flat", "equal", "sparse", "low"])
def test_the_second_point_has_the_second_largest_cosine_of_all(dim: int, pulses: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(dim * 10 + pulses)
    x = torch.randn(1000, dim, generator=generator)
    x = {
        "normal": x,
        "spiky": x**5,
        "flat": x.sign() + 0.1 * x,
        "equal": x.sign(),
        "sparse": x * (torch.rand(1000, dim, generator=generator) < 0.6),
        "low": (2 * x).round(),  # many points are as good
    }[kind]
    points = torch.tensor(all_points(dim, pulses)).double()
    cosines = x.double() @ (points / points.norm(dim=1, keepdim=True)).t()
    found = two_nearest_pulses(x, pulses)
    assert torch.equal(found[:, 0], nearest_pulses(x, pulses))
    assert bool((found.abs().sum(-1) == pulses).all()) and bool((found[:, 0] != found[:, 1]).any(1).all())
    ours = (x.double()[:, None] * found).sum(-1) / found.double().norm(dim=-1)
    torch.testing.assert_close(ours, cosines.topk(2, dim=1).values, rtol=1e-12, atol=1e-12)


def test_candidates_of_pyramids_that_are_not_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(8))
    quantizer = create("pyramid", dim=5, pulses=4)
    (codes, values, costs), margin = quantizer.candidates(z, 2), quantizer.encode_with_margin(z)[1]
    monkeypatch.setattr("smalti.quantize.pyramid.MAX_SPELLED_OUT", 10)
    implicit = quantizer.candidates(z, 2)
    assert torch.equal(implicit[0], codes) and torch.equal(implicit[1], values) and torch.equal(implicit[2], costs)
    assert torch.equal(quantizer.encode_with_margin(z)[1], margin)
    assert torch.equal(quantizer.candidates(z, 1)[0][..., 0, :], quantizer.encode(z))
    for search, number in (("exact", 3), ("cosine", 2), ("l1", 2)):
        with pytest.raises(InputError, match="not spelled out"):
            create("pyramid", dim=5, pulses=4, search=search).candidates(z, number)


@pytest.mark.parametrize(("dim", "pulses"), [(16, 24), (64, 96)])
def test_margins_of_large_pyramids(dim: int, pulses: int) -> None:
    quantizer = create("pyramid", dim=dim, pulses=pulses)
    z = torch.randn(2, 6, dim, generator=torch.Generator().manual_seed(9))
    codes, margin = quantizer.encode_with_margin(z)
    best, values, costs = quantizer.candidates(z, 2)
    assert torch.equal(best[..., 0, :], codes) and torch.equal(values, quantizer.decode(best))
    assert margin.shape == codes.shape and bool((margin >= 0).all()) and bool((margin[..., 0] > 0).any())
    unit = torch.nn.functional.normalize(z.double(), dim=-1)
    torch.testing.assert_close(costs, (unit[..., None, :] - values.double()).square().sum(-1), rtol=0, atol=1e-6)


def test_above_2_to_63_points_encode_says_that_it_does_not_compile() -> None:
    quantizer = create("pyramid", dim=64, pulses=96).eval()

    with pytest.raises(UnavailableError, match="above 2\\^63 points"):
        torch.export.export(Encode(quantizer), (torch.randn(1, 2, 64),))


@pytest.mark.parametrize(("dim", "pulses"), [(3, 4), (4, 6), (6, 2)])
def test_l1_search_is_the_nearest_point_of_the_projected_row(dim: int, pulses: int) -> None:
    x = torch.randn(300, dim, generator=torch.Generator().manual_seed(1)).double()
    projected = pulses * x / x.abs().sum(1, keepdim=True)
    points = torch.tensor(all_points(dim, pulses)).double()
    found = nearest_pulses(x, pulses, "l1").double()
    torch.testing.assert_close((projected - found).norm(dim=1), torch.cdist(projected, points).amin(1))


def test_searches_are_ordered_by_the_cosine_they_reach() -> None:
    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(2))
    cosine = {
        search: least_squares_gain(x, nearest_pulses(x, 16, search)) / x.norm(dim=1)
        for search in ("l1", "cosine", "exact")
    }
    assert bool((cosine["cosine"] >= cosine["l1"] - 1e-6).all())
    assert bool((cosine["exact"] >= cosine["cosine"] - 1e-6).all())


@pytest.mark.parametrize(
    ("dim", "pulses", "l1", "cosine"),
    [(8, 8, 0.0549, 0.0528), (16, 16, 0.0517, 0.0499), (16, 24, 0.0238, 0.0236), (32, 20, 0.1153, 0.1063)],
)
def test_errors_of_the_sheet(dim: int, pulses: int, l1: float, cosine: float) -> None:
    x = torch.randn(20_000, dim, generator=torch.Generator().manual_seed(3))

    def error(search: str) -> float:
        gain = least_squares_gain(x, nearest_pulses(x, pulses, search))  # type: ignore[arg-type]
        return float(1 - (gain / x.norm(dim=1)).square().mean())

    assert error("l1") == pytest.approx(l1, rel=0.02)
    assert error("cosine") <= cosine * 1.02
    assert error("exact") <= error("cosine")


def test_zero_equal_and_huge_rows() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [-3e38, 1e38, 0.0], [1e-38, 0.0, 1e-38]])
    for search in ("exact", "cosine", "l1"):
        found = nearest_pulses(x, 4, search)
        assert bool((found.abs().sum(1) == 4).all())
        assert found[0].tolist() == [4, 0, 0] and found[1].tolist() == [2, 1, 1]
        assert found[2].tolist() == [-3, 1, 0] and found[3].tolist() == [2, 0, 2]
    with pytest.raises(InputError):
        nearest_pulses(torch.tensor([[float("nan"), 1.0]]), 2)


@pytest.mark.parametrize("search", ["exact", "cosine", "l1"])
def test_no_rows(search: str) -> None:
    alphabet = Pyramid(6, 5, search=search)  # type: ignore[arg-type]
    codes = alphabet.nearest(torch.zeros(0, 6))
    assert codes.shape == (0, 1) and alphabet.lookup(codes).shape == (0, 6)


def test_codes_do_not_depend_on_the_batch() -> None:
    x = torch.randn(257, 24, generator=torch.Generator().manual_seed(4))
    whole = nearest_pulses(x, 30)
    assert torch.equal(whole, torch.cat([nearest_pulses(row[None], 30) for row in x]))
    assert torch.equal(whole.flip(0), nearest_pulses(x.flip(0), 30))


def test_the_alphabet_with_several_slots() -> None:
    alphabet = Pyramid(40, 60)
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(5))
    codes = alphabet.nearest(x)
    assert len(alphabet.vocab) > 1 and codes.shape == (5, len(alphabet.vocab))
    torch.testing.assert_close(alphabet.lookup(codes), directions(nearest_pulses(x, 60)))
    assert not bool(alphabet.lookup(torch.full_like(codes, -1)).any())
    with pytest.raises(InputError):
        alphabet.slot_vectors(codes)


@pytest.mark.parametrize("search", ["exact", "cosine", "l1"])
def test_the_contract(search: str) -> None:
    check_quantizer(create("pyramid", dim=5, pulses=4, search=search))


@pytest.mark.parametrize("search", ["exact", "cosine", "l1"])
def test_an_exported_encode_gives_the_same_codes(search: str) -> None:
    quantizer = create("pyramid", dim=4, pulses=3, search=search).eval()

    z = torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(6))
    program = torch.export.export(Encode(quantizer), (z,)).module()
    assert torch.equal(program(z), quantizer.encode(z))


def test_beta_levels_are_the_centroids_of_their_cells() -> None:
    stats = pytest.importorskip("scipy.stats")
    dim, groups = 8, 8
    levels = beta_levels(dim, groups, 8).double()
    a, b = dim / 2, dim * (groups - 1) / 2
    cuts = torch.cat([torch.zeros(1), (levels[1:] + levels[:-1]) / 2, torch.ones(1)]).numpy()
    mass = torch.from_numpy(stats.beta.cdf(cuts, a, b)).diff()
    moment = torch.from_numpy(stats.beta.cdf(cuts, a + 1, b)).diff() * a / (a + b)
    torch.testing.assert_close(moment / mass, levels, rtol=0, atol=2e-5)
    assert beta_levels(16, 1, 4).tolist() == [1.0] * 4


def test_shares_of_a_random_row_follow_the_beta_law() -> None:
    stats = pytest.importorskip("scipy.stats")
    rows = torch.randn(3000, 6, 16, generator=torch.Generator().manual_seed(7)).double()
    share = rows.square().sum(-1) / rows.square().sum((1, 2))[:, None]
    assert stats.kstest(share[:, 0].numpy(), stats.beta(8, 40).cdf).statistic < 0.03
