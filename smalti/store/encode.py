"""Bulk encoding: files into a token store, exactly once, whatever interrupts it.

    plan ──missing shards──► each: worker processes decode files ──► the model encodes ──► one shard file, atomically
                                    └ unreadable ones ──► errors, in the same file

A kill at any moment leaves finished shards and a plan; the same command goes on from there. One writer at a time.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

import smalti
from smalti.errors import SmaltiError, StoreError
from smalti.store.format import (
    ERRORS,
    FORMAT,
    HEADER,
    LOCK,
    PLANS,
    SHARDS,
    STAGED,
    Recipe,
    columns_of,
    file_hash,
    meaning,
    read_store_header,
    to_table,
    write_atomic,
    write_shard,
)
from smalti.store.media import Media, Sample, Square, media
from smalti.store.plan import Found, Input, Plans, Shard, find_inputs
from smalti.tokenizer import NeuralTokenizer
from smalti.tokens import Tokens

PR_SET_PDEATHSIG = 1  # of Linux's prctl
HEADER_EVERY = 5.0  # seconds between refreshes of store.json; shard files are the truth in between


@dataclass
class Progress:
    """How far a run is, for progress bars and summaries.

    Args:
        planned: inputs that this run has to do.
        encoded, failed: of those, so far.
        skipped: files passed over because of their suffix.
        already: inputs that earlier runs encoded.
        without_codes: inputs of the whole store that failed when they were last tried, known when the run ends.
        seconds: since the run began.
        model_seconds: of those, in the model.
    """

    planned: int = 0
    encoded: int = 0
    failed: int = 0
    skipped: int = 0
    already: int = 0
    without_codes: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0

    @property
    def model_share(self) -> float:
        """Share of the run's time that the model worked; the rest waited for files or wrote shards."""
        return self.model_seconds / self.seconds if self.seconds else 0.0


class TaskFiles(Dataset[tuple[int, Sample | str]]):
    """Decodes the files of a shard, in worker processes. What can't be decoded comes back as the reason."""

    def __init__(self, inputs: Sequence[Input], files: str, size: int | None) -> None:
        self.inputs, self.modality, self.size = inputs, files, size
        self._media: Media | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[int, Sample | str]:
        if self._media is None:
            self._media = media(self.modality)
        try:
            square = None if self.size is None else Square(self.size)
            return index, self._media.read(self.inputs[index].path, square)
        except (SmaltiError, OSError, MemoryError) as error:
            return index, describe(error)


def describe(error: BaseException) -> str:
    """One line that says what was wrong with an input."""
    return " ".join(str(error).split()) or type(error).__name__


def encode_paths(
    paths: Sequence[str | Path],
    store: str | Path,
    tokenizer: NeuralTokenizer,
    *,
    reference: str,
    recipe: Mapping[str, Any] | None = None,
    workers: int = 0,
    shard_size: int = 512,
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
        recipe: fields of `Recipe` that are asked for; the others are the store's own, or the defaults of a new one.
        workers: processes that decode files while the model runs (0: none).
        shard_size: samples per shard file.
        recursive: as in `find_inputs`.
        glob: as in `find_inputs`.
        report: called as work proceeds.

    Returns:
        What was done in this run.

    Raises:
        InputError: if paths do not exist, or two inputs have one id.
        StoreError: if another process writes to the store, it was begun with another tokenizer or recipe, or the disk
            is full; finished shards stay valid, and the same command goes on later.
    """
    folder = Path(store)
    found = find_inputs(paths, media(tokenizer.modality).suffixes, recursive=recursive, glob=glob)
    if not found.inputs and not (folder / HEADER).exists():
        return Progress(skipped=found.skipped)
    with writing(folder):
        header = _open_store(folder, tokenizer, reference, recipe or {})
        run = Run(folder, header, tokenizer, workers, report or (lambda progress: None))
        with threads(run.recipe.threads):
            return run(found, shard_size)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch's number of threads on a CPU; the former one comes back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def _open_store(folder: Path, tokenizer: NeuralTokenizer, reference: str, asked: Mapping[str, Any]) -> dict[str, Any]:
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
        "format": FORMAT,
        "smalti": smalti.__version__,
        "tokenizer": reference,
        "name": tokenizer.name,
        "modality": tokenizer.modality,
        "config": tokenizer.config.model_dump(mode="json"),
        "codes_hash": tokenizer.codes_hash,
        "recipe": Recipe(**{"threads": os.cpu_count() or 1, **asked}).model_dump(),
        "torch": torch.__version__,
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
        tokenizer: on its device.
        workers: processes that decode files.
        report: called as work proceeds.
    """

    def __init__(
        self,
        folder: Path,
        header: dict[str, Any],
        tokenizer: NeuralTokenizer,
        workers: int,
        report: Callable[[Progress], None],
    ) -> None:
        self.folder, self.header, self.tokenizer, self.workers = folder, header, tokenizer, workers
        self.recipe = Recipe(**header["recipe"])
        self.progress = Progress()
        # What store.json says of shards, less those that are encoded again because their file is gone.
        self._listed = {entry["file"]: entry for entry in header["shards"]}
        self._report, self._begun = report, time.monotonic()

    def __call__(self, found: Found, shard_size: int) -> Progress:
        plans = Plans(self.folder)
        done = {each.id for shard in plans.done() for each in shard.inputs}
        plans.extend(found.inputs, shard_size)
        todo = plans.missing()
        ids = {each.id for shard in todo for each in shard.inputs}
        self.progress.planned, self.progress.skipped = len(ids), found.skipped
        failed = plans.failed()
        self.progress.already = len({each.id for each in found.inputs} & (done - ids - failed.keys()))
        self._tell()
        refreshed, took = time.monotonic(), 0.0
        for shard in todo:
            self.encode_shard(shard)
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

    def encode_shard(self, shard: Shard) -> None:
        """Encodes the inputs of one shard and writes its file. It needs nothing that other shards did."""
        rows: dict[int, Tokens] = {}
        errors: dict[int, str] = {}
        for group in _groups(
            decoded(shard.inputs, self.tokenizer.modality, self.recipe.size, self.workers), self.recipe
        ):
            started = time.monotonic()
            results = self._encode([sample for _, sample in group])
            self.progress.model_seconds += time.monotonic() - started
            for (index, _), result in zip(group, results, strict=True):
                if isinstance(result, Tokens):
                    rows[index] = result
                    self.progress.encoded += 1
                else:
                    errors[index] = result
                    self.progress.failed += 1
            self._tell()
        failures = [{"id": shard.inputs[index].id, "error": errors[index]} for index in sorted(errors)]
        self._listed.pop(shard.file, None)
        if not rows:
            write_atomic(self.folder / SHARDS / shard.failed_file, json.dumps(failures, ensure_ascii=False).encode())
            return
        columns = columns_of(rows[min(rows)].spec)
        if not self.header["columns"]:
            # What the columns mean must be on disk before the first shard that has them.
            self.header["columns"] = [column.to_json() for column in columns]
            write_header(self.folder, self.header)
        order = sorted(rows)
        table = to_table([shard.inputs[index].id for index in order], [rows[index] for index in order], columns)
        write_shard(self.folder / SHARDS / shard.file, table, columns, failures, meaning(self.header))

    def _encode(self, samples: Sequence[Sample | str]) -> Sequence[Tokens | str]:
        """Tokens of samples of one extent, or why each has none."""
        good = [sample for sample in samples if isinstance(sample, Sample)]
        if len(good) != len(samples):
            return [sample for sample in samples if isinstance(sample, str)]  # failures come in groups of one
        try:
            batch = torch.stack([sample.tensor() for sample in good])
            filler = batch[-1:].expand(self.recipe.batch - len(good), *batch.shape[1:])  # one batch shape, one kernel
            tokens = self.tokenizer.encode(torch.cat([batch, filler]), **good[0].conditions).to("cpu")
        except (SmaltiError, MemoryError, torch.OutOfMemoryError) as error:
            return [describe(error)] * len(good)
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # how a CPU says that it is out of memory
                raise
            return ["the model ran out of memory on it"] * len(good)
        return [tokens[index] for index in range(len(good))]

    def _refresh(self, plans: Plans) -> None:
        """Brings store.json and errors.jsonl up to date with the shard files."""
        known = self._listed
        for shard in plans.done():
            path = plans.path(shard)
            if shard.file not in known and path is not None and path.name == shard.file:
                known[shard.file] = {"file": shard.file, "samples": rows_of(path), "sha256": file_hash(path)}
        failed = plans.failed()
        self.header.update(
            shards=[known[name] for name in sorted(known)],
            samples=sum(entry["samples"] for entry in known.values()),
            failed=len(failed),
            complete=not plans.missing(),
        )
        lines = [json.dumps(failed[name], ensure_ascii=False) for name in sorted(failed)]
        write_atomic(self.folder / ERRORS, "".join(f"{line}\n" for line in lines).encode())
        write_header(self.folder, self.header)

    def _tell(self) -> None:
        self.progress.seconds = time.monotonic() - self._begun
        self._report(self.progress)


def decoded(
    inputs: Sequence[Input], modality: str, size: int | None, workers: int
) -> Iterator[tuple[int, Sample | str]]:
    """Decoded files by number, in order. One that kills the process decoding it is reported like any bad file."""
    files = TaskFiles(inputs, modality, size)
    came = 0
    try:
        for item in _loader(files, range(len(files)), min(workers, len(files))):
            yield item
            came += 1
        return
    except RuntimeError as error:
        if workers == 0 or "worker" not in str(error):
            raise
    for index in range(came, len(files)):
        try:
            yield from _loader(files, [index], 1)
        except RuntimeError:
            yield index, "the process that decoded this file died"


def _loader(files: TaskFiles, order: Sequence[int], workers: int) -> DataLoader[tuple[int, Sample | str]]:
    begin = partial(die_with_parent, os.getpid())
    return DataLoader(
        files, batch_size=None, sampler=order, num_workers=workers, collate_fn=_unchanged, worker_init_fn=begin
    )


def die_with_parent(parent: int, worker: int) -> None:
    """Ends a worker process when its parent is killed; DataLoader's own watch misses kills in its first moments."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _unchanged(item: Any) -> Any:
    return item  # DataLoader's own conversion would turn arrays into shared-memory tensors


def _groups(items: Iterator[tuple[int, Sample | str]], recipe: Recipe) -> Iterator[list[tuple[int, Sample | str]]]:
    """Neighbours that can share a pass of the model: one extent, the same conditions, at most `batch` of them."""
    group: list[tuple[int, Sample | str]] = []
    for item in items:
        if group and (len(group) == recipe.batch or not _alike(group[-1][1], item[1])):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _alike(one: Sample | str, other: Sample | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return False
    return one.data.shape == other.data.shape and one.conditions == other.conditions


def rows_of(path: Path) -> int:
    """Number of samples in a shard file."""
    return int(pq.read_metadata(path).num_rows)


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    write_atomic(folder / HEADER, (json.dumps(header, indent=1, ensure_ascii=False) + "\n").encode())
