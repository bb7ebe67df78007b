"""The token store on disk: what its files hold. `docs/token-store.md` is the same in words, with test vectors.

    STORE/
      store.json              what the codes mean, and a count and a hash for every shard
      shards/00000.parquet    rows of samples; a file's presence says that the shard is done
      shards/00001.failed.json    instead, where a shard has no rows: its failed inputs
      plan/00000.jsonl        which input goes into which shard, written before a run encodes anything
      errors.jsonl            inputs that could not be encoded: {"id", "error", "shard"}

Columns of a shard: `id`; `part` where samples may have several rows; `codes`, or `codes.<stream>` where there are
several streams, `<column>.<slot>` where slots have different widths; `extent.<stream>` where positions are more than
one number; `side.<name>`. Codes up to 18 bits are lists of the smallest unsigned type, which every Parquet reader
understands; wider ones are packed bits (least significant first) in a binary column.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import smalti.config
from smalti.errors import ConfigError, StoreError
from smalti.tokens import DEFAULT_STREAM, StreamSpec, code_dtype

FORMAT = 2  # the newest that is read; a store is written in the oldest one that can hold it
ONE_ROW_EACH, ROWS_IN_PARTS = 1, 2  # what the formats hold
HEADER, ERRORS, SHARDS, PLANS, LOCK = "store.json", "errors.jsonl", "shards", "plan", ".lock"
STAGED = ".smalti-"  # how names of unfinished files begin
LIST_BITS = 18  # wider codes cost far more than their bits as Parquet lists
MAX_ROW = 2**20  # tokens


class Recipe(smalti.config.Config):
    """Everything beside tokenizer and files that decides rows. A store keeps the one that it was begun with."""


class SampleRecipe(Recipe):
    """Of files that are decoded whole and encoded by a model.

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


class ByteRecipe(Recipe):
    """Of files that are encoded as a stream of bytes, where no machine or thread count moves a code.

    Args:
        max_row: tokens of every row of a sample but its last, which may be shorter.
    """

    max_row: int = Field(MAX_ROW, ge=1, le=2**30)


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
    """An entry of `shards` in store.json.

    Args:
        file: its name.
        samples: how many begin in it.
        rows: how many it has, where samples may have several.
        sha256: of the file.
    """

    file: str
    samples: int = Field(ge=0)
    rows: int | None = Field(None, ge=0)
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
    recipe: SampleRecipe | ByteRecipe
    torch: str | None = None
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


# --- store.json ------------------------------------------------------------------------------------------------------


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
