"""Bulk encoding: files into a token store, exactly once, whatever interrupts it.

    plan ──chains with missing shards──► a Coder: files ──► rows ──► one shard file each, atomically
                                           └ what can't be read or encoded ──► errors, in the same file

A kill at any moment leaves finished shards and a plan; the same command goes on from there. One writer at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import smalti
from smalti.errors import StoreError
from smalti.store.coder import Coder, Output, Progress
from smalti.store.format import (
    ERRORS,
    HEADER,
    LOCK,
    PLANS,
    SHARDS,
    STAGED,
    Column,
    meaning,
    read_store_header,
)
from smalti.store.kinds import coder_class, open_coder
from smalti.store.media import considered
from smalti.store.plan import Found, Limits, Plans, find_inputs
from smalti.store.shard import file_hash, rows_of, write_atomic
from smalti.tokenizer import Tokenizer

HEADER_EVERY = 5.0  # seconds between refreshes of store.json; shard files are the truth in between


def encode_paths(
    paths: Sequence[str | Path],
    store: str | Path,
    tokenizer: Tokenizer,
    *,
    reference: str,
    recipe: Mapping[str, Any] | None = None,
    workers: int | None = 0,
    shard_size: int | None = None,
    shard_bytes: int | None = None,
    recursive: bool = False,
    glob: str | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Progress:
    """Encodes files into a store, creating it or going on with it.

    Args:
        paths: files and folders.
        store: the store's folder.
        tokenizer: on its device.
        reference: what `smalti.load` finds it by; decoding uses it.
        recipe: fields of the recipe that are asked for; the others are the store's own, or the defaults of a new one.
        workers: pictures and sounds: processes that decode files while the model runs (0: none); text and executables:
            threads that encode; None for as many as suit.
        shard_size: samples per shard file; None for 512 pictures or sounds, 4096 texts.
        shard_bytes: text and executables: bytes of input per shard file; longer inputs take several. None for 2^25.
        recursive: as in `find_inputs`.
        glob: as in `find_inputs`.
        report: called as work proceeds.

    Returns:
        What was done in this run.

    Raises:
        InputError: if paths do not exist, or two inputs have one id.
        ConfigError: if the recipe asks for what means nothing to this tokenizer.
        StoreError: if another process writes to the store, it was begun with another tokenizer or recipe, or the disk
            is full; finished shards stay valid, and the same command goes on later.
    """
    folder, kind = Path(store), coder_class(tokenizer)
    found = find_inputs(paths, considered(tokenizer.modality), recursive=recursive, glob=glob)
    if not found.inputs and not (folder / HEADER).exists():
        return Progress(skipped=found.skipped)
    chosen = kind.new_recipe(tokenizer.name, recipe or {})  # before anything is written
    with writing(folder):
        header = _open_store(folder, tokenizer, reference, kind, chosen.model_dump(), recipe or {})
        coder = open_coder(tokenizer, header["recipe"], workers)
        limits = Limits(shard_size or kind.limits.samples, kind.limits.bytes and (shard_bytes or kind.limits.bytes))
        return Run(folder, header, coder, report or (lambda progress: None))(found, limits)


_held: set[Path] = set()  # POSIX locks do not exclude their own process


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Holds the store for one writer. The lock falls with the process, however it ends.

    Raises:
        StoreError: if another writer holds it, the folder can't be made, or it holds other things.
    """
    key = folder.resolve()
    if key in _held:
        raise StoreError(f"{folder} is being written by this process already")
    is_store = (folder / HEADER).exists() or (folder / PLANS).is_dir()
    if folder.exists() and not is_store and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} exists and is no token store: name a new folder")
    try:
        for part in (SHARDS, PLANS):
            (folder / part).mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK).open("a+")
    except OSError as error:
        raise StoreError(f"{folder} can't be written: {error.strerror or error}") from None
    try:
        _lock(handle, folder)
        _held.add(key)
        for place in (folder, folder / SHARDS, folder / PLANS):
            for leftover in place.glob(f"{STAGED}*.tmp"):
                leftover.unlink(missing_ok=True)
        yield
    finally:
        _held.discard(key)
        with suppress(OSError):  # closing flushes the note of who writes, which a full disk can't take
            handle.close()


def _lock(handle: IO[str], folder: Path) -> None:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by workers
    except OSError:
        handle.seek(0)
        holder = handle.read().strip() or "unknown"
        raise StoreError(f"{folder} is being written by another process ({holder})") from None
    with suppress(OSError):
        handle.truncate(0)
        handle.write(f"pid {os.getpid()} on {platform.node()}\n")
        handle.flush()


def _open_store(
    folder: Path,
    tokenizer: Tokenizer,
    reference: str,
    kind: type[Coder],
    recipe: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    if (folder / HEADER).exists():
        header = read_store_header(folder)
        if header["codes_hash"] != tokenizer.codes_hash:
            raise StoreError(
                f"{folder} was begun with another tokenizer ({header['tokenizer']}): its codes would not match"
            )
        other = {name: value for name, value in asked.items() if header["recipe"].get(name) != value}
        if other:
            raise StoreError(f"{folder} was begun with {header['recipe']}: it can't go on with {other}")
        return header
    header = {
        "format": kind.format,
        "smalti": smalti.__version__,
        "tokenizer": reference,
        "name": tokenizer.name,
        "modality": tokenizer.modality,
        "config": tokenizer.config.model_dump(mode="json"),
        "codes_hash": tokenizer.codes_hash,
        "recipe": dict(recipe),
        **kind.versions(),
        "columns": [],
        "complete": False,
        "samples": 0,
        "failed": 0,
        "shards": [],
    }
    write_header(folder, header)
    return header


class Run:
    """One run over the missing shards of a store.

    Args:
        folder: of the store, held by `writing`.
        header: store.json.
        coder: that does the shards.
        report: called as work proceeds.
    """

    def __init__(self, folder: Path, header: dict[str, Any], coder: Coder, report: Callable[[Progress], None]) -> None:
        self.folder, self.header, self.coder = folder, header, coder
        self.progress = Progress()
        # What store.json says of shards, less those that are encoded again because their file is gone.
        self._listed = {entry["file"]: entry for entry in header["shards"]}
        self._report, self._begun = report, time.monotonic()

    def __call__(self, found: Found, limits: Limits) -> Progress:
        plans = Plans(self.folder)
        done = {each.id for shard in plans.done() for each in shard.inputs}
        plans.extend(found.inputs, limits)
        missing = plans.missing()
        for shard in missing:
            self._listed.pop(shard.file, None)
        todo = plans.unfinished()
        ids = {each.id for chain in todo for shard in chain for each in shard.inputs}
        self.progress.planned, self.progress.skipped = len(ids), found.skipped
        self.progress.planned_bytes = sum(each.size for shard in missing for each in shard.inputs)
        failed = plans.failed()
        self.progress.already = len({each.id for each in found.inputs} & (done - ids - failed.keys()))
        self._tell()
        refreshed, took = time.monotonic(), 0.0
        for _ in self.coder.encode(todo, Output(plans, self._settle), self.progress):
            self._tell()
            began = time.monotonic()
            # The header grows with the store; it must not take more than a twentieth of a long run.
            if began - refreshed > max(HEADER_EVERY, 20 * took):
                self._refresh(plans)
                refreshed = time.monotonic()
                took = refreshed - began
        if plans.shards:
            self._refresh(plans)
        self.progress.without_codes = int(self.header["failed"])
        self._tell()
        return self.progress

    def _settle(self, columns: Sequence[Column]) -> str:
        """What the columns mean must be on disk before the first shard that has them."""
        if not self.header["columns"]:
            self.header["columns"] = [column.to_json() for column in columns]
            write_header(self.folder, self.header)
        return meaning(self.header)

    def _refresh(self, plans: Plans) -> None:
        """Brings store.json and errors.jsonl up to date with the shard files."""
        entries = []
        for shard in plans.readable():
            if shard.file not in self._listed:
                path = self.folder / SHARDS / shard.file
                self._listed[shard.file] = {"file": shard.file, **rows_of(path), "sha256": file_hash(path)}
            entries.append(self._listed[shard.file])
        failed = plans.failed()
        self.header.update(
            shards=entries,
            samples=sum(entry["samples"] for entry in entries),
            failed=len(failed),
            complete=not plans.unfinished(),
        )
        lines = [json.dumps(failed[name], ensure_ascii=False) for name in sorted(failed)]
        write_atomic(self.folder / ERRORS, "".join(f"{line}\n" for line in lines).encode())
        write_header(self.folder, self.header)

    def _tell(self) -> None:
        self.progress.seconds = time.monotonic() - self._begun
        self._report(self.progress)


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    write_atomic(folder / HEADER, (json.dumps(header, indent=1, ensure_ascii=False) + "\n").encode())
