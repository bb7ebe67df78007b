"""Exact nearest neighbours: the codes of float64 brute force, at the speed of a float32 matrix product.

    centred float32 scores, a chunk at a time ──► best and second best
        further apart than rounding can explain ──► the best is the answer
        closer ──► every code within that reach is measured again in float64, in a fixed order; ties: lowest index

Tables and latents of any magnitude are searched after scaling by a power of two, which rounds nothing.
A near-tie is thus decided by its row and the table alone: not by chunk, batch, threads or device. The scores live in
a buffer that fits a core's cache; no tensor of size rows x codes exists.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from smalti.errors import InputError
from smalti.quantize.base import OR_TOO_LARGE, check_candidates
from smalti.quantize.products import product, unit_roundoff

CPU_BUFFER = 2**19  # float32 scores of one block: 2 MiB, which stay in cache while they are searched
CPU_BLOCK = 2048  # codes of one block; a product lays them out anew, which enough rows must pay for
GPU_BUFFER = 2**26
CROWD = 64  # contenders per row from which duplicates are looked for
RESCORED_AT_ONCE = 2**22  # float64 numbers in one step of measuring near-ties again
FAR = 2.0**24  # times the table's extent: beyond it float64 distances round away what tells codes apart
TRACED_PARTS = 32  # compiled programs have no loop over rows; they take a table in at most so many parts,
TRACED_WIDTH = 512  # none narrower than this,
TRACED_KEPT = 3  # and measure so many codes per row again


@dataclass(frozen=True)
class Prepared:
    """A table made ready for many searches.

    Args:
        table: (K, D), float32.
        centre: (D,), the mean of the rows. Subtracting it leaves distances alone, and keeps an offset that all vectors
            share out of the rounding.
        scale: the power of two that brings the largest number near 1, where float32 neither overflows nor loses digits.
        shift: (D,), -centre, scaled.
        extended: (K, D + 1): centred rows e, scaled, and behind them -|e|²/2, so that a chunk of scores is one matrix
            product.
        longest: length of the longest row e.
    """

    table: Tensor
    centre: Tensor
    scale: Tensor
    shift: Tensor
    extended: Tensor
    longest: Tensor

    @cached_property
    def columns(self) -> Tensor:
        """(D + 1, K): `extended` transposed, as the GPU's kernel reads it."""
        return self.extended.t().contiguous()

    @cached_property
    def first(self) -> Tensor:
        """Rows that no row before them equals: (K,), bool. Asked for only where many codes are as near."""
        _, group = torch.unique(self.table, dim=0, return_inverse=True)
        number = torch.arange(len(self.table), device=group.device)
        lowest = torch.full_like(number, len(number)).scatter_reduce_(0, group, number, "amin")
        return lowest[group] == number


@torch.no_grad()
def prepare(table: Tensor) -> Prepared:
    """Makes a table ready. It must not be changed in place as long as the result is used.

    Args:
        table: (K, D), floating, K and D >= 1; rounded to float32.

    Raises:
        InputError: if it is no such table, or holds NaN or infinity.
    """
    table = _as_table(table)
    largest = table.abs().amax()
    if not torch.compiler.is_compiling() and not bool(torch.isfinite(largest)):
        broken = int((~torch.isfinite(table)).any(1).sum())
        raise InputError(f"the table holds NaN or infinity in {broken} of {len(table)} rows")
    # Within the exponents of float32 the scale itself is exact, and so is what it multiplies.
    scale = torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent.clamp(-126, 126))
    codes = table * scale
    centre = codes.mean(0)
    codes -= centre
    squares = codes.square().sum(1)
    extended = torch.cat([codes, squares[:, None] * -0.5], 1)
    return Prepared(table, centre / scale, scale, -centre, extended, squares.amax().sqrt())


def nearest(rows: Tensor, table: Tensor | Prepared) -> Tensor:
    """Index of the nearest row of a table, by Euclidean distance.

    Args:
        rows: (N, D), floating; rounded to float32.
        table: (K, D), floating, K and D >= 1, rounded to float32; or what `prepare` made of it.

    Returns:
        (N,), int64. Equal to float64 brute force over the float32 numbers; the lowest index on exact ties. Compiled or
        exported, it is the same but for rows that more than `TRACED_KEPT` codes reach within float64 rounding.

    Raises:
        InputError: if the shapes, types or devices do not fit, or a number is NaN or infinite (which a compiled or
            exported search does not look for).
    """
    if torch.compiler.is_compiling():
        codes = table.table if isinstance(table, Prepared) else _as_table(table)
        return _nearest_traced(_as_rows(rows, codes), codes)
    ready = table if isinstance(table, Prepared) else prepare(table)
    rows = _as_rows(rows, ready.table)
    best = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    if rows.device.type == "cuda" and _has_kernel():
        return nearest_by_kernel(rows, ready)
    width = min(len(ready.table), CPU_BLOCK) if rows.device.type == "cpu" else len(ready.table)
    for chunk in _chunks(rows, ready, width):
        best[chunk.span] = _nearest_of(chunk, ready, width)
    return best


def nearest_by_kernel(rows: Tensor, ready: Prepared) -> Tensor:
    """`nearest` where the scores are those of `smalti.quantize.kernel`, which needs triton.

    The codes that TF32 can't tell apart are measured in float64: the winners of blocks that reach the best score, and
    all of a block whose second best reaches it too.
    """
    from smalti.quantize import kernel

    best = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    codes, dim = ready.table.shape
    for chunk in _chunks(rows, ready, -(-codes // kernel.BLOCK)):
        z = chunk.z
        lengths, extent = z[:, :-1].square().sum(1).sqrt(), z[:, -1] * ready.longest
        reach = kernel.reach(lengths, ready.longest, extent, dim)
        values, winners, seconds = kernel.block_winners(z, ready.columns)
        least = (values.amax(1) - 2 * reach)[:, None]
        line, block = (values >= least).nonzero(as_tuple=True)
        crowded = (seconds >= least)[line, block]
        inside = torch.arange(kernel.BLOCK, device=rows.device)
        whole = block[crowded, None] * kernel.BLOCK + inside
        lines = torch.cat([line[~crowded], line[crowded, None].expand_as(whole).flatten()])
        found = torch.cat([winners[line, block][~crowded], whole.flatten()])
        there = found < codes
        best[chunk.span] = _least(chunk.rows, ready.table, lines[there], found[there], chunk.far)
    return best


@cache
def _has_kernel() -> bool:
    return importlib.util.find_spec("triton") is not None


def nearest_k(rows: Tensor, table: Tensor | Prepared, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest rows of a table, nearest first (lowest index first on ties).

    Args:
        rows: (N, D), floating; rounded to float32.
        table: (K, D), floating, K and D >= 1, rounded to float32; or what `prepare` made of it.
        k: how many, at most K.

    Returns:
        indices (N, k), int64, and squared distances (N, k), float64.

    Raises:
        InputError: if k, the shapes, types or devices do not fit, or a number is NaN or infinite.

    Compiled or exported, it is the same but for rows that more than a few codes beyond k reach within float64 rounding.
    """
    if torch.compiler.is_compiling():
        codes = table.table if isinstance(table, Prepared) else _as_table(table)
        check_candidates(k, (len(codes),))
        return _nearest_k_traced(_as_rows(rows, codes), codes, k)
    ready = table if isinstance(table, Prepared) else prepare(table)
    rows, table = _as_rows(rows, ready.table), ready.table
    check_candidates(k, (len(table),))
    if k == 1:
        indices = nearest(rows, ready)[:, None]  # the same, without a sort
        return indices, _costs(rows, table, indices, None)
    indices = torch.empty(len(rows), k, dtype=torch.int64, device=rows.device)
    kept = min(2 * k + 8, len(table))
    for chunk in _chunks(rows, ready, len(table)):
        span, reach, far = chunk.span, chunk.reach, chunk.far
        top = product(chunk.z, ready.extended).topk(kept, dim=1)
        # Rows whose last kept score is within reach of the k-th could miss a contender: they look at all codes.
        short = (top.values[:, -1] >= top.values[:, k - 1] - 2 * reach) & (kept < len(table))
        found = top.indices.sort(dim=1).values  # ascending, so that a stable sort keeps the lowest index first
        indices[span] = found.gather(1, _costs(rows[span], table, found, far).argsort(dim=1, stable=True)[:, :k])
        for row in short.nonzero()[:, 0].tolist():
            everything = _costs(rows[span][row : row + 1], table, None, far[row : row + 1])
            indices[span.start + row] = everything[0].argsort(stable=True)[:k]
    return indices, _costs(rows, table, indices, None)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances over the last axis, float64, the same bits on every machine.

    Differences of float32 numbers are exact enough in float64; they are summed by halving, a fixed tree of single
    additions, because library sums order their terms by shape, threads and device.
    """
    return _folded((x.double() - y.double()).square())


def _folded(terms: Tensor) -> Tensor:
    """The sum over the last axis, by halving."""
    while (size := terms.shape[-1]) > 1:
        half = size // 2
        folded = terms[..., :half] + terms[..., half : 2 * half]
        terms = torch.cat([folded, terms[..., 2 * half :]], dim=-1) if size % 2 else folded
    return terms[..., 0]


def _order_costs(x: Tensor, y: Tensor, far: Tensor) -> Tensor:
    """Numbers that order codes y of a row x like their distances: those, and for far rows |x - y|² - |x|².

    Seen from far enough all distances round to |x|²; without it, what tells codes apart keeps its digits.
    """
    x, y = x.double(), y.double()
    return _folded(torch.where(far[..., None], y * (y - 2 * x), (x - y).square()))


def _costs(rows: Tensor, table: Tensor, found: Tensor | None, far: Tensor | None) -> Tensor:
    """What orders the codes `found` (N, C), or all codes if None, of each row, in steps that bound memory.

    Squared distances if far is None or holds nowhere.
    """
    count, dim = len(table) if found is None else found.shape[1], table.shape[1]
    costs = torch.empty(len(rows), count, dtype=torch.float64, device=rows.device)
    measured = far is not None and bool(far.any())
    across = min(count, max(1, RESCORED_AT_ONCE // dim))
    down = max(1, RESCORED_AT_ONCE // (across * dim))
    for top in range(0, len(rows), down):
        x = rows[top : top + down, None]
        for left in range(0, count, across):
            part = slice(left, left + across)
            y = table[part] if found is None else table[found[top : top + down, part]]
            costs[top : top + down, part] = (
                _order_costs(x, y, far[top : top + down, None])
                if measured and far is not None
                else squared_distances(x, y)
            )
    return costs


def _as_table(table: Tensor) -> Tensor:
    if table.ndim != 2 or 0 in table.shape or not table.is_floating_point():
        raise InputError(f"a table must be floating (K, D), K and D >= 1, got {table.dtype} {tuple(table.shape)}")
    return table.detach().float().contiguous()


def _as_rows(rows: Tensor, table: Tensor) -> Tensor:
    if rows.ndim != 2 or rows.shape[1] != table.shape[1] or not rows.is_floating_point():
        raise InputError(f"rows must be floating (N, {table.shape[1]}), got {rows.dtype} {tuple(rows.shape)}")
    if rows.device != table.device:
        raise InputError(f"rows are on {rows.device}, the table is on {table.device}")
    return rows.detach().float().contiguous()


@dataclass(frozen=True)
class _Chunk:
    """Rows that are searched together.

    Args:
        span: which of all rows.
        rows: (n, D), as they were given.
        z: (n, D + 1), centred and scaled, and the factor of -|e|²/2 behind: z · extendedᵀ are the scores
            z.e - |e|²/2, of which the largest is nearest.
        reach: (n,), how far rounding can move a score.
        far: (n,), bool, rows so far away that distances round away what tells codes apart.
    """

    span: slice
    rows: Tensor
    z: Tensor
    reach: Tensor
    far: Tensor


def _chunks(rows: Tensor, ready: Prepared, width: int) -> Iterator[_Chunk]:
    """The rows in chunks whose scores of `width` codes fit the buffer."""
    size = max(32, (CPU_BUFFER if rows.device.type == "cpu" else GPU_BUFFER) // width)
    one = torch.ones(1, 1, dtype=torch.float32, device=rows.device)
    # A dot product of D float32 terms is off by at most about D roundings of |z||e|; |e|²/2 adds a few.
    unit = unit_roundoff(rows.device) * (ready.table.shape[1] + 4)
    for start in range(0, len(rows), size):
        span = slice(start, min(start + size, len(rows)))
        z = torch.addcmul(ready.shift, rows[span], ready.scale)
        lengths, factor, extent = z.square().sum(1).sqrt(), one.expand(len(z), 1), ready.longest
        if not bool(torch.isfinite(lengths).all()):
            z, lengths, factor = _shrunk(rows[span], ready)
            extent = factor[:, 0] * ready.longest
        reach = unit * ready.longest * (lengths + extent)
        yield _Chunk(span, rows[span], torch.cat([z, factor], dim=1), reach, lengths > FAR * extent)


def _nearest_of(chunk: _Chunk, ready: Prepared, width: int) -> Tensor:
    """The nearest code of each row of a chunk, over blocks of `width` codes.

    Near-ties inside a block are settled there, those between the blocks' winners in the end: a winner's own score is
    within reach of its block's best one.
    """
    starts = range(0, len(ready.table), width)
    shape, device = (len(chunk.z), len(starts)), chunk.z.device
    winners = torch.empty(shape, dtype=torch.int64, device=device)
    values = torch.empty(shape, dtype=torch.float32, device=device)
    scores = torch.empty(len(chunk.z), min(width, len(ready.table)), dtype=torch.float32, device=device)
    best = None
    for place, start in enumerate(starts):
        block = ready.extended[start : start + width]
        out = product(chunk.z, block, scores[:, : len(block)])
        index, value, close = _decide(out, chunk.reach, best)
        if len(close):
            # Every code that rounding could have put behind the best one is a candidate.
            contenders = out[close] >= (value[close] - 2 * chunk.reach[close])[:, None]
            if int(contenders.sum()) > CROWD * len(close):
                # Codes that repeat an earlier one can't win; a row that only such codes are near to keeps the best.
                contenders &= ready.first[start : start + width]
                left = contenders.any(1)
                close, contenders = close[left], contenders[left]
            index[close] = _measure_again(
                chunk.rows[close], ready.table[start : start + width], contenders, chunk.far[close]
            )
        best = value if best is None else torch.maximum(best, value)
        winners[:, place], values[:, place] = index + start, value
    if len(starts) == 1 or best is None:
        return winners[:, 0]
    return _nearest_winner(chunk, ready.table, winners, values, best)


def _nearest_winner(chunk: _Chunk, table: Tensor, winners: Tensor, values: Tensor, best: Tensor) -> Tensor:
    """The nearest of the winners (n, blocks) of each block, whose scores are `values`."""
    rivals = values >= (best - 2 * chunk.reach)[:, None]
    result = winners.gather(1, values.argmax(1, keepdim=True))[:, 0]
    close = (rivals.sum(1) > 1).nonzero()[:, 0]
    if len(close):
        line, block = rivals[close].nonzero(as_tuple=True)
        code = winners[close[line], block]
        result[close] = _least(chunk.rows[close], table, line, code, chunk.far[close])
    return result


def _shrunk(rows: Tensor, ready: Prepared) -> tuple[Tensor, Tensor, Tensor]:
    """Centred, scaled rows z, those that are too long for float32 times a power of two; lengths; and that factor.

    A row's scores may all be multiplied by one number: f z.e - f |e|²/2 has its largest at the same code.
    """
    bad = ~torch.isfinite(rows).all(1)
    if bool(bad.any()):
        raise InputError(f"latents hold NaN or infinity in {int(bad.sum())} of {len(rows)} rows, {OR_TOO_LARGE}")
    z = (rows.double() - ready.centre.double()) * ready.scale.double()
    lengths = z.square().sum(1, keepdim=True).sqrt()
    factor = torch.where(lengths > 2.0**32, torch.ldexp(torch.ones_like(lengths), -torch.frexp(lengths).exponent), 1.0)
    return (z * factor).float(), (lengths * factor)[:, 0].float(), factor.float()


def _decide(scores: Tensor, reach: Tensor, best: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The best index of each row and its score, and the numbers of the rows where another score is within twice the
    reach. Rows that are surely worse than `best`, what other codes reached, need no decision.
    """
    if scores.device.type == "cpu":
        # On a CPU numpy finds the place of a row's maximum many times faster than torch, and faster than the maximum.
        view, lines = scores.numpy(), np.arange(len(scores))
        index = view.argmax(1)
        top = view[lines, index]
        view[lines, index] = -np.inf
        near = view[lines, view.argmax(1)] >= top - 2 * reach.numpy()
        view[lines, index] = top
        if best is not None:
            near &= top >= best.numpy() - 2 * reach.numpy()
        return torch.from_numpy(index), torch.from_numpy(top), torch.from_numpy(np.flatnonzero(near))
    value, index = scores.topk(min(2, scores.shape[1]), dim=1)
    if scores.shape[1] == 1:
        return index[:, 0], value[:, 0], torch.empty(0, dtype=torch.int64, device=scores.device)
    return index[:, 0], value[:, 0], (value[:, 1] >= value[:, 0] - 2 * reach).nonzero()[:, 0]


def _measure_again(rows: Tensor, table: Tensor, contenders: Tensor, far: Tensor) -> Tensor:
    """The nearest contender of each row in float64; contenders is (rows, codes), bool."""
    line, code = contenders.nonzero(as_tuple=True)
    return _least(rows, table, line, code, far)


def _least(rows: Tensor, table: Tensor, line: Tensor, code: Tensor, far: Tensor) -> Tensor:
    """The nearest of each row's candidates in float64, the lowest index on ties.

    Candidate i is code[i], for rows[line[i]].
    """
    step = max(1, RESCORED_AT_ONCE // table.shape[1])
    some_far = bool(far.any())
    pieces = [rows.new_zeros(0, dtype=torch.float64)]
    for start in range(0, len(line), step):
        row = line[start : start + step]
        x, y = rows[row], table[code[start : start + step]]
        pieces.append(_order_costs(x, y, far[row]) if some_far else squared_distances(x, y))
    costs = torch.cat(pieces)
    least = torch.full((len(rows),), math.inf, dtype=torch.float64, device=rows.device)
    least.scatter_reduce_(0, line, costs, "amin")
    tied = torch.where(costs == least[line], code, len(table))
    return torch.full_like(least, len(table), dtype=torch.int64).scatter_reduce_(0, line, tied, "amin")


@dataclass(frozen=True)
class _Traced:
    """A search in plain tensor operations without a choice by value, for torch.compile and torch.export.

    The number of rows may be unknown while tracing, so memory is bounded by taking the table in parts.

    Args:
        z: (N, D), float64, centred rows.
        centred: (K, D), float64, the table.
        half: (K,), |e|²/2.
        reach: (N, 1), how far rounding can move the difference of two scores.
        far: (N, 1), bool, as in a chunk.
    """

    z: Tensor
    centred: Tensor
    half: Tensor
    reach: Tensor
    far: Tensor

    @classmethod
    def of(cls, rows: Tensor, table: Tensor) -> _Traced:
        exact = table.double()
        centre = exact.mean(0)
        z, centred = rows.double() - centre, exact - centre
        half = centred.square().sum(1) / 2
        lengths, longest = z.square().sum(1, keepdim=True).sqrt(), (2 * half.amax()).sqrt()
        reach = 2.0**-52 * (table.shape[1] + 4) * longest * (lengths + longest)
        return cls(z, centred, half, reach, lengths > FAR * longest)

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        """Scores of each part of the table, and the number of its first code."""
        codes = len(self.centred)
        width = max(TRACED_WIDTH, -(-codes // TRACED_PARTS))
        for start in range(0, codes, width):
            yield start, self.z @ self.centred[start : start + width].t() - self.half[start : start + width]


def _nearest_traced(rows: Tensor, table: Tensor) -> Tensor:
    """The same answer, traced.

    Each part keeps its best codes by float64 score, and the lowest index that rounding can not tell from its best,
    which is the answer where a code has many duplicates. The best of all parts are measured again in a fixed order.
    """
    traced = _Traced.of(rows, table)
    values, found, leaders, lowest = [], [], [], []
    for start, scores in traced.parts():
        top = scores.topk(min(TRACED_KEPT, scores.shape[1]), dim=1)
        values.append(top.values)
        found.append(top.indices + start)
        leaders.append(top.values[:, 0])
        lowest.append(_first(scores, top.values[:, :1] - traced.reach) + start)
    score, leader = torch.cat(values, 1), torch.stack(leaders, 1)
    chosen = torch.cat(found, 1).gather(1, score.topk(min(TRACED_KEPT, score.shape[1]), dim=1).indices)
    part = _first(leader, leader.amax(1, keepdim=True) - traced.reach)
    chosen = torch.cat([chosen, torch.stack(lowest, 1).gather(1, part[:, None])], 1)
    costs = _order_costs(rows[:, None], table[chosen], traced.far)
    return torch.where(costs == costs.amin(1, keepdim=True), chosen, len(table)).amin(1)


def _nearest_k_traced(rows: Tensor, table: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest, traced.

    Those that are surely nearer than the k-th best are fewer than k, so they are among the best by score. Of those that
    rounding can not tell from it, where it has duplicates, the lowest indices are kept too. All are measured again.
    """
    traced, codes = _Traced.of(rows, table), len(table)
    values, found, low_values, lowest = [], [], [], []
    for start, scores in traced.parts():
        width = scores.shape[1]
        top = scores.topk(min(k + TRACED_KEPT, width), dim=1)
        tied = (scores - top.values[:, min(k, width) - 1, None]).abs() <= traced.reach
        low = _lowest(torch.arange(width, device=rows.device), tied, k, codes)
        values.append(top.values)
        found.append(top.indices + start)
        low_values.append(scores.gather(1, low))
        lowest.append(low + start)
    score, number = torch.cat(values, 1), torch.cat(found, 1)
    best = score.topk(min(k + TRACED_KEPT, codes), dim=1)
    every, numbers = torch.cat([score, *low_values], 1), torch.cat([number, *lowest], 1)
    tied = (every - best.values[:, k - 1, None]).abs() <= traced.reach
    # A code may have come both ways, so k different ones are among 2k.
    low = numbers.gather(1, _lowest(numbers, tied, 2 * k, codes))
    # Ascending, so that a stable sort keeps the lowest index first.
    chosen = torch.cat([number.gather(1, best.indices), low], 1).sort(dim=1).values
    again = torch.cat([torch.zeros_like(chosen[:, :1], dtype=torch.bool), chosen[:, 1:] == chosen[:, :-1]], 1)
    costs = _order_costs(rows[:, None], table[chosen], traced.far).masked_fill(again, math.inf)
    indices = chosen.gather(1, costs.argsort(dim=1, stable=True)[:, :k])
    return indices, squared_distances(rows[:, None], table[indices])


def _lowest(numbers: Tensor, tied: Tensor, count: int, codes: int) -> Tensor:
    """Places of the lowest numbers (..., n) below `codes` that are tied (N, n): (N, count), fewer if n is less.

    Where fewer are tied, the lowest others follow.
    """
    rank = torch.where(tied, codes - numbers, -numbers)
    return rank.topk(min(count, rank.shape[1]), dim=1).indices


def _first(scores: Tensor, least: Tensor) -> Tensor:
    """The first column of each row that is at least `least` (N, 1)."""
    return (scores >= least).to(torch.uint8).argmax(1)
