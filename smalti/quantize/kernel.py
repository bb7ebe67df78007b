"""Nearest codes on a GPU without a matrix of distances: the low-precision pass, in Triton.

    rows (n, D) x codes (D, K) ──tensor cores, TF32──► of each block of codes: best score, its code, second best score

The scores of a tile live in registers; what is written is a 1/BLOCK-th of them. How far TF32 can move a score is
bounded (`reach`), so that `smalti.quantize.neighbours` decides exactly between the codes that are left. Triton's
interpreter runs the same kernel on a CPU, where operands are rounded explicitly, because its products are those of
float32.

Importing this module needs triton, which torch brings on a machine with a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

BLOCK = 1024  # codes of a block
TRUNCATED = 2.0**-10  # largest relative change of a number that loses all but TF32's ten bits
TILE_ROWS, TILE_CODES, TILE_DIM = 128, 128, 32


def reach(lengths: Tensor, longest: Tensor, extent: Tensor, dim: int) -> Tensor:
    """How far a score of `block_winners` can lie from the exact one, for each row.

    Rounding both operands moves a product z.e by at most (2t + t²) |z||e|, whatever the dimension (by Cauchy and
    Schwarz); adding D + 1 products in float32 moves it by D + 4 roundings of |z||e|, as in the float32 search.

    Args:
        lengths: (n,), of the centred, scaled rows.
        longest: length of the longest code.
        extent: longest times the rows' factor.
        dim: D.
    """
    moved = 2 * TRUNCATED + TRUNCATED**2
    return longest * (moved * lengths + 2.0**-24 * (dim + 4) * (lengths + extent))


def block_winners(z: Tensor, extended: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row and block of codes: the best score, its code, the second best score.

    Args:
        z: (n, D + 1), rows centred and scaled, and the factor of -|e|²/2 behind.
        extended: (D + 1, K), codes centred and scaled, and -|e|²/2 below (`neighbours.Prepared.columns`).

    Returns:
        values (n, blocks), codes (n, blocks), int64, seconds (n, blocks), -inf where a block has one code.
    """
    (count, dim), codes = z.shape, extended.shape[1]
    blocks = -(-codes // BLOCK)
    values = torch.empty(count, blocks, dtype=torch.float32, device=z.device)
    seconds = torch.empty_like(values)
    winners = torch.empty(count, blocks, dtype=torch.int64, device=z.device)
    if count:
        grid = (blocks, -(-count // TILE_ROWS))
        _winners_of_a_block[grid](
            z,
            extended,
            values,
            winners,
            seconds,
            count,
            codes,
            dim - 1,
            z.stride(0),
            extended.stride(0),
            blocks,
            BLOCK,
            TILE_ROWS,
            TILE_CODES,
            TILE_DIM,
            isinstance(_winners_of_a_block, InterpretedFunction),
            num_warps=8,
            num_stages=3,
        )
    return values, winners, seconds


@triton.jit
def _ten_bits(x: Any) -> Any:
    """A float32 rounded to TF32's ten bits, ties away from zero."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _winners_of_a_block(  # type: ignore[no-untyped-def]
    z_ptr,
    codes_ptr,
    values_ptr,
    winners_ptr,
    seconds_ptr,
    count,
    codes,
    dim,
    z_stride,
    codes_stride,
    blocks,
    block_size: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_codes: tl.constexpr,
    tile_dim: tl.constexpr,
    rounded: tl.constexpr,
):
    block = tl.program_id(0)
    row = (tl.program_id(1) * tile_rows + tl.arange(0, tile_rows)).to(tl.int64)
    real = row < count
    factor = tl.load(z_ptr + row * z_stride + dim, mask=real, other=0.0)
    best = tl.full((tile_rows,), float("-inf"), tl.float32)
    second = tl.full((tile_rows,), float("-inf"), tl.float32)
    winner = tl.zeros((tile_rows,), tl.int64)
    for tile in range(0, block_size, tile_codes):
        column = (block * block_size + tile + tl.arange(0, tile_codes)).to(tl.int64)
        there = column < codes
        scores = tl.zeros((tile_rows, tile_codes), tl.float32)
        for start in range(0, dim, tile_dim):
            depth = start + tl.arange(0, tile_dim)
            inside = depth < dim
            x = tl.load(
                z_ptr + row[:, None] * z_stride + depth[None, :], mask=real[:, None] & inside[None, :], other=0.0
            )
            e = tl.load(
                codes_ptr + depth[:, None].to(tl.int64) * codes_stride + column[None, :],
                mask=inside[:, None] & there[None, :],
                other=0.0,
            )
            if rounded:
                x, e = _ten_bits(x), _ten_bits(e)
            scores = tl.dot(x, e, scores, input_precision="tf32")
        half = tl.load(codes_ptr + dim.to(tl.int64) * codes_stride + column, mask=there, other=0.0)
        scores += factor[:, None] * half[None, :]
        scores = tl.where(there[None, :], scores, float("-inf"))
        top = tl.max(scores, axis=1)
        place = tl.argmax(scores, axis=1)
        rest = tl.where(tl.arange(0, tile_codes)[None, :] == place[:, None], float("-inf"), scores)
        # Of four numbers, two sorted pairs, the second largest.
        second = tl.maximum(tl.minimum(best, top), tl.maximum(second, tl.max(rest, axis=1)))
        better = top > best
        winner = tl.where(better, block * block_size + tile + place, winner)
        best = tl.where(better, top, best)
    target = row * blocks + block
    tl.store(values_ptr + target, best, mask=real)
    tl.store(winners_ptr + target, winner, mask=real)
    tl.store(seconds_ptr + target, second, mask=real)
