"""How close two point clouds are: Chamfer distances and F-score.

    P (N,3), Q (M,3) ──► distance of every point to its nearest in the other cloud ──► Chamfer, F-score

Papers define "Chamfer distance" differently (squared or not, summed or averaged over the two directions, scaled by
10^3), so the protocol string carries the formula. Points must be sampled by area and normalised alike before: the unit
of every number here is the clouds' own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.metric import SampleMean

PAIRS_AT_ONCE = 2**22  # distances in memory: 32 MB in float64


@dataclass(frozen=True)
class Match:
    """How much of each cloud lies within a threshold of the other.

    Args:
        precision: share of the predicted points that have a reference point nearer than the threshold.
        recall: the same of the reference points.
        f_score: their harmonic mean; 0 if both are 0.
    """

    precision: float
    recall: float
    f_score: float


class ChamferDistance(SampleMean):
    """Mean Chamfer distance over pairs of clouds.

    Args:
        norm: "l2" is mean_P d² + mean_Q d², "l1" is (mean_P d + mean_Q d) / 2, with d to the nearest point.
    """

    def __init__(self, norm: Literal["l2", "l1"] = "l2") -> None:
        super().__init__()
        if norm not in ("l2", "l1"):
            raise ConfigError(f"norm must be l2 or l1, got {norm!r}")
        self.norm = norm

    @property
    def protocol(self) -> str:
        return "chamfer-l2/sum-of-mean-squares" if self.norm == "l2" else "chamfer-l1/half-sum-of-means"

    def values(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of each pair of clouds: (B, N, 3) and (B, M, 3), or one pair without the batch axis."""
        pairs = zip(_batched(reference), _batched(reconstruction), strict=True)
        return torch.stack([self._pair(*pair) for pair in pairs])

    def _pair(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        there = nearest_distance(reconstruction, reference)
        back = nearest_distance(reference, reconstruction)
        if self.norm == "l2":
            return there.square().mean() + back.square().mean()
        return (there.mean() + back.mean()) / 2


class FScore(SampleMean):
    """Mean F-score over pairs of clouds.

    Args:
        threshold: distance below which a point counts as matched; 0.01, 0.02 and 0.05 are usual in the unit cube.
    """

    def __init__(self, threshold: float = 0.01) -> None:
        super().__init__()
        if not threshold > 0:
            raise ConfigError(f"threshold must be above 0, got {threshold}")
        self.threshold = threshold

    @property
    def protocol(self) -> str:
        return f"f-score/{self.threshold:g}"

    def values(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of each pair of clouds: (B, N, 3) and (B, M, 3), or one pair without the batch axis."""
        pairs = zip(_batched(reference), _batched(reconstruction), strict=True)
        return torch.tensor([match(*pair, self.threshold).f_score for pair in pairs], dtype=torch.float64)


def match(reference: Tensor, reconstruction: Tensor, threshold: float) -> Match:
    """Precision, recall and F-score of one pair of clouds, (N, 3) and (M, 3)."""
    precision = float((nearest_distance(reconstruction, reference) < threshold).to(torch.float64).mean())
    recall = float((nearest_distance(reference, reconstruction) < threshold).to(torch.float64).mean())
    both = precision + recall
    return Match(precision, recall, 2 * precision * recall / both if both else 0.0)


def nearest_distance(points: Tensor, cloud: Tensor) -> Tensor:
    """Euclidean distance of every point to its nearest in the cloud.

    By brute force on differences, in chunks; the expanded form |p|² - 2 p·q + |q|² loses half of a near point's digits.

    Args:
        points: (N, 3).
        cloud: (M, 3).

    Returns:
        (N,), float64.

    Raises:
        InputError: if a cloud is empty, of another shape, or not finite.
    """
    points, cloud = _checked(points), _checked(cloud)
    if points.shape[1] != cloud.shape[1]:
        raise InputError(f"clouds of {points.shape[1]} and {cloud.shape[1]} dimensions can't be compared")
    rows = max(1, PAIRS_AT_ONCE // len(cloud))
    distances = [
        torch.cdist(chunk, cloud, compute_mode="donot_use_mm_for_euclid_dist").amin(1) for chunk in points.split(rows)
    ]
    return torch.cat(distances)


def _checked(points: Tensor) -> Tensor:
    if points.ndim != 2 or 0 in points.shape or not points.is_floating_point():
        raise InputError(f"a cloud must be floating, (points, 3), got {points.dtype} {tuple(points.shape)}")
    if not bool(torch.isfinite(points).all()):
        raise InputError("a cloud contains NaN or infinity")
    return points.detach().to(torch.float64)


def _batched(points: Tensor) -> Tensor:
    return points[None] if points.ndim == 2 else points
