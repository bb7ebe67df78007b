"""Rows of a shard as an Arrow table, and back.

Tokens of batch 1 each          ──to_table──────► table ──from_row──► Tokens
ids of a piece of text or code  ──ragged_table──►       ──row_codes──► (positions, slots), as they are stored
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from smalti.bits import pack_rows, unpack_rows
from smalti.errors import StoreError
from smalti.store.format import Column
from smalti.tokens import Side, Stream, Tokens, code_dtype

CodeRows = np.ndarray[tuple[int, ...], np.dtype[Any]]  # (positions, slots), any integer type


def to_table(ids: Sequence[str], rows: Sequence[Tokens], columns: Sequence[Column]) -> pa.Table:
    """The table of samples that have a row each.

    Args:
        ids: a name per row.
        rows: Tokens of batch 1 each.
        columns: from `columns_of`; all rows must have them.
    """
    data: dict[str, pa.Array] = {"id": pa.array(ids, pa.string())}
    for column in columns:
        data[column.name] = _codes_array([_codes(row.streams[column.stream], column) for row in rows], column)
    for stream in dict.fromkeys(column.stream for column in columns):
        extents = [row.streams[stream].spec.positions for row in rows]
        packed = any(column.packed for column in columns if column.stream == stream)  # packed bytes have no count
        if packed or any(len(extent) != 1 for extent in extents):
            data[f"extent.{stream}"] = _extents_array(extents)
    for name in rows[0].side if rows else ():
        data[f"side.{name}"] = _side_array([row.side[name] for row in rows])
    return pa.table(data)


def ragged_table(ids: Sequence[str], parts: Sequence[int], rows: Sequence[CodeRows], column: Column) -> pa.Table:
    """The table of samples that may have several rows, of one column of codes on 1-D positions.

    Args:
        ids: a name per row.
        parts: which row of its sample each is.
        rows: (positions, slots) each.
        column: where codes stand.
    """
    data: dict[str, pa.Array] = {"id": pa.array(ids, pa.string()), "part": pa.array(parts, pa.int32())}
    data[column.name] = _codes_array(rows, column)
    if column.packed:
        data[f"extent.{column.stream}"] = _extents_array([row.shape[:1] for row in rows])
    return pa.table(data)


def from_row(table: pa.Table, index: int, columns: Sequence[Column]) -> Tokens:
    """One row of a shard's table, as Tokens of batch 1.

    Raises:
        StoreError: if codes, extent and vocabulary contradict one another.
    """
    streams: dict[str, Stream] = {}
    for stream in dict.fromkeys(column.stream for column in columns):
        own = [column for column in columns if column.stream == stream]
        vocab = [
            size
            for _, size in sorted((s, v) for column in own for s, v in zip(column.slots, column.vocab, strict=True))
        ]
        extent = _extent(table, index, own[0])
        parts = {slot: codes for column in own for slot, codes in _row_slots(table, index, column)}
        codes = np.stack([parts[slot] for slot in sorted(parts)], axis=-1)
        tensor = torch.from_numpy(codes.astype(np.int64)).reshape(1, *extent, len(vocab))
        streams[stream] = Stream(tensor, tuple(vocab))
    side: dict[str, Side] = {}
    for name in table.column_names:
        if name.startswith("side."):
            value = table.column(name)[index].as_py()
            side[name.removeprefix("side.")] = (value,) if isinstance(value, str | bytes) else torch.tensor([value])
    tokens = Tokens(streams, side)
    tokens.check()
    return tokens


def row_codes(table: pa.Table, index: int, column: Column) -> CodeRows:
    """A column's codes of one row: (positions, slots), in the type that they are stored in (int64 of packed ones).

    Raises:
        StoreError: if codes and extent contradict one another.
    """
    extent = _extent(table, index, column)
    positions = int(np.prod(extent))
    value = table.column(column.name)[index]
    if column.packed:
        data = np.frombuffer(value.as_py(), np.uint8)
        if len(data) != (positions * sum(column.bits) + 7) // 8:
            raise StoreError(f"row {index}: {len(data)} bytes in {column.name} do not fit extent {extent}")
        return unpack_rows(data[None], positions, column.bits)[0]
    codes: CodeRows = value.values.to_numpy(zero_copy_only=False)
    if codes.size != positions * len(column.slots):
        raise StoreError(f"row {index}: {codes.size} codes in {column.name} do not fit extent {extent}")
    return codes.reshape(positions, len(column.slots))


# --- columns ---------------------------------------------------------------------------------------------------------


def _codes(stream: Stream, column: Column) -> CodeRows:
    rows = stream.rows()[0]
    if stream.lengths is not None:
        rows = rows[: int(stream.lengths[0])]
    return rows[:, list(column.slots)].cpu().numpy()


def _codes_array(rows: Sequence[CodeRows], column: Column) -> pa.Array:
    if column.packed:
        packed = [pack_rows(row[None].astype(np.int64), column.bits).tobytes() for row in rows]
        return pa.array(packed, pa.large_binary())
    dtype = code_dtype(column.vocab)
    offsets = np.concatenate([[0], np.cumsum([row.size for row in rows])])
    if offsets[-1] >= 2**31:
        raise StoreError(f"{offsets[-1]} codes in one shard are more than a Parquet list holds: choose fewer samples")
    offsets = offsets.astype(np.int32)
    values = np.concatenate([row.reshape(-1).astype(dtype, copy=False) for row in rows]) if rows else np.zeros(0, dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _extents_array(extents: Iterable[Sequence[int]]) -> pa.Array:
    return pa.array([list(extent) for extent in extents], pa.list_(pa.int32()))


def _side_array(values: Sequence[Side]) -> pa.Array:
    first = values[0]
    if isinstance(first, Tensor):
        rows = [value[0].tolist() for value in values if isinstance(value, Tensor)]
        kind = pa.float64() if first.is_floating_point() else pa.int64()
        for _ in range(first.ndim - 1):
            kind = pa.list_(kind)
        return pa.array(rows, kind)
    return pa.array([value[0] for value in values if not isinstance(value, Tensor)])


def _extent(table: pa.Table, index: int, column: Column) -> tuple[int, ...]:
    name = f"extent.{column.stream}"
    if name in table.column_names:
        return tuple(table.column(name)[index].as_py())
    if column.packed:
        raise StoreError(f"column {column.name} is packed, but there is no {name}")
    count = len(table.column(column.name)[index])
    return (count // len(column.slots),)


def _row_slots(table: pa.Table, index: int, column: Column) -> Iterable[tuple[int, CodeRows]]:
    return zip(column.slots, row_codes(table, index, column).T, strict=True)
