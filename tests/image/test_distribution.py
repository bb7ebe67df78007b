"""Distances between sets of images against scipy, plain loops and known laws."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.image.distribution import (
    Extractor,
    FrechetDistance,
    ImageDistance,
    InceptionScore,
    KernelDistance,
    Moments,
    RankWarning,
    frechet_distance,
    kernel_distance,
    random_convolutions,
    raw_pixels,
)


def features(count: int, dim: int, seed: int = 0) -> Tensor:
    """Correlated rows with a mean."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mix + mix[0]


def distance_of(reference: Tensor, samples: Tensor) -> float:
    metric = FrechetDistance()
    metric.update(reference, samples)
    return metric.compute()


# --- Fréchet distance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "seed"), [(1, 0), (3, 1), (16, 2), (40, 3)])
def test_the_trace_of_the_root_equals_scipys(dim: int, seed: int) -> None:
    a, b = features(200, dim, seed), features(150, dim, seed + 10)
    ca, cb = np.atleast_2d(np.cov(a.numpy().T)), np.atleast_2d(np.cov(b.numpy().T))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert distance_of(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_a_set_has_distance_zero_to_itself() -> None:
    rows = features(300, 24)
    assert distance_of(rows, rows) < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        assert distance_of(rows[:10], rows[:10]) < 1e-6  # singular covariance


def test_gaussians_on_a_line_have_the_textbook_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2, 1_000_000, 1, generator=generator, dtype=torch.float64)
    assert distance_of(draws[0], draws[1] * 1.1 + 0.1) == pytest.approx(0.1**2 + 0.1**2, abs=1e-3)
    exact = [torch.tensor(value, dtype=torch.float64) for value in ([1.0], [[2.25]], [-1.0], [[0.25]])]
    assert frechet_distance(*exact) == pytest.approx(5, abs=1e-9)


def test_two_samples_of_one_law_are_close_but_not_at_zero() -> None:
    rows = features(4000, 8)
    assert 0 < distance_of(rows[:2000], rows[2000:]) < 0.05 * distance_of(rows[:2000], rows[2000:] + 1)


def test_few_samples_warn() -> None:
    with pytest.warns(RankWarning, match="16 feature dimensions"):
        distance_of(features(12, 16), features(100, 16))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 59), max_size=5), st.booleans())
def test_moments_do_not_depend_on_the_split(cuts: list[int], merge: bool) -> None:
    rows = features(60, 5) + 1e3
    bounds = [0, *sorted(set(cuts)), 60]
    moments = Moments()
    for start, end in pairwise(bounds):
        part = Moments()
        (part if merge else moments).update(rows[start:end])
        moments.merge(part)
    assert np.allclose(moments.mean.numpy(), rows.numpy().mean(0), atol=1e-8)
    assert np.allclose(moments.covariance.numpy(), np.cov(rows.numpy().T), atol=1e-8)


def test_sides_may_be_gathered_apart() -> None:
    a, b = features(100, 4, 1), features(70, 4, 2)
    apart = FrechetDistance()
    apart.update(samples=b)
    other = FrechetDistance()
    other.update(reference=a)
    apart.merge(other)
    assert apart.compute() == pytest.approx(distance_of(a, b), abs=1e-10)


# --- kernel distance -------------------------------------------------------------------------------------------------


def test_kernel_distance_equals_plain_loops() -> None:
    x, y = features(7, 3, 1).numpy(), features(9, 3, 2).numpy()

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    xx = sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    yy = sum(k(y[i], y[j]) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    xy = sum(k(a, b) for a in x for b in y) / (7 * 9)
    assert kernel_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)


def test_kernel_distance_of_one_law_has_mean_zero() -> None:
    generator = torch.Generator().manual_seed(5)
    values = torch.tensor(
        [kernel_distance(*torch.randn(2, 100, 6, generator=generator, dtype=torch.float64)) for _ in range(60)]
    )
    assert abs(float(values.mean())) < 3 * float(values.std()) / 60**0.5
    assert float(values.min()) < 0 < float(values.max())


def test_subsets_average_to_the_full_value_and_follow_the_seed() -> None:
    a, b = features(400, 4, 1), features(400, 4, 2)
    estimates = []
    for seed in (0, 0, 1):
        metric = KernelDistance(subsets=50, subset_size=200, seed=seed)
        metric.update(a, b)
        estimates.append(metric.compute())
    assert estimates[0] == estimates[1] != estimates[2]
    assert estimates[0].std is not None
    assert estimates[0].mean == pytest.approx(kernel_distance(a, b), abs=3 * estimates[0].std)
    with pytest.raises(InputError, match="too few"):
        small = KernelDistance(subsets=2, subset_size=1000)
        small.update(a, b)
        small.compute()


# --- inception score -------------------------------------------------------------------------------------------------


def test_inception_score_equals_plain_loops() -> None:
    probabilities = torch.softmax(features(53, 7), 1)
    probabilities[0] = torch.eye(7, dtype=torch.float64)[2]  # zeros must count as zero, not as NaN
    scores = []
    for split in range(5):
        part = probabilities[53 * split // 5 : 53 * (split + 1) // 5].numpy()
        marginal = part.mean(0)
        divergences = [sum(p * np.log(p / m) for p, m in zip(row, marginal, strict=True) if p > 0) for row in part]
        scores.append(np.exp(np.mean(divergences)))
    metric = InceptionScore(splits=5)
    for rows in probabilities.split(10):
        metric.update(rows)
    estimate = metric.compute()
    assert (estimate.mean, estimate.std) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)


def test_inception_score_bounds() -> None:
    certain, unsure = InceptionScore(splits=1), InceptionScore(splits=1)
    certain.update(torch.eye(8).repeat(3, 1))
    unsure.update(torch.full((24, 8), 1 / 8))
    assert certain.compute().mean == pytest.approx(8)
    assert unsure.compute().mean == pytest.approx(1)


def test_logits_are_refused_as_probabilities() -> None:
    with pytest.raises(InputError, match="softmax"):
        InceptionScore().update(torch.randn(4, 10))


# --- over images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["fid", "kid"])
def test_no_extractor_no_number(distance: str) -> None:
    with pytest.raises(ConfigError, match=f"{distance} needs a feature extractor.*pytorch-fid.*guided-diffusion"):
        ImageDistance(distance)  # type: ignore[arg-type]


def test_images_go_through_the_extractor_that_the_protocol_names() -> None:
    images = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    blurred = (images + images.flip(0)) / 2
    halves = Extractor("mean-colour", lambda x: x.mean((2, 3)), weights_hash="0123456789abcdef")
    metric = ImageDistance("fid", halves)
    metric.update(images[:20], blurred[:20])
    rest = ImageDistance("fid", halves)
    rest.update(images[20:], blurred[20:])
    metric.merge(rest)
    assert metric.protocol == "frechet/mean-colour@0123456789ab"
    assert metric.compute() == pytest.approx(distance_of(images.mean((2, 3)), blurred.mean((2, 3))), rel=1e-6)
    with pytest.raises(ConfigError):
        metric.merge(ImageDistance("fid", raw_pixels()))


def test_built_in_extractors() -> None:
    images = torch.rand(6, 3, 32, 40)
    assert raw_pixels()(images).shape == (6, 192)
    assert torch.allclose(raw_pixels()(torch.full((1, 3, 17, 9), 0.25)), torch.full((1, 192), 0.25))
    assert torch.equal(random_convolutions()(images), random_convolutions()(images))
    assert not torch.equal(random_convolutions(1)(images), random_convolutions()(images))
    assert "NOT-comparable" in random_convolutions().name


@pytest.mark.parametrize(
    "rows", [torch.zeros(4), torch.zeros(0, 3), torch.full((3, 2), torch.inf), torch.zeros(3, 2, dtype=torch.int64)]
)
def test_what_are_no_features_is_refused(rows: Tensor) -> None:
    with pytest.raises(InputError):
        FrechetDistance().update(rows, rows)


def test_sets_of_other_widths_can_not_be_compared() -> None:
    with pytest.raises(InputError, match="3 and of 4"):
        distance_of(features(10, 3), features(10, 4))
    with pytest.raises(InputError, match="two samples"):
        distance_of(features(1, 3), features(10, 3))
