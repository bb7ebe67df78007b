"""Point cloud distances against scipy's tree, plain loops and identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

import smalti.shape.metrics
from smalti.errors import ConfigError, InputError
from smalti.shape.metrics import ChamferDistance, FScore, match, nearest_distance


def cloud(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 1000, 2**22])
def test_nearest_distances_equal_scipys_tree_at_every_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smalti.shape.metrics, "PAIRS_AT_ONCE", chunk)
    points, other = cloud(157, 1), cloud(211, 2)
    expected, _ = cKDTree(other.numpy()).query(points.numpy())
    assert np.abs(nearest_distance(points, other).numpy() - expected).max() < 1e-12


def test_near_points_far_from_the_origin_keep_their_digits() -> None:
    points = cloud(50) + 1e5
    moved = points + torch.tensor([1e-6, 0, 0], dtype=torch.float64)
    assert torch.allclose(nearest_distance(points, moved), torch.full((50,), 1e-6, dtype=torch.float64), rtol=1e-3)


def test_chamfer_and_f_score_equal_plain_loops() -> None:
    p, q = cloud(9, 1), cloud(7, 2)
    there = [min(math.dist(a, b) for b in q.tolist()) for a in p.tolist()]
    back = [min(math.dist(a, b) for b in p.tolist()) for a in q.tolist()]
    squares = sum(d * d for d in there) / 9 + sum(d * d for d in back) / 7
    assert float(ChamferDistance("l2").values(q, p)) == pytest.approx(squares, rel=1e-12)
    assert float(ChamferDistance("l1").values(q, p)) == pytest.approx((sum(there) / 9 + sum(back) / 7) / 2, rel=1e-12)
    threshold = sorted(there)[4]  # a distance that occurs: the comparison is strict
    found = match(q, p, threshold)
    precision, recall = sum(d < threshold for d in there) / 9, sum(d < threshold for d in back) / 7
    assert (found.precision, found.recall) == (pytest.approx(precision), pytest.approx(recall))
    assert found.f_score == pytest.approx(2 * precision * recall / (precision + recall))


def test_chamfer_is_symmetric_and_zero_for_identical_sets() -> None:
    p, q = cloud(60, 1), cloud(40, 2)
    for norm in ("l1", "l2"):
        metric = ChamferDistance(norm)  # type: ignore[arg-type]
        assert float(metric.values(p, q)) == pytest.approx(float(metric.values(q, p)), rel=1e-12)
        assert float(metric.values(p, p[torch.randperm(60)])) == 0
    assert match(p, p, 1e-9).f_score == 1
    assert match(p, p + 10, 0.05).f_score == 0


def test_streaming_and_merging_average_over_pairs() -> None:
    references = torch.stack([cloud(30, seed) for seed in range(4)])
    others = torch.stack([cloud(20, seed + 9) for seed in range(4)])
    for make in (lambda: ChamferDistance("l2"), lambda: FScore(0.2)):
        whole, first, second = make(), make(), make()
        whole.update(references, others)
        first.update(references[:1], others[:1])
        second.update(references[1:], others[1:])
        second.merge(first)
        assert second.compute() == pytest.approx(whole.compute(), abs=1e-12)
        assert whole.compute() == pytest.approx(float(whole.values(references, others).mean()))


def test_protocols_carry_the_formula() -> None:
    protocols = [m.protocol for m in (ChamferDistance("l1"), ChamferDistance("l2"), FScore(0.01), FScore(0.02))]
    assert len(set(protocols)) == 4
    with pytest.raises(ConfigError):
        FScore(0.01).merge(FScore(0.02))


@pytest.mark.parametrize(
    "points",
    [torch.zeros(0, 3), torch.zeros(3), torch.full((4, 3), torch.nan), torch.zeros(4, 3, dtype=torch.int64)],
)
def test_what_is_no_cloud_is_refused(points: Tensor) -> None:
    with pytest.raises(InputError):
        nearest_distance(points, cloud(3))


def test_other_mistakes_are_refused() -> None:
    with pytest.raises(InputError, match="2 and 3 dimensions"):
        nearest_distance(torch.rand(4, 2), cloud(4))
    with pytest.raises(ConfigError):
        FScore(0)
    with pytest.raises(ConfigError):
        ChamferDistance("l3")  # type: ignore[arg-type]
