"""The token store on disk: what its files hold. `docs/token-store.md` is the same in words, with test vectors.

    STORE/
      store.json              what the codes mean, and a count and a hash for every shard
      shards/00000.parquet    rows of samples; a file's presence says that the shard is done
      shards/00001.failed.json    instead, where no input of the shard could be encoded
      plan/00000.jsonl        which input goes into which shard, written before a run encodes anything
      errors.jsonl            inputs that could not be encoded: {"id", "error", "shard"}

Columns of a shard: `id`; `codes`, or `codes.<stream>` where there are several streams, `<column>.<slot>` where slots
have different widths; `extent.<stream>` where positions are more than one number; `length.<stream>`;
`side.<name>`. Codes up to 18 bits are lists of the smallest unsigned type, which every Parquet reader understands;
wider ones are packed bits (least significant first) in a binary column.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field
from torch import Tensor

import smalti.config
from smalti.bits import pack_rows, unpack_rows
from smalti.errors import ConfigError, StoreError
from smalti.tokens import DEFAULT_STREAM, Side, Stream, StreamSpec, Tokens, code_dtype

FORMAT = 1
HEADER, ERRORS, SHARDS, PLANS, LOCK = "store.json", "errors.jsonl", "shards", "plan", ".lock"
ERRORS_KEY, MEANING_KEY = b"smalti.errors", b"smalti.meaning"
STAGED = ".smalti-"  # how names of unfinished files begin
LIST_BITS = 18  # wider codes cost far more than their bits as Parquet lists
DICTIONARY_LIMIT = 2**23


class Recipe(smalti.config.Config):
    """Everything beside tokenizer and files that decides codes. A store keeps the one that it was begun with.

    Args:
        size: images only: shorter side and centre crop to this square, or None for whole pictures.
        threads: of the model on a CPU; latents move in the last bit with it.
        batch: samples of one extent per pass on a GPU (a CPU takes one at a time).
        device: "cpu" or "cuda".
        dtype: of the arithmetic.
    """

    size: int | None = Field(None, ge=1)
    threads: int = Field(1, ge=1)
    batch: int = Field(1, ge=1)
    device: str = "cpu"
    dtype: Literal["float32"] = "float32"


class ColumnEntry(smalti.config.Config):
    """An entry of `columns` in store.json."""

    column: str
    stream: str
    slots: tuple[int, ...]
    vocab: tuple[int, ...]
    bits: tuple[int, ...]
    bit_order: Literal["little"]
    encoding: Literal["list", "packed"]


class ShardEntry(smalti.config.Config):
    """An entry of `shards` in store.json."""

    file: str
    samples: int = Field(ge=0)
    sha256: str


class Header(smalti.config.Config):
    """store.json, for checking it; code uses the plain dictionary."""

    format: int
    smalti: str
    tokenizer: str
    name: str
    modality: str
    config: dict[str, Any]
    codes_hash: str
    recipe: Recipe
    torch: str
    columns: tuple[ColumnEntry, ...]
    complete: bool
    samples: int = Field(ge=0)
    failed: int = Field(ge=0)
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True)
class Column:
    """Where some slots of a stream stand in a shard.

    Args:
        name: of the Parquet column.
        stream: of the Tokens.
        slots: which slots, interleaved position by position.
        vocab: their vocabularies.
        packed: whether rows are packed bits.
    """

    name: str
    stream: str
    slots: tuple[int, ...]
    vocab: tuple[int, ...]
    packed: bool

    @property
    def bits(self) -> tuple[int, ...]:
        return tuple((size - 1).bit_length() for size in self.vocab)

    def to_json(self) -> dict[str, Any]:
        return {
            "column": self.name,
            "stream": self.stream,
            "slots": list(self.slots),
            "vocab": list(self.vocab),
            "bits": list(self.bits),
            "bit_order": "little",
            "encoding": "packed" if self.packed else "list",
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Column:
        packed = data["encoding"] == "packed"
        return cls(data["column"], data["stream"], tuple(data["slots"]), tuple(data["vocab"]), packed)


def columns_of(spec: Mapping[str, StreamSpec]) -> list[Column]:
    """The columns that Tokens of this spec are stored in."""
    columns = []
    for stream, part in spec.items():
        name = DEFAULT_STREAM if list(spec) == [DEFAULT_STREAM] else f"{DEFAULT_STREAM}.{stream}"
        packed = max(part.bits) > LIST_BITS
        if packed or len({code_dtype([size]) for size in part.vocab}) == 1:
            columns.append(Column(name, stream, tuple(range(part.slots)), part.vocab, packed))
        else:
            columns += [
                Column(f"{name}.{slot}", stream, (slot,), (size,), False) for slot, size in enumerate(part.vocab)
            ]
    return columns


# --- Tokens <-> Arrow ------------------------------------------------------------------------------------------------


def to_table(ids: Sequence[str], rows: Sequence[Tokens], columns: Sequence[Column]) -> pa.Table:
    """A shard's table.

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
            data[f"extent.{stream}"] = pa.array([list(extent) for extent in extents], pa.list_(pa.int32()))
    for name in rows[0].side if rows else ():
        data[f"side.{name}"] = _side_array([row.side[name] for row in rows])
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
        extent = _extent(table, index, stream, own[0])
        parts = {slot: codes for column in own for slot, codes in _row_slots(table, index, column, extent)}
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


def _codes(stream: Stream, column: Column) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    rows = stream.rows()[0]
    if stream.lengths is not None:
        rows = rows[: int(stream.lengths[0])]
    return rows[:, list(column.slots)].cpu().numpy()


def _codes_array(rows: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.int64]]], column: Column) -> pa.Array:
    if column.packed:
        return pa.array([pack_rows(row[None], column.bits).tobytes() for row in rows], pa.large_binary())
    dtype = code_dtype(column.vocab)
    offsets = np.concatenate([[0], np.cumsum([row.size for row in rows])])
    if offsets[-1] >= 2**31:
        raise StoreError(f"{offsets[-1]} codes in one shard are more than a Parquet list holds: choose fewer samples")
    offsets = offsets.astype(np.int32)
    values = np.concatenate([row.reshape(-1) for row in rows]).astype(dtype) if rows else np.zeros(0, dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _side_array(values: Sequence[Side]) -> pa.Array:
    first = values[0]
    if isinstance(first, Tensor):
        rows = [value[0].tolist() for value in values if isinstance(value, Tensor)]
        kind = pa.float64() if first.is_floating_point() else pa.int64()
        for _ in range(first.ndim - 1):
            kind = pa.list_(kind)
        return pa.array(rows, kind)
    return pa.array([value[0] for value in values if not isinstance(value, Tensor)])


def _extent(table: pa.Table, index: int, stream: str, column: Column) -> tuple[int, ...]:
    name = f"extent.{stream}"
    if name in table.column_names:
        return tuple(table.column(name)[index].as_py())
    if column.packed:
        raise StoreError(f"column {column.name} is packed, but there is no {name}")
    count = len(table.column(column.name)[index])
    return (count // len(column.slots),)


def _row_slots(
    table: pa.Table, index: int, column: Column, extent: tuple[int, ...]
) -> Iterable[tuple[int, np.ndarray[tuple[int, ...], np.dtype[Any]]]]:
    positions = int(np.prod(extent))
    value = table.column(column.name)[index]
    if column.packed:
        data = np.frombuffer(value.as_py(), np.uint8)
        if len(data) != (positions * sum(column.bits) + 7) // 8:
            raise StoreError(f"row {index}: {len(data)} bytes in {column.name} do not fit extent {extent}")
        codes = unpack_rows(data[None], positions, column.bits)[0]
    else:
        codes = value.values.to_numpy(zero_copy_only=False)
        if codes.size != positions * len(column.slots):
            raise StoreError(f"row {index}: {codes.size} codes in {column.name} do not fit extent {extent}")
        codes = codes.reshape(positions, len(column.slots))
    return zip(column.slots, codes.T, strict=True)


# --- files -----------------------------------------------------------------------------------------------------------


def write_shard(
    path: Path,
    table: pa.Table,
    columns: Sequence[Column],
    errors: Sequence[Mapping[str, str]] = (),
    meaning: str = "",
) -> None:
    """Writes a shard so that it appears whole, on disk, under its final name, or not at all.

    Args:
        path: its final name.
        table: its rows.
        columns: which of them hold codes.
        errors: inputs of this shard that failed; they travel in the file's metadata, so that one rename settles all.
        meaning: what `meaning` gives of the store's header.
    """
    metadata = {ERRORS_KEY: json.dumps(list(errors)).encode(), MEANING_KEY: meaning.encode()}
    table = table.replace_schema_metadata(metadata)
    candidates = [_serialise(table, columns, dictionary=dictionary) for dictionary in (True, False)]
    write_atomic(path, min(candidates, key=len))


def _serialise(table: pa.Table, columns: Sequence[Column], *, dictionary: bool) -> bytes:
    """Parquet bytes, with codes dictionary-encoded (best for small vocabularies) or byte-split (best for large)."""
    lists = [column.name for column in columns if not column.packed]
    codes = [
        path
        for path in _leaves(table.schema)
        if any(path == name or path.startswith(f"{name}.list.") for name in lists)
    ]
    others = [path for path in _leaves(table.schema) if path not in codes]
    # One byte has no bytes to split.
    wide = [path for path in codes if pa.types.is_list(table.schema.field(_column(path, lists)).type)
            and table.schema.field(_column(path, lists)).type.value_type.bit_width > 8]  # fmt: skip
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=others + (codes if dictionary else []),
        column_encoding=None if dictionary else dict.fromkeys(wide, "BYTE_STREAM_SPLIT"),
        dictionary_pagesize_limit=DICTIONARY_LIMIT,
        write_page_checksum=True,
        write_statistics=["id"],
        row_group_size=max(1, table.num_rows),
    )
    return sink.getvalue().to_pybytes()


def _column(path: str, names: Sequence[str]) -> str:
    return next(name for name in names if path == name or path.startswith(f"{name}.list."))


def _leaves(schema: pa.Schema) -> list[str]:
    parquet = pq.ParquetFile(_empty(schema)).schema
    return [parquet.column(index).path for index in range(len(parquet))]


def _empty(schema: pa.Schema) -> pa.BufferReader:
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    return pa.BufferReader(sink.getvalue())


def read_shard(path: Path) -> pa.Table:
    """A shard's table, page checksums verified.

    Raises:
        StoreError: if it is missing or damaged.
    """
    try:
        return pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise StoreError(
            f"shard {path.name} can't be read: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from None


def shard_errors(path: Path) -> list[dict[str, str]]:
    """The failed inputs that a shard records: a Parquet file, or the list that stands for one without samples.

    Raises:
        StoreError: if the shard is damaged.
    """
    try:
        if path.suffix == ".json":
            errors = json.loads(path.read_text())
        else:
            errors = json.loads((pq.read_metadata(path).metadata or {}).get(ERRORS_KEY, b"[]"))
        return [{"id": str(error["id"]), "error": str(error["error"])} for error in errors]
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"shard {path.name} can't be read: {error}") from None


def shard_meaning(path: Path) -> str:
    """What the header said that codes are when a Parquet shard was written."""
    return str((pq.read_metadata(path).metadata or {}).get(MEANING_KEY, b""), "ascii", "replace")


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that it appears whole, and survives a power failure once this returns.

    Raises:
        StoreError: if the disk is full or can't be written; what was at the path stays.
    """
    staged = path.with_name(f"{STAGED}{path.name}.tmp")
    try:
        with staged.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
        _sync_folder(path.parent)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise StoreError(f"{path} can't be written: {error.strerror or error}; what is finished stays valid") from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_store_header(folder: Path) -> dict[str, Any]:
    """store.json.

    Raises:
        StoreError: if the folder is no store, or one of a newer format.
    """
    path = folder / HEADER
    try:
        header = json.loads(path.read_text())
    except FileNotFoundError:
        raise StoreError(f"{folder} is not a token store: it has no {HEADER}") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} can't be read: {error}") from None
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise StoreError(f"{path} is not the header of a token store")
    if header["format"] > FORMAT:
        raise StoreError(f"{path} has format {header['format']}; this Smalti reads up to {FORMAT}: update it")
    try:
        checked = Header(**header)
    except ConfigError as error:
        raise StoreError(f"{path} is damaged: {error}") from None
    files = [entry.file for entry in checked.shards]
    if len(set(files)) != len(files):
        raise StoreError(f"{path} lists a shard twice")
    return header


def meaning(header: Mapping[str, Any]) -> str:
    """SHA-256 over what a header says that codes are. Every shard carries it, so that an edited header is found."""
    said = {name: header[name] for name in ("codes_hash", "columns", "recipe")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
