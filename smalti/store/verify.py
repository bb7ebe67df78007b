"""Whether a token store is whole, and whether its codes are those that the tokenizer gives today."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from smalti.errors import SmaltiError, StoreError
from smalti.store.format import ERRORS, HEADER, ROWS_IN_PARTS, SHARDS, meaning
from smalti.store.kinds import open_coder
from smalti.store.plan import Input, Plans, Shard
from smalti.store.reader import ONE_PASS, TokenStore
from smalti.store.shard import file_hash, read_shard, shard_errors, shard_meaning, shard_span
from smalti.store.table import from_row
from smalti.tokenizer import Tokenizer


@dataclass
class Report:
    """What verifying found.

    Args:
        samples: whose codes were read and are in range.
        rows: that they take.
        shards: shard files that were checked.
        unfinished: planned shards that are not encoded yet, or not listed in store.json yet.
        problems: a line per thing that is wrong, naming the shard.
    """

    samples: int = 0
    rows: int = 0
    shards: int = 0
    unfinished: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.problems and not self.unfinished


@dataclass
class Again:
    """What encoding samples anew found."""

    samples: int = 0
    codes: int = 0
    differing: int = 0
    unreadable: list[str] = field(default_factory=list)


def verify(folder: str | Path) -> Report:
    """Reads every byte of a store and checks it against its header, its plan and its own checksums.

    Raises:
        StoreError: if the folder is no store.
    """
    store = TokenStore(folder, cache=ONE_PASS)
    report = Report()
    plans = Plans(store.folder)
    planned = {shard.file: shard for shard in plans.shards}
    listed = {str(entry["file"]): entry for entry in store.header["shards"]}
    on_disk = {path.name for path in (store.folder / SHARDS).glob("*.parquet")}
    report.problems += [f"shard {name} is listed in {HEADER} but missing" for name in sorted(listed.keys() - on_disk)]
    report.problems += [f"shard {name} is in no plan" for name in sorted(on_disk - planned.keys())]
    unlisted = (on_disk & planned.keys()) - listed.keys()
    if store.header["complete"]:
        report.problems += [f"shard {name} is not listed in {HEADER}" for name in sorted(unlisted)]
    elif not report.problems:
        # Killed before its last word: the same command again brings the header up to date.
        report.unfinished = len(plans.missing()) + len(unlisted) or 1
    rows = _Rows(store)
    for name in sorted(on_disk, key=lambda name: (len(name), name)):
        problems = list(_check_shard(store, name, listed.get(name), planned.get(name), rows))
        report.problems += [f"shard {name}: {problem}" for problem in problems]
        report.shards += 1
    report.samples, report.rows = rows.samples, rows.rows
    if store.header["complete"] and store.header["samples"] != report.samples and not report.problems:
        report.problems.append(f"{HEADER} counts {store.header['samples']} samples, the shards hold {report.samples}")
    if store.header["complete"] and not report.problems:
        report.problems += _check_errors(store, plans)
    return report


def _check_errors(store: TokenStore, plans: Plans) -> Iterator[str]:
    failed = plans.failed()
    if store.header["failed"] != len(failed):
        yield f"{HEADER} counts {store.header['failed']} failed inputs, the shards {len(failed)}"
    try:
        lines = [json.loads(line) for line in (store.folder / ERRORS).read_text().splitlines()]
    except (OSError, ValueError) as error:
        yield f"{ERRORS} can't be read: {error}"
        return
    if lines != [failed[name] for name in sorted(failed)]:
        yield f"{ERRORS} does not say what the shards say"


def _check_shard(
    store: TokenStore, name: str, listed: dict[str, object] | None, planned: Shard | None, rows: _Rows
) -> Iterator[str]:
    path = store.folder / SHARDS / name
    if listed is not None and file_hash(path) != listed["sha256"]:
        yield "its hash is not the recorded one: it was damaged or replaced"
        rows.skip()
        return
    try:
        table, failed, span = read_shard(path), shard_errors(path), shard_span(path)
    except StoreError as error:
        yield str(error)
        rows.skip()
        return
    if shard_meaning(path) != meaning(store.header):
        yield f"{HEADER} says other columns, codes hash or recipe than when it was written"
    ids = table.column("id").to_pylist()
    if listed is not None and listed.get("rows", listed["samples"]) != len(ids):
        yield f"{len(ids)} rows, {HEADER} says {listed.get('rows', listed['samples'])}"
    if planned is not None:
        wanted = {each.id for each in planned.inputs}
        accounted = [*dict.fromkeys(ids), *(error["id"] for error in failed)]
        if set(accounted) != wanted or len(accounted) != len(wanted):
            yield "its samples and failures are not the planned ones"
        if (planned.piece is None) != (span is None):
            yield "it does not say which piece of its input it holds"
    yield from rows.check(name, table)


class _Rows:
    """Checks the rows of shard after shard: codes, samples that are there once, parts in order."""

    def __init__(self, store: TokenStore) -> None:
        self.columns, self._max_row = store.columns, store.header["recipe"].get("max_row")
        self._parted = store.header["format"] >= ROWS_IN_PARTS
        self._began: dict[str, str] = {}  # sample -> the shard of its first row
        self._last: tuple[str, int, int] | None = None  # sample, part and tokens of the row before, if they are known
        self.samples = self.rows = 0

    def skip(self) -> None:
        """A shard could not be read: what follows can't be held against it."""
        self._last = None

    def check(self, shard: str, table: pa.Table) -> Iterator[str]:
        names = table.column("id").to_pylist()
        if self._parted and "part" not in table.column_names:
            yield "it has no column 'part'"
            return
        parts = table.column("part").to_pylist() if self._parted else [0] * len(names)
        for row, (name, part) in enumerate(zip(names, parts, strict=True)):
            yield from self._place(shard, name, part)
            try:
                tokens = from_row(table, row, self.columns)
            except (SmaltiError, KeyError, ValueError) as error:
                yield f"sample {name!r}: {error}"
                self.skip()
                continue
            self._last = (name, part, next(iter(tokens.streams.values())).spec.size)
            self.rows += 1
            self.samples += part == 0

    def _place(self, shard: str, name: str, part: int) -> Iterator[str]:
        if part == 0:
            if name in self._began:
                yield f"the sample {name!r} is also in shard {self._began[name]}"
            self._began[name] = shard
        elif self._last is not None and self._last != (name, part - 1, self._max_row):
            yield f"row {part} of the sample {name!r} does not follow a full row {part - 1}"


def encode_again(folder: str | Path, tokenizer: Tokenizer, count: int, *, seed: int = 0, workers: int = 0) -> Again:
    """Encodes some samples anew from their files, under the recipe of the store, and counts differing codes.

    Args:
        folder: of the store.
        tokenizer: the one that wrote it, on any device.
        count: how many samples, drawn at random.
        seed: of the draw.
        workers: processes that decode pictures and sounds.

    Raises:
        StoreError: if the tokenizer is another one.
    """
    store = TokenStore(folder, cache=ONE_PASS)
    if store.header["codes_hash"] != tokenizer.codes_hash:
        raise StoreError(f"{folder} was encoded by another tokenizer ({store.header['tokenizer']}): codes can't match")
    coder = open_coder(tokenizer, store.header["recipe"], workers)
    sources = {each.id: each for shard in Plans(store.folder).shards for each in shard.inputs}
    names = random.Random(seed).sample(store.ids, min(count, len(store.ids)))
    inputs = [sources.get(name, Input(name, Path("no plan names this file"))) for name in names]
    result = Again()
    for name, found in zip(names, coder.repeat(store, inputs), strict=True):
        if isinstance(found, str):
            result.unreadable.append(f"{name}: {found}")
            continue
        result.samples += 1
        result.codes += found.codes
        result.differing += found.differing
    return result
