"""What a run will encode: inputs and their ids, and the shard of each, written down before anything is encoded.

    paths ──find_inputs──► inputs with ids ──minus what is planned already──► shards of a new plan file

A shard is an independent task: its plan says all that it needs, and its file under its final name says that it is done.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import quote

from smalti.errors import InputError, StoreError
from smalti.store.format import PLANS, SHARDS, shard_errors, write_atomic

MAX_LISTED = 5  # names in one message


@dataclass(frozen=True)
class Input:
    """A file to encode.

    Args:
        id: the POSIX path below the folder that the user named, with what is not printable UTF-8 percent-escaped.
        path: where it is.
    """

    id: str
    path: Path


@dataclass(frozen=True)
class Found:
    """What the named paths hold.

    Args:
        inputs: by id, in order.
        skipped: how many files were passed over, because their suffix is of no medium of this tokenizer.
    """

    inputs: list[Input]
    skipped: int


@dataclass(frozen=True)
class Shard:
    """One task: the inputs that become one file."""

    number: int
    inputs: list[Input] = field(default_factory=list)

    @property
    def file(self) -> str:
        """Its name once it is done, if it has samples."""
        return f"{self.number:05d}.parquet"

    @property
    def failed_file(self) -> str:
        """Its name once it is done, if none of its inputs could be encoded: Parquet readers dislike empty files."""
        return f"{self.number:05d}.failed.json"


def find_inputs(
    paths: Sequence[str | Path], suffixes: frozenset[str], *, recursive: bool = False, glob: str | None = None
) -> Found:
    """Lists the files that named paths hold.

    Args:
        paths: files, which are taken whatever their suffix, and folders.
        suffixes: of files that are taken from folders.
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
        for path, relative, chosen in _walk(named, suffixes, recursive):
            name = escape(relative)
            if glob is not None and not (fnmatch(name, glob) or fnmatch(name.rsplit("/", 1)[-1], glob)):
                continue
            if not chosen:
                skipped += 1
                continue
            if name in inputs and inputs[name].path != path:
                raise InputError(
                    f"two inputs have the id {name!r}: {escape(str(inputs[name].path))} and {escape(str(path))}; "
                    "name their common folder with --recursive instead"
                )
            inputs[name] = Input(name, path)
    return Found([inputs[name] for name in sorted(inputs)], skipped)


def _walk(named: Path, suffixes: frozenset[str], recursive: bool) -> Iterator[tuple[Path, str, bool]]:
    """(path, path below what was named, whether it counts) of the files under a path."""
    if not named.is_dir():
        if not _is_file(named):
            raise InputError(f"{escape(str(named))} is neither a regular file nor a folder")
        yield named.absolute(), named.name, True
        return
    for folder, folders, files in os.walk(named):
        folders.sort()
        if not recursive:
            folders.clear()
        for name in sorted(files):
            path = Path(folder, name)
            yield (
                path.absolute(),
                path.relative_to(named).as_posix(),
                path.suffix.lower() in suffixes and _is_file(path),
            )


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


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
        self.shards = [shard for file in sorted((folder / PLANS).glob("*.jsonl")) for shard in _read_plan(file)]
        self._errors: dict[str, list[dict[str, str]]] = {}  # of finished shards, by file: they never change in a run
        numbers = [shard.number for shard in self.shards]
        if len(set(numbers)) != len(numbers):
            raise StoreError(f"{folder / PLANS} plans a shard twice")

    def done(self) -> list[Shard]:
        return [shard for shard in self.shards if self.path(shard) is not None]

    def missing(self) -> list[Shard]:
        return [shard for shard in self.shards if self.path(shard) is None]

    def path(self, shard: Shard) -> Path | None:
        """The file that says that a shard is done, or None."""
        paths = (self.folder / SHARDS / name for name in (shard.file, shard.failed_file))
        return next((path for path in paths if path.exists()), None)

    def failed(self) -> dict[str, dict[str, str]]:
        """The inputs whose last attempt failed: id -> {"id", "error", "shard"}."""
        last: dict[str, dict[str, str] | None] = {}
        for shard in self.shards:
            path = self.path(shard)
            if path is None:
                continue
            if path.name not in self._errors:
                self._errors[path.name] = shard_errors(path)
            errors = {error["id"]: {**error, "shard": path.name} for error in self._errors[path.name]}
            last.update({each.id: errors.get(each.id) for each in shard.inputs})
        return {name: error for name, error in last.items() if error is not None}

    def extend(self, inputs: Iterable[Input], shard_size: int) -> list[Shard]:
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
        again = set() if self.missing() else set(self.failed())
        fresh = [each for each in inputs if each.id not in planned or each.id in again]
        if not fresh:
            return []
        first = max((shard.number for shard in self.shards), default=-1) + 1
        shards = [
            Shard(first + index, fresh[start : start + shard_size])
            for index, start in enumerate(range(0, len(fresh), shard_size))
        ]
        lines = [
            json.dumps(
                {"shard": shard.number, "inputs": [{"id": i.id, "path": escape(str(i.path))} for i in shard.inputs]}
            )
            for shard in shards
        ]
        write_atomic(self.folder / PLANS / f"{first:05d}.jsonl", ("\n".join(lines) + "\n").encode())
        self.shards += shards
        return shards


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
        return [Shard(row["shard"], [Input(i["id"], Path(unescape(i["path"]))) for i in row["inputs"]]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file} can't be read: {error}") from None
