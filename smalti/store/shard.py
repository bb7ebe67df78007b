"""Shard files: written so that they appear whole or not at all, read with every checksum verified.

tables ──ShardWriter──► .smalti-00000.parquet.tmp ──synced, renamed──► 00000.parquet
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from smalti.errors import StoreError
from smalti.store.format import STAGED, Column

ERRORS_KEY, MEANING_KEY, SPAN_KEY = b"smalti.errors", b"smalti.meaning", b"smalti.span"
DICTIONARY_LIMIT = 2**23


@dataclass(frozen=True)
class Span:
    """Which rows of a long input a shard holds, and where the next shard goes on.

    Args:
        first: `part` of the shard's first row.
        next: `part` of the next shard's first row.
        byte: where in the file an encoder starts that goes on.
        skip: how many of its first tokens stand in rows already.
        size: of the file, in bytes.
        mtime_ns: when the file was last written; size and this tell whether it is still the same.
    """

    first: int
    next: int
    byte: int
    skip: int
    size: int
    mtime_ns: int


class ShardWriter:
    """Writes one shard, table after table; each becomes a row group.

    Args:
        path: its final name, under which it appears by `commit`; leaving the context without leaves nothing.
        columns: which columns hold codes.
        meaning: what `meaning` gives of the store's header.
    """

    def __init__(self, path: Path, columns: Sequence[Column], meaning: str) -> None:
        self._path, self._columns, self._meaning = path, columns, meaning
        self._staged = staged_name(path)
        self._first: pa.Table | None = None
        self._file: pq.ParquetWriter | None = None
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._staged.unlink(missing_ok=True)

    def write(self, table: pa.Table) -> None:
        """Adds rows.

        Raises:
            StoreError: if the disk is full or can't be written.
        """
        self.rows += table.num_rows
        if self._first is None:
            self._first = table
            return
        with _writing(self._path):
            if self._file is None:
                dictionary = min((True, False), key=lambda choice: len(_serialise(self._first, self._columns, choice)))
                options = _options(table.schema, self._columns, dictionary)
                self._file = pq.ParquetWriter(self._staged, table.schema, **options)
                self._file.write_table(self._first, row_group_size=max(1, self._first.num_rows))
            self._file.write_table(table, row_group_size=max(1, table.num_rows))

    def commit(self, errors: Sequence[Mapping[str, str]] = (), span: Span | None = None) -> None:
        """Makes the shard appear.

        Args:
            errors: inputs of this shard that failed; they travel in the file, so that one rename settles all.
            span: of a shard that holds a piece of a long input.

        Raises:
            StoreError: if the disk is full or can't be written; what was at the path stays.
        """
        if self._first is None:
            raise ValueError("a shard without rows is no Parquet file")
        metadata = {ERRORS_KEY: json.dumps(list(errors)).encode(), MEANING_KEY: self._meaning.encode()}
        if span is not None:
            metadata[SPAN_KEY] = json.dumps(asdict(span)).encode()
        if self._file is None:
            table = self._first.replace_schema_metadata(metadata)
            write_atomic(self._path, min((_serialise(table, self._columns, d) for d in (True, False)), key=len))
            return
        with _writing(self._path):
            self._file.add_key_value_metadata(metadata)
            self._file.close()
            self._file = None
            _publish(self._staged, self._path)


def write_shard(
    path: Path,
    table: pa.Table,
    columns: Sequence[Column],
    errors: Sequence[Mapping[str, str]] = (),
    meaning: str = "",
) -> None:
    """Writes a shard of one table; as `ShardWriter`."""
    with ShardWriter(path, columns, meaning) as shard:
        shard.write(table)
        shard.commit(errors)


def read_shard(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard's table, page checksums verified.

    Args:
        path: of the file.
        columns: only these, by name.

    Raises:
        StoreError: if it is missing or damaged.
    """
    with _reading(path):
        chosen = None if columns is None else list(columns)
        return pq.read_table(path, columns=chosen, page_checksum_verification=True, partitioning=None)


def read_group(path: Path, group: int) -> pa.Table:
    """One row group of a shard, page checksums verified.

    Raises:
        StoreError: if it is missing or damaged.
    """
    with _reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read_row_group(group)


def group_sizes(path: Path) -> list[int]:
    """The number of rows of each row group.

    Raises:
        StoreError: if the shard is missing or damaged.
    """
    with _reading(path):
        facts = pq.read_metadata(path)
        return [facts.row_group(index).num_rows for index in range(facts.num_row_groups)]


def rows_of(path: Path) -> dict[str, int]:
    """What store.json says of a shard's rows: how many samples begin in it, and of rows in parts how many it has."""
    facts = pq.read_metadata(path)
    if "part" not in facts.schema.names:
        return {"samples": int(facts.num_rows)}
    parts = pq.read_table(path, columns=["part"], partitioning=None).column("part")
    return {"samples": int(pc.sum(pc.equal(parts, 0)).as_py() or 0), "rows": int(facts.num_rows)}


def shard_errors(path: Path) -> list[dict[str, str]]:
    """The failed inputs that a shard records: a Parquet file, or the list that stands for one without rows.

    Raises:
        StoreError: if the shard is damaged.
    """
    with _reading(path):
        errors = json.loads(path.read_text() if path.suffix == ".json" else _metadata(path).get(ERRORS_KEY, b"[]"))
        return [{"id": str(error["id"]), "error": str(error["error"])} for error in errors]


def shard_meaning(path: Path) -> str:
    """What the header said that codes are when a Parquet shard was written."""
    return str(_metadata(path).get(MEANING_KEY, b""), "ascii", "replace")


def shard_span(path: Path) -> Span | None:
    """Of a Parquet shard that holds a piece of a long input: which.

    Raises:
        StoreError: if the shard is damaged.
    """
    with _reading(path):
        span = _metadata(path).get(SPAN_KEY)
        return None if span is None else Span(**{name: int(value) for name, value in json.loads(span).items()})


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that it appears whole, and survives a power failure once this returns.

    Raises:
        StoreError: if the disk is full or can't be written; what was at the path stays.
    """
    staged = staged_name(path)
    try:
        with _writing(path):
            staged.write_bytes(data)
            _publish(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def staged_name(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(f"{STAGED}{path.name}.tmp")


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _serialise(table: pa.Table, columns: Sequence[Column], dictionary: bool) -> bytes:
    """Parquet bytes of one row group."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=max(1, table.num_rows), **_options(table.schema, columns, dictionary))
    return sink.getvalue().to_pybytes()


def _options(schema: pa.Schema, columns: Sequence[Column], dictionary: bool) -> dict[str, Any]:
    """How to write: codes dictionary-encoded (best for small vocabularies) or byte-split (best for large ones)."""
    lists = {column.name for column in columns if not column.packed}
    leaves = {path: path.removesuffix(".list.element") for path in _leaves(schema)}
    codes = [path for path, column in leaves.items() if column in lists]
    # One byte has no bytes to split.
    wide = [path for path in codes if schema.field(leaves[path]).type.value_type.bit_width > 8]
    others = [path for path in leaves if path not in codes]
    return {
        "compression": "zstd",
        "use_dictionary": others + (codes if dictionary else []),
        "column_encoding": None if dictionary else dict.fromkeys(wide, "BYTE_STREAM_SPLIT"),
        "dictionary_pagesize_limit": DICTIONARY_LIMIT,
        "write_page_checksum": True,
        "write_statistics": [name for name in ("id", "part") if name in schema.names],
    }


def _leaves(schema: pa.Schema) -> list[str]:
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(index).path for index in range(len(parquet))]


def _metadata(path: Path) -> Mapping[bytes, bytes]:
    return pq.read_metadata(path).metadata or {}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError) as error:
        text = str(error).splitlines()[0] if str(error) else repr(error)
        raise StoreError(f"shard {path.name} can't be read: {text}") from None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} can't be written: {error.strerror or error}; what is finished stays valid") from None


def _publish(staged: Path, path: Path) -> None:
    """Syncs a finished file and gives it its final name."""
    descriptor = os.open(staged, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(staged, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
