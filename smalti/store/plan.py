"""What a run will encode: inputs and their ids, and the shard of each, written down before anything is encoded.

    paths ──find_inputs──► inputs with ids ──minus what is planned already──► shards of a new plan file

A shard is an independent task: its plan says all that it needs, and its file under its final name says that it is done.
An input of many bytes takes several shards in a row, a chain: each goes on where the one before it says that it ended.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

from smalti.errors import InputError, StoreError
from smalti.store.format import PLANS, SHARDS
from smalti.store.shard import shard_errors, write_atomic

MAX_LISTED = 5  # names in one message


@dataclass(frozen=True)
class Piece:
    """Which stretch of a long input a shard takes.

    Args:
        number: 0, 1, ... of the input; consecutive shards take consecutive pieces.
        until: the shard ends with the first row that reaches this byte, which is counted from the start of the file;
            None for the last piece, which goes on to the end.
    """

    number: int
    until: int | None


@dataclass(frozen=True)
class Input:
    """A file to encode, or a piece of one.

    Args:
        id: the POSIX path below the folder that the user named, with what is not printable UTF-8 percent-escaped.
        path: where it is.
        size: bytes that it, or the piece, had when it was planned (0 in plans of format 1).
        piece: of an input that takes several shards.
    """

    id: str
    path: Path
    size: int = 0
    piece: Piece | None = None

    def pieces(self, size: int) -> list[Input]:
        """Itself as pieces of about so many bytes."""
        ends = [*range(size, self.size, size), self.size]
        return [
            replace(self, size=end - size * number, piece=Piece(number, end if end < self.size else None))
            for number, end in enumerate(ends)
        ]


@dataclass(frozen=True)
class Limits:
    """How much one shard takes.

    Args:
        samples: inputs.
        bytes: of its inputs, or None where their size says little; larger inputs take several shards.
    """

    samples: int
    bytes: int | None = None


@dataclass(frozen=True)
class Found:
    """What the named paths hold.

    Args:
        inputs: by id, in order.
        skipped: how many files were passed over, because they are of no medium of this tokenizer.
    """

    inputs: list[Input]
    skipped: int


@dataclass(frozen=True)
class Shard:
    """One task: the inputs that become one file, or a piece of one input."""

    number: int
    inputs: list[Input] = field(default_factory=list)

    @property
    def file(self) -> str:
        """Its name once it is done, if it has rows."""
        return f"{self.number:05d}.parquet"

    @property
    def failed_file(self) -> str:
        """Its name once it is done, if it has none, mostly because no input could be encoded."""
        return f"{self.number:05d}.failed.json"

    @property
    def piece(self) -> Piece | None:
        """Which piece it is, if it is one; it is then its shard's only input."""
        return self.inputs[0].piece if self.inputs else None


Chain = list[Shard]  # the shards of one long input; or a single other one


def by_suffix(suffixes: Iterable[str]) -> Callable[[Path], bool]:
    """Whether a file has one of these suffixes, in any case."""
    wanted = frozenset(suffixes)
    return lambda path: path.suffix.lower() in wanted


def find_inputs(
    paths: Sequence[str | Path], counts: Callable[[Path], bool], *, recursive: bool = False, glob: str | None = None
) -> Found:
    """Lists the files that named paths hold.

    Args:
        paths: files, which are taken whatever they are, and folders.
        counts: which files are taken from folders.
        recursive: look into sub-folders too (links to folders are not followed, so they can't form a loop).
        glob: only files whose id or name matches this pattern.

    Raises:
        InputError: if a path does not exist, or two inputs have one id.
    """
    inputs: dict[str, Input] = {}
    skipped = 0
    for named in map(Path, paths):
        if not named.exists():
            raise InputError(f"{escape(str(named))} does not exist")
        for path, relative in _walk(named, recursive):
            name = escape(relative)
            if glob is not None and not (fnmatch(name, glob) or fnmatch(name.rsplit("/", 1)[-1], glob)):
                continue
            size = _file_size(path)
            if size is None or not (named == path or counts(path)):
                skipped += 1
                continue
            each = Input(name, path.absolute(), size)
            if name in inputs and inputs[name].path != each.path:
                raise InputError(
                    f"two inputs have the id {name!r}: {escape(str(inputs[name].path))} and {escape(str(each.path))}; "
                    "name their common folder with --recursive instead"
                )
            inputs[name] = each
    return Found([inputs[name] for name in sorted(inputs)], skipped)


def _walk(named: Path, recursive: bool) -> Iterator[tuple[Path, str]]:
    """(path, path below what was named) of the files under a path."""
    if not named.is_dir():
        if _file_size(named) is None:
            raise InputError(f"{escape(str(named))} is neither a regular file nor a folder")
        yield named, named.name
        return
    for folder, folders, files in os.walk(named):
        folders.sort()
        if not recursive:
            folders.clear()
        for name in sorted(files):
            path = Path(folder, name)
            yield path, path.relative_to(named).as_posix()


def _file_size(path: Path) -> int | None:
    """The size of a regular file; None for anything else."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def escape(name: str) -> str:
    """A printable, reversible form of a file name: what is not printable UTF-8, and '%', becomes %XX."""
    return "".join(c if c.isprintable() and c != "%" and not _surrogate(c) else _percent(c) for c in name)


def _surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def _percent(character: str) -> str:
    return quote(character.encode("utf-8", "surrogateescape"), safe="")


class Plans:
    """The plan files of a store, and which of their shards are done.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = sorted((folder / PLANS).glob("*.jsonl"), key=lambda file: int(file.stem))
        self.shards = [shard for file in files for shard in _read_plan(file)]
        self._errors: dict[str, list[dict[str, str]]] = {}  # of finished shards, by file: they never change in a run
        numbers = [shard.number for shard in self.shards]
        if len(set(numbers)) != len(numbers):
            raise StoreError(f"{folder / PLANS} plans a shard twice")

    def done(self) -> list[Shard]:
        return [shard for shard in self.shards if self.path(shard) is not None]

    def missing(self) -> list[Shard]:
        return [shard for shard in self.shards if self.path(shard) is None]

    def chains(self) -> list[Chain]:
        """All shards; those of one long input together."""
        chains: list[Chain] = []
        for shard in self.shards:
            if shard.piece is not None and shard.piece.number > 0:
                chains[-1].append(shard)
            else:
                chains.append([shard])
        return chains

    def unfinished(self) -> list[Chain]:
        """Those with a missing shard, or with rows of a long input that failed in another piece."""
        return [chain for chain in self.chains() if not self._finished(chain)]

    def readable(self) -> list[Shard]:
        """Shards with rows of whole samples, in order."""
        chains = [chain for chain in self.chains() if self._finished(chain)]
        return [shard for chain in chains for shard in chain if self.has_rows(shard)]

    def has_rows(self, shard: Shard) -> bool:
        path = self.path(shard)
        return path is not None and path.name == shard.file

    def path(self, shard: Shard) -> Path | None:
        """The file that says that a shard is done, or None."""
        # A long input that failed loses its rows, and for a moment both are there.
        paths = (self.folder / SHARDS / name for name in (shard.failed_file, shard.file))
        return next((path for path in paths if path.exists()), None)

    def errors(self, shard: Shard) -> list[dict[str, str]]:
        """The inputs of a shard that failed, if it is done.

        Raises:
            StoreError: if its file is damaged.
        """
        path = self.path(shard)
        if path is None:
            return []
        if path.name not in self._errors:
            self._errors[path.name] = shard_errors(path)
        return self._errors[path.name]

    def forget(self, shard: Shard) -> None:
        """Reads a shard's failures anew when they are asked for next."""
        self._errors.pop(shard.failed_file, None)

    def failed(self) -> dict[str, dict[str, str]]:
        """The inputs whose last attempt failed: id -> {"id", "error", "shard"}."""
        last: dict[str, dict[str, str] | None] = {}
        for shard in self.shards:
            path = self.path(shard)
            if path is None:
                continue
            errors = {error["id"]: {**error, "shard": path.name} for error in self.errors(shard)}
            last.update({each.id: errors.get(each.id) for each in shard.inputs})
        return {name: error for name, error in last.items() if error is not None}

    def extend(self, inputs: Iterable[Input], limits: Limits) -> list[Shard]:
        """Plans new shards for what is new, and for what failed once all that was planned is done.

        Raises:
            InputError: if an input has the id of another file, which is still there.
            StoreError: if the plan can't be written.
        """
        inputs = list(inputs)
        planned = {each.id: each.path for shard in self.shards for each in shard.inputs}
        for each in inputs:
            before = planned.get(each.id, each.path)
            if before != each.path and before.exists():  # a folder that was moved keeps its ids
                raise InputError(
                    f"the id {each.id!r} belongs to {escape(str(before))} in this store already, "
                    f"{escape(str(each.path))} can't have it too: use another store, or name their common folder"
                )
        again = set() if self.unfinished() else set(self.failed())
        fresh = [each for each in inputs if each.id not in planned or each.id in again]
        if not fresh:
            return []
        first = max((shard.number for shard in self.shards), default=-1) + 1
        shards = [Shard(first + index, group) for index, group in enumerate(_groups(fresh, limits))]
        lines = [json.dumps({"shard": shard.number, "inputs": [_entry(i) for i in shard.inputs]}) for shard in shards]
        write_atomic(self.folder / PLANS / f"{first:05d}.jsonl", ("\n".join(lines) + "\n").encode())
        self.shards += shards
        return shards

    def _finished(self, chain: Chain) -> bool:
        if any(self.path(shard) is None for shard in chain):
            return False
        if len(chain) == 1:
            return True
        torn = any(self.errors(shard) for shard in chain)
        return not (torn and any((self.folder / SHARDS / shard.file).exists() for shard in chain))


def _groups(inputs: Iterable[Input], limits: Limits) -> Iterator[list[Input]]:
    """Neighbours that share a shard; a piece of a long input has one of its own."""
    group: list[Input] = []
    size = 0
    for each in inputs:
        long = limits.bytes is not None and each.size > limits.bytes
        full = len(group) == limits.samples or (limits.bytes is not None and size + each.size > limits.bytes)
        if group and (long or full):
            yield group
            group, size = [], 0
        if long and limits.bytes is not None:
            yield from ([piece] for piece in each.pieces(limits.bytes))
        else:
            group.append(each)
            size += each.size
    if group:
        yield group


def _entry(each: Input) -> dict[str, Any]:
    entry = {"id": each.id, "path": escape(str(each.path)), "bytes": each.size}
    return entry if each.piece is None else {**entry, "piece": each.piece.number, "until": each.piece.until}


def _input(entry: Mapping[str, Any]) -> Input:
    piece = Piece(entry["piece"], entry["until"]) if "piece" in entry else None
    return Input(entry["id"], Path(unescape(entry["path"])), entry.get("bytes", 0), piece)


def unescape(name: str) -> str:
    """The file name that `escape` was given."""
    parts = name.split("%")
    data = parts[0].encode()
    for part in parts[1:]:
        data += bytes([int(part[:2], 16)]) + part[2:].encode()
    return os.fsdecode(data)


def _read_plan(file: Path) -> list[Shard]:
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        shards = [Shard(row["shard"], [_input(entry) for entry in row["inputs"]]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file} can't be read: {error}") from None
    before: Shard | None = None
    for shard in shards:
        number = 0 if shard.piece is None else shard.piece.number
        if number and (before is None or before.piece is None or before.piece.number != number - 1):
            raise StoreError(f"{file} is damaged: shard {shard.number} continues an input that no shard before it has")
        before = shard
    return shards
