"""Codes of any width as packed bits, and back, a column of codes at a time.

row of codes, slot by slot ──ceil(log2 V) bits each, least significant first──► bytes, filled from their low end
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

ByteArray = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def pack_rows(codes: IntArray, widths: Sequence[int]) -> ByteArray:
    """Packs (batch, positions, slots) codes of the given widths into (batch, bytes), least significant bits first.

    Eight positions always fill sum(widths) whole bytes, so each of their codes lands at fixed bits of fixed bytes,
    and a column of codes moves there in one vector operation per byte that it touches.
    """
    batch, positions, slots = codes.shape
    group_bytes, groups = sum(widths), -(-positions // 8)
    padded = np.zeros((batch, groups * 8, slots), dtype=np.uint64)
    padded[:, :positions] = codes.astype(np.uint64)
    columns = padded.reshape(batch * groups, 8 * slots)
    out = np.zeros((batch * groups, group_bytes), dtype=np.uint8)
    for column, byte, shift in _bit_moves(widths):
        value = columns[:, column]
        moved = value >> np.uint64(shift) if shift >= 0 else value << np.uint64(-shift)
        out[:, byte] |= moved.astype(np.uint8)  # the conversion keeps the low eight bits
    return out.reshape(batch, groups * group_bytes)[:, : (positions * group_bytes + 7) // 8]


def unpack_rows(data: ByteArray, positions: int, widths: Sequence[int]) -> IntArray:
    """The inverse of `pack_rows`: (batch, bytes) -> (batch, positions, slots), int64."""
    batch, slots = data.shape[0], len(widths)
    group_bytes, groups = sum(widths), -(-positions // 8)
    padded = np.zeros((batch, groups * group_bytes), dtype=np.uint8)
    padded[:, : data.shape[1]] = data
    source = padded.reshape(batch * groups, group_bytes)
    columns = np.zeros((batch * groups, 8 * slots), dtype=np.uint64)
    for column, byte, shift in _bit_moves(widths):
        value = source[:, byte].astype(np.uint64)
        columns[:, column] |= value << np.uint64(shift) if shift >= 0 else value >> np.uint64(-shift)
    masks = np.array([(1 << width) - 1 for width in widths] * 8, dtype=np.uint64)
    rows = (columns & masks).astype(np.int64).reshape(batch, groups * 8, slots)
    return rows[:, :positions]


def _bit_moves(widths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(column, byte, shift) of a group of eight positions: the byte holds the column's code shifted right by shift."""
    start = 0
    for column, width in enumerate(list(widths) * 8):
        for byte in range(start // 8, (start + width + 7) // 8 if width else start // 8):
            yield column, byte, byte * 8 - start
        start += width
