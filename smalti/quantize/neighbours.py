"""Exact nearest neighbours: the codes of float64 brute force, at the speed of a float32 matrix product.

    centred float32 scores, a chunk at a time ──► best and second best
        further apart than rounding can explain ──► the best is the answer
        closer ──► every code within that reach is measured again in float64, in a fixed order; ties: lowest index

A near-tie is thus decided by its row and the table alone: not by chunk, batch, threads or device. The scores live in
a buffer that fits a core's cache; no tensor of size rows x codes exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smalti.errors import InputError

CPU_BUFFER = 2**20  # float32 scores of one chunk: 4 MiB, which stay in cache while they are searched
GPU_BUFFER = 2**26
RESCORED_AT_ONCE = 2**22  # float64 numbers in one step of measuring near-ties again


@dataclass(frozen=True)
class Prepared:
    """A table made ready for many searches.

    Args:
        table: (K, D), float32.
        centre: (D,), the mean of the rows. Subtracting it leaves distances alone, and keeps an offset that all vectors
            share out of the rounding.
        extended: (D + 1, K): centred rows, and below them -|e|²/2, so that a chunk of scores is one matrix product.
        longest: length of the longest centred row.
    """

    table: Tensor
    centre: Tensor
    extended: Tensor
    longest: Tensor


@torch.no_grad()
def prepare(table: Tensor) -> Prepared:
    """Makes a table (K, D) ready. It must not be changed in place as long as the result is used."""
    table = table.detach().float().contiguous()
    centre = table.double().mean(0).float()
    codes = table - centre
    squares = codes.double().square().sum(1, keepdim=True)
    extended = torch.cat([codes, squares.mul(-0.5).float()], dim=1).t().contiguous()
    return Prepared(table, centre, extended, squares.amax().sqrt().float())


def nearest(rows: Tensor, table: Tensor | Prepared) -> Tensor:
    """Index of the nearest row of a table, by Euclidean distance.

    Args:
        rows: (N, D), float32.
        table: (K, D), float32, K >= 1, or what `prepare` made of it.

    Returns:
        (N,), int64. Equal to float64 brute force; the lowest index on exact ties.

    Raises:
        InputError: if a row is NaN or infinite.
    """
    if torch.compiler.is_compiling():
        return _nearest_float64(rows, table.table if isinstance(table, Prepared) else table)
    rows, ready = rows.detach().contiguous(), table if isinstance(table, Prepared) else prepare(table)
    best = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    for span, scores, reach in _scores(rows, ready):
        index, close = _decide(scores, reach)
        best[span] = index
        if len(close):
            # Every code that rounding could have put behind the best one is a candidate.
            contenders = scores[close] >= (scores[close].amax(1) - 2 * reach[close])[:, None]
            best[span.start + close] = _measure_again(rows[span.start + close], ready.table, contenders)
    return best


def nearest_k(rows: Tensor, table: Tensor | Prepared, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest rows of a table, nearest first (lowest index first on ties).

    Args:
        rows: (N, D), float32.
        table: (K, D), float32, or what `prepare` made of it.
        k: how many, at most K.

    Returns:
        indices (N, k), int64, and squared distances (N, k), float64.
    """
    ready = table if isinstance(table, Prepared) else prepare(table)
    rows, table = rows.detach().contiguous(), ready.table
    if not 1 <= k <= len(table):
        raise InputError(f"k must be in 1..{len(table)}, the number of codes, got {k}")
    indices = torch.empty(len(rows), k, dtype=torch.int64, device=rows.device)
    distances = torch.empty(len(rows), k, dtype=torch.float64, device=rows.device)
    for span, scores, reach in _scores(rows, ready):
        top = scores.topk(min(2 * k + 8, len(table)), dim=1)
        # Rows whose last kept score is within reach of the k-th could miss a contender: they look at all codes.
        short = (top.values[:, -1] >= top.values[:, k - 1] - 2 * reach) & (top.values.shape[1] < len(table))
        found = top.indices.sort(dim=1).values  # ascending, so that a stable sort keeps the lowest index first
        measured = squared_distances(rows[span, None, :], table[found])
        order = measured.argsort(dim=1, stable=True)[:, :k]
        indices[span], distances[span] = found.gather(1, order), measured.gather(1, order)
        for row in short.nonzero()[:, 0].tolist():
            everything = squared_distances(rows[span.start + row], table)
            order = everything.argsort(stable=True)[:k]
            indices[span.start + row], distances[span.start + row] = order, everything[order]
    return indices, distances


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances over the last axis, float64, the same bits on every machine.

    Differences of float32 numbers are exact enough in float64; they are summed by halving, a fixed tree of single
    additions, because library sums order their terms by shape, threads and device.
    """
    terms = (x.double() - y.double()).square()
    while (size := terms.shape[-1]) > 1:
        half = size // 2
        folded = terms[..., :half] + terms[..., half : 2 * half]
        terms = torch.cat([folded, terms[..., 2 * half :]], dim=-1) if size % 2 else folded
    return terms[..., 0]


def _scores(rows: Tensor, ready: Prepared) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Chunks of z.e - |e|²/2 on centred vectors (largest is nearest), and how far rounding can move each row's."""
    codes, dim = ready.table.shape
    buffer = CPU_BUFFER if rows.device.type == "cpu" else GPU_BUFFER
    size = max(32, buffer // codes)
    one = torch.ones(1, 1, device=rows.device)
    scores = torch.empty(min(size, len(rows)), codes, device=rows.device)
    # A dot product of D float32 terms is off by at most about D roundings of |z||e|; |e|²/2 adds a few.
    unit = _unit_roundoff(rows.device) * (dim + 4)
    with torch.autocast(rows.device.type, enabled=False):
        for start in range(0, len(rows), size):
            span = slice(start, min(start + size, len(rows)))
            chunk = rows[span] - ready.centre
            lengths = chunk.square().sum(1).sqrt()
            if not bool(torch.isfinite(lengths).all()):
                _refuse(rows[span])
            out = scores[: len(chunk)]
            torch.mm(torch.cat([chunk, one.expand(len(chunk), 1)], dim=1), ready.extended, out=out)
            yield span, out, unit * ready.longest * (lengths + ready.longest)


def _decide(scores: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """The best index of each row, and the numbers of the rows where the second best is within twice the reach."""
    if scores.device.type == "cpu":
        # numpy finds the maximum of a row many times faster than torch does on a CPU.
        view = scores.numpy()
        lines = np.arange(len(view))
        index = view.argmax(1)
        best = view[lines, index]
        view[lines, index] = -np.inf
        second = view.max(1)
        view[lines, index] = best
        close = np.flatnonzero(second >= best - 2 * reach.numpy())
        return torch.from_numpy(index), torch.from_numpy(close)
    top = scores.topk(min(2, scores.shape[1]), dim=1)
    if scores.shape[1] == 1:
        return top.indices[:, 0], torch.empty(0, dtype=torch.int64, device=scores.device)
    return top.indices[:, 0], (top.values[:, 1] >= top.values[:, 0] - 2 * reach).nonzero()[:, 0]


def _measure_again(rows: Tensor, table: Tensor, contenders: Tensor) -> Tensor:
    """The nearest contender of each row by float64 distance; contenders is (rows, codes), bool."""
    line, code = contenders.nonzero(as_tuple=True)
    step = max(1, RESCORED_AT_ONCE // table.shape[1])
    distances = torch.cat(
        [squared_distances(rows[line[i : i + step]], table[code[i : i + step]]) for i in range(0, len(line), step)]
    )
    least = torch.full((len(rows),), math.inf, dtype=torch.float64, device=rows.device)
    least.scatter_reduce_(0, line, distances, "amin")
    tied = torch.where(distances == least[line], code, len(table))
    return torch.full_like(least, len(table), dtype=torch.int64).scatter_reduce_(0, line, tied, "amin")


def _nearest_float64(rows: Tensor, table: Tensor) -> Tensor:
    """The same answer in plain tensor operations, for torch.compile and torch.export."""
    centre = table.double().mean(0)
    z, codes = rows.double() - centre, table.double() - centre
    return (z @ codes.t() - codes.square().sum(1) / 2).argmax(1)


def _unit_roundoff(device: torch.device) -> float:
    """Relative rounding of one matrix product term at the precision that torch is allowed to use."""
    precision = torch.get_float32_matmul_precision()
    if precision == "highest":
        return 2.0**-24
    return 2.0**-8 if precision == "medium" or device.type == "cpu" else 2.0**-11


def _refuse(rows: Tensor) -> None:
    bad = ~torch.isfinite(rows).all(1)
    if bool(bad.any()):
        raise InputError(f"latents hold NaN or infinity in {int(bad.sum())} of {len(rows)} rows")
    raise InputError("latents are so large that their distances overflow float32")
