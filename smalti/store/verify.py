"""Whether a token store is whole, and whether its codes are those that the tokenizer gives today."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from smalti.errors import SmaltiError, StoreError
from smalti.store.encode import decoded, threads
from smalti.store.format import (
    ERRORS,
    HEADER,
    SHARDS,
    Recipe,
    file_hash,
    from_row,
    meaning,
    read_shard,
    shard_errors,
    shard_meaning,
)
from smalti.store.plan import Input, Plans, Shard
from smalti.store.reader import TokenStore
from smalti.tokenizer import NeuralTokenizer
from smalti.tokens import Tokens


@dataclass
class Report:
    """What verifying found.

    Args:
        samples: rows whose codes were read and are in range.
        shards: shard files that were checked.
        unfinished: planned shards that are not encoded yet, or not listed in store.json yet.
        problems: a line per thing that is wrong, naming the shard.
    """

    samples: int = 0
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
    store = TokenStore(folder)
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
    seen: dict[str, str] = {}
    for name in sorted(on_disk):
        problems = list(_check_shard(store, name, listed.get(name), planned.get(name), seen, report))
        report.problems += [f"shard {name}: {problem}" for problem in problems]
        report.shards += 1
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
    store: TokenStore,
    name: str,
    listed: dict[str, object] | None,
    planned: Shard | None,
    seen: dict[str, str],
    report: Report,
) -> Iterator[str]:
    path = store.folder / SHARDS / name
    if listed is not None and file_hash(path) != listed["sha256"]:
        yield "its hash is not the recorded one: it was damaged or replaced"
        return
    try:
        table, failed = read_shard(path), shard_errors(path)
    except StoreError as error:
        yield str(error)
        return
    if shard_meaning(path) != meaning(store.header):
        yield f"{HEADER} says other columns, codes hash or recipe than when it was written"
    ids = table.column("id").to_pylist()
    if listed is not None and listed["samples"] != len(ids):
        yield f"{len(ids)} samples, {HEADER} says {listed['samples']}"
    for each in ids:
        if each in seen:
            yield f"the sample {each!r} is also in shard {seen[each]}"
        seen[each] = name
    if planned is not None:
        wanted = {each.id for each in planned.inputs}
        accounted = [*ids, *(error["id"] for error in failed)]
        if set(accounted) != wanted or len(accounted) != len(wanted):
            yield "its samples and failures are not the planned ones"
    for row in range(len(ids)):
        try:
            from_row(table, row, store.columns)
        except (SmaltiError, KeyError, ValueError) as error:
            yield f"sample {ids[row]!r}: {error}"
            continue
        report.samples += 1


def encode_again(
    folder: str | Path, tokenizer: NeuralTokenizer, count: int, *, seed: int = 0, workers: int = 0
) -> Again:
    """Encodes some samples anew from their files, under the recipe of the store, and counts differing codes.

    Args:
        folder: of the store.
        tokenizer: the one that wrote it, on any device.
        count: how many samples, drawn at random.
        seed: of the draw.
        workers: processes that decode files.

    Raises:
        StoreError: if the tokenizer is another one.
    """
    store = TokenStore(folder)
    if store.header["codes_hash"] != tokenizer.codes_hash:
        raise StoreError(f"{folder} was encoded by another tokenizer ({store.header['tokenizer']}): codes can't match")
    recipe = Recipe(**store.header["recipe"])
    sources = {each.id: each for shard in Plans(store.folder).shards for each in shard.inputs}
    chosen = random.Random(seed).sample(range(len(store)), min(count, len(store)))
    inputs = [
        sources.get(store.id(number), Input(store.id(number), Path("no plan names this file"))) for number in chosen
    ]
    result = Again()
    with threads(recipe.threads):
        for index, sample in decoded(inputs, tokenizer.modality, recipe.size, workers):
            if isinstance(sample, str):
                result.unreadable.append(f"{inputs[index].id}: {sample}")
                continue
            fresh = tokenizer.encode(sample.tensor()[None], **sample.conditions).to("cpu")
            total, differing = _differences(fresh, store[chosen[index]])
            result.samples, result.codes, result.differing = (
                result.samples + 1,
                result.codes + total,
                result.differing + differing,
            )
    return result


def _differences(fresh: Tokens, stored: Tokens) -> tuple[int, int]:
    total = differing = 0
    for name, stream in fresh.streams.items():
        other = stored.streams[name].codes
        total += stream.codes.numel()
        same_shape = other.shape == stream.codes.shape
        differing += int((other != stream.codes).sum()) if same_shape else stream.codes.numel()
    return total, differing
