"""A codebook for every sample: its own vectors, clustered, and each vector's cluster number.

Source: "Neural Discrete Representation Learning for Extreme Token Reduction in Video Large Language Models" (VQToken,
2025).

    x (N, D) ──unit rows──► k-means by cosine, for K in a range ──elbow──► K
    labels (N,), the "token hash"          codebook (K, D): the mean unit row of each cluster
    decode: codebook[labels]

Everything is a function of the sample and a seed; clusters are numbered in the order in which they first occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.quantize.neighbours import nearest, squared_distances

LEAST_WEIGHT = 1e-6  # published: keeps rows that equal a centroid possible as further centroids
DRAWS = 8


@dataclass(frozen=True)
class Clusters:
    """A clustering of one sample.

    Args:
        labels: (N,), int64.
        centroids: (K, D), means of unit rows, not of length 1 themselves.
        objective: sum of 1 - cos(row, own centroid) after each assignment.
    """

    labels: Tensor
    centroids: Tensor
    objective: tuple[float, ...]


@dataclass(frozen=True)
class Adapted:
    """A sample as a small codebook and a map of numbers into it.

    Args:
        codes: (*positions), int64, in 0..K-1: the token hash.
        codebook: (K, D).
    """

    codes: Tensor
    codebook: Tensor

    def decode(self) -> Tensor:
        """Vectors of the codes, (*positions, D)."""
        return self.codebook[self.codes]


def cosine_kmeans(x: Tensor, start: Tensor, *, iterations: int = 100, tolerance: float = 1e-4) -> Clusters:
    """Lloyd's k-means where nearness is the cosine.

    Args:
        x: (N, D), floating; rows are brought to length 1 first.
        start: (K, D), the first centroids.
        iterations: at most so many steps.
        tolerance: a step that moves the centroids less (Frobenius norm) is not taken, and ends the search.

    Returns:
        labels of the last assignment, and the centroids that it was made with or, where the iterations ended the
        search, moved once more. Empty clusters keep their centroid.

    Raises:
        InputError: if the shapes do not fit, or there is no row.
    """
    if x.ndim != 2 or len(x) == 0 or start.ndim != 2 or start.shape[1] != x.shape[1] or iterations < 1:
        raise InputError(
            f"k-means needs rows (N, D), centroids (K, D) and an iteration, got {tuple(x.shape)}, "
            f"{tuple(start.shape)}, {iterations}"
        )
    rows, centroids = F.normalize(x.detach().float(), dim=1), start.detach().float()
    labels, objective = torch.zeros(len(rows), dtype=torch.int64, device=x.device), []
    for _ in range(iterations):
        unit = F.normalize(centroids, dim=1)
        labels = nearest(rows, unit)  # rows and centroids of length 1: the nearest is the one with the largest cosine
        objective.append(float((1 - (rows * unit[labels]).sum(1)).sum()))
        moved = cluster_means(rows, labels, centroids)
        if float((moved - centroids).norm()) < tolerance:
            break
        centroids = moved
    return Clusters(labels, centroids, tuple(objective))


def cluster_means(rows: Tensor, labels: Tensor, empty: Tensor) -> Tensor:
    """Mean of the rows under each label, differentiable in the rows; `empty` (K, D) gives clusters without rows."""
    count = torch.bincount(labels, minlength=len(empty))[:, None]
    sums = torch.zeros_like(empty).index_add(0, labels, rows)
    return torch.where(count > 0, sums / count.clamp(min=1), empty)


def spread_start(x: Tensor, clusters: int, *, seed: int = 0, draws: Tensor | None = None) -> Tensor:
    """First centroids, each a row drawn with a chance that grows with its squared distance to those before (k-means++).

    Of several rows drawn at each step the one that brings all rows closest stays; a single draw, as published, often
    misses a cluster.

    Args:
        x: (N, D); rows are brought to length 1 first.
        clusters: K.
        seed: of the draws.
        draws: (K, draws a step) in [0, 1), replaces them.

    Returns:
        (K, D), rows of length 1.
    """
    rows = F.normalize(x.detach().float(), dim=1)
    if draws is None:
        draws = torch.rand(clusters, DRAWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen = [min(int(draws[0, 0] * len(rows)), len(rows) - 1)]
    distance = squared_distances(rows, rows[chosen[0]])
    for draw in draws[1:].to(x.device):
        reached = (distance + LEAST_WEIGHT).cumsum(0)
        drawn = torch.searchsorted(reached, draw * reached[-1], right=True).clamp(max=len(rows) - 1)
        closer = torch.minimum(distance, torch.stack([squared_distances(rows, rows[one]) for one in drawn]))
        best = int(closer.sum(1).argmin())
        chosen.append(int(drawn[best]))
        distance = closer[best]
    return rows[chosen]


def distortion(x: Tensor, clusters: Clusters) -> float:
    """Sum of squared distances of unit rows to their centroids."""
    rows = F.normalize(x.detach().float(), dim=1)
    return float((rows - clusters.centroids[clusters.labels]).double().square().sum())


def elbow(distortions: Sequence[float] | Tensor, first: int, *, published: bool = False) -> int:
    """The number of clusters at which the curve of distortions bends most.

    Args:
        distortions: for first, first + 1, ... clusters.
        first: the smallest number tried.
        published: count as the published code does.

    Raises:
        InputError: if there are fewer than three distortions.
    """
    curve = torch.as_tensor(distortions, dtype=torch.float32)
    if len(curve) < 3:
        raise InputError(f"an elbow needs at least three distortions, got {len(curve)}")
    bend = int(curve.diff().diff().argmax())
    if published:
        # official codes need this: the number is counted as if the curve began near one cluster, not at `first`.
        return max(bend + 4, first)
    return first + bend + 1


def choose_clusters(
    x: Tensor, first: int, last: int, *, seed: int = 0, iterations: int = 100, published: bool = False
) -> int:
    """The elbow over k-means with first..last clusters, each from its own start.

    Args:
        x: (N, D).
        first, last: the range of K.
        seed: of the starts.
        iterations: as in `cosine_kmeans`.
        published: as in `elbow`.
    """
    if not 1 <= first <= last - 2:
        raise ConfigError(f"the range of clusters must hold three numbers at least, got {first}..{last}")
    curve = [
        distortion(x, cosine_kmeans(x, spread_start(x, count, seed=seed), iterations=iterations))
        for count in range(first, last + 1)
    ]
    return elbow(curve, first, published=published)


def adapt(
    x: Tensor,
    clusters: int | tuple[int, int],
    *,
    seed: int = 0,
    iterations: int = 100,
    canonical: bool = True,
) -> Adapted:
    """Quantizes one sample with a codebook of its own.

    Args:
        x: (*positions, D), floating.
        clusters: K, or the range (first, last) in which the elbow chooses it.
        seed: of the starts.
        iterations: as in `cosine_kmeans`.
        canonical: number clusters by first occurrence and leave out empty ones; otherwise k-means' own numbers, where
            the row of an empty cluster is zero, as published.

    Returns:
        codes (*positions) and codebook (K, D); gradients reach x through the codebook, codes are constants.

    Raises:
        InputError: if x holds no row, NaN or infinity.
    """
    flat = x.reshape(-1, x.shape[-1])
    if isinstance(clusters, tuple):
        clusters = choose_clusters(flat, *clusters, seed=seed, iterations=iterations)
    found = cosine_kmeans(flat, spread_start(flat, clusters, seed=seed), iterations=iterations)
    labels = by_first_occurrence(found.labels) if canonical else found.labels
    size = int(labels.max()) + 1 if canonical else clusters
    rows = F.normalize(flat.float(), dim=1)
    codebook = cluster_means(rows, labels, rows.new_zeros(size, rows.shape[1]))
    return Adapted(labels.view(x.shape[:-1]), codebook)


def by_first_occurrence(labels: Tensor) -> Tensor:
    """The same partition with numbers 0, 1, ... in the order in which they occur."""
    values, inverse = torch.unique(labels, return_inverse=True)
    first = torch.full_like(values, len(labels)).scatter_reduce_(
        0, inverse, torch.arange(len(labels), device=labels.device), "amin"
    )
    return first.argsort().argsort()[inverse]
