"""Lloyd's k-means, as codebooks are initialised with it."""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.errors import InputError
from smalti.quantize.distributed import random_rows
from smalti.quantize.neighbours import nearest


def kmeans(
    rows: Tensor, codes: int, iterations: int, *, start: Tensor | None = None, unit: bool = False
) -> tuple[Tensor, Tensor]:
    """Cluster means of rows.

    Args:
        rows: (N, D), float32.
        codes: number of clusters K.
        iterations: Lloyd steps.
        start: (K,), numbers of the rows that the means start from, or (K, D), the means; random rows if None.
        unit: keep the means at length 1 (spherical k-means, for rows of length 1).

    Returns:
        means (K, D), where an empty cluster keeps its mean, and the counts (K,) of the last assignment, which was made
        before the last step moved the means.

    Raises:
        InputError: if there are no rows.
    """
    if len(rows) == 0:
        raise InputError("k-means needs at least one row")
    if start is None:
        start = random_rows(len(rows), codes, rows.device)
    means = start.clone() if start.is_floating_point() else rows[start].clone()
    counts = torch.zeros(codes, dtype=torch.int64, device=rows.device)
    for _ in range(iterations):
        assigned = nearest(rows, means)
        counts = torch.bincount(assigned, minlength=codes)
        sums = torch.zeros_like(means).index_add_(0, assigned, rows)
        moved = sums / counts.clamp(min=1)[:, None]
        if unit:
            moved = torch.nn.functional.normalize(moved, dim=1)
        means = torch.where(counts[:, None] > 0, moved, means)
    return means, counts
