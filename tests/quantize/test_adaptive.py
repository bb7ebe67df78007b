"""Per-sample k-means against loops in float64, planted clusters, and counting by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from smalti.errors import ConfigError, InputError
from smalti.quantize.adaptive import (
    adapt,
    by_first_occurrence,
    choose_clusters,
    cosine_kmeans,
    distortion,
    elbow,
    spread_start,
)


def planted(patterns: int, each: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.linalg.qr(torch.randn(64, 64, generator=generator))[0][:patterns]
    labels = torch.arange(patterns).repeat(each)[torch.randperm(patterns * each, generator=generator)]
    return centres[labels] * 3 + noise * torch.randn(len(labels), 64, generator=generator), labels


def brute_force(x: torch.Tensor, start: torch.Tensor, iterations: int) -> tuple[list[int], torch.Tensor]:
    """Cosine k-means, a row at a time."""
    rows = [row / math.sqrt(sum(v * v for v in row)) for row in x.double()]
    centroids = list(start.double())
    labels: list[int] = []
    for _ in range(iterations):
        labels = [
            max(range(len(centroids)), key=lambda c: float(row @ centroids[c]) / float(centroids[c].norm()))
            for row in rows
        ]
        moved = []
        for number, old in enumerate(centroids):
            members = [row for row, label in zip(rows, labels, strict=True) if label == number]
            moved.append(torch.stack(members).mean(0) if members else old)
        if float((torch.stack(moved) - torch.stack(centroids)).norm()) < 1e-4:
            break
        centroids = moved
    return labels, torch.stack(centroids)


@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_clusters_are_those_of_a_loop_in_float64(iterations: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, start = torch.randn(120, 6, generator=generator), torch.randn(7, 6, generator=generator)
    start[6] = -x.mean(0) * 100 + 50  # stays empty or nearly so
    ours = cosine_kmeans(x, start, iterations=iterations)
    labels, centroids = brute_force(x, start, iterations)
    assert ours.labels.tolist() == labels
    torch.testing.assert_close(ours.centroids.double(), centroids, rtol=1e-5, atol=1e-6)


def test_the_objective_never_increases() -> None:
    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(2))
    objective = torch.tensor(cosine_kmeans(x, spread_start(x, 20)).objective)
    assert len(objective) > 3 and bool((objective.diff() <= 1e-4).all())


def test_planted_clusters_are_found_and_counted() -> None:
    x, labels = planted(12, 40, 0.1)
    found = adapt(x, 12).codes
    assert torch.equal(found, by_first_occurrence(labels))
    assert choose_clusters(x, 8, 18) == 12


def test_the_elbow_is_where_the_curve_bends() -> None:
    curve = [100.0 - 10 * k for k in range(6)] + [50.0 - k for k in range(1, 8)]
    assert elbow(curve, 12) == 12 + 5
    assert elbow(curve, 12, published=True) == 12  # its count starts near 1: index 4, plus 4
    assert elbow([9.0, 1.0, 0.0], 3) == 4
    with pytest.raises(InputError):
        elbow([1.0, 2.0], 3)


def test_start_draws_as_k_means_plus_plus() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    draws = torch.tensor([[0.0], [0.999999], [0.5]], dtype=torch.float64)
    start = spread_start(x, 3, draws=draws)
    rows = F.normalize(x, dim=1)
    assert torch.equal(start[0], rows[0])
    weights = torch.tensor([float((row.double() - rows[0].double()).square().sum()) + 1e-6 for row in rows])
    assert torch.equal(start[1], rows[int((weights.double().cumsum(0) <= 0.999999 * weights.sum()).sum())])


def test_a_sample_decodes_to_its_cluster_means_and_gradients_pass_through_them() -> None:
    x = torch.randn(4, 5, 5, 8, generator=torch.Generator().manual_seed(4), requires_grad=True)
    out = adapt(x, 6)
    assert out.codes.shape == (4, 5, 5) and int(out.codes.max()) == len(out.codebook) - 1
    rows = F.normalize(x.detach().flatten(0, -2), dim=1)
    for code, vector in enumerate(out.codebook):
        torch.testing.assert_close(vector, rows[out.codes.flatten() == code].mean(0))
    out.decode().square().sum().backward()
    assert x.grad is not None and bool(x.grad.any())


def test_the_same_sample_gives_the_same_codes_and_they_occur_in_order() -> None:
    x = torch.randn(90, 8, generator=torch.Generator().manual_seed(5))
    first, again = adapt(x, (3, 9)), adapt(x, (3, 9))
    assert torch.equal(first.codes, again.codes) and torch.equal(first.codebook, again.codebook)
    seen = [first.codes.tolist().index(code) for code in range(len(first.codebook))]
    assert seen == sorted(seen)


def test_distortion_is_the_sum_of_squared_distances() -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(6))
    clusters = cosine_kmeans(x, spread_start(x, 4))
    rows = x / x.norm(dim=1, keepdim=True)
    by_hand = sum(
        float((row - clusters.centroids[label]).square().sum())
        for row, label in zip(rows, clusters.labels, strict=True)
    )
    assert distortion(x, clusters) == pytest.approx(by_hand, rel=1e-5)


def test_refusals() -> None:
    x = torch.randn(10, 4)
    with pytest.raises(InputError):
        cosine_kmeans(x[:0], x)
    with pytest.raises(InputError):
        adapt(torch.full((3, 4), float("nan")), 2)
    with pytest.raises(ConfigError):
        choose_clusters(x, 5, 6)
