"""Files that are decoded whole and encoded by a model: pictures, sounds.

shard ──worker processes decode files──► samples ──neighbours of one extent──► the model ──► Tokens ──► one file
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from smalti.errors import ConfigError, SmaltiError
from smalti.store.coder import Coder, Output, Progress, Repeated, describe
from smalti.store.format import ONE_ROW_EACH, SampleRecipe, columns_of
from smalti.store.media import Media, Sample, Square, media
from smalti.store.places import output_names
from smalti.store.plan import Chain, Input, Limits, Shard
from smalti.store.reader import TokenStore
from smalti.store.table import to_table
from smalti.tokenizer import NeuralTokenizer
from smalti.tokens import Tokens

PR_SET_PDEATHSIG = 1  # of Linux's prctl


class SampleCoder(Coder):
    """Encodes files that are decoded whole.

    Args:
        tokenizer: on its device.
        recipe: the store's.
        workers: processes that decode files while the model runs (0: none).
    """

    recipe_type = SampleRecipe
    format = ONE_ROW_EACH
    limits = Limits(samples=512)
    in_bytes = False

    def __init__(self, tokenizer: NeuralTokenizer, recipe: SampleRecipe, workers: int | None) -> None:
        self.tokenizer, self.recipe, self.workers = tokenizer, recipe, 1 if workers is None else workers

    @classmethod
    def new_recipe(cls, name: str, asked: Mapping[str, Any]) -> SampleRecipe:
        recipe = super().new_recipe(name, {"threads": os.cpu_count() or 1, **asked})
        assert isinstance(recipe, SampleRecipe)
        return recipe

    @classmethod
    def versions(cls) -> Mapping[str, str]:
        return {"torch": torch.__version__}

    def encode(self, chains: Sequence[Chain], output: Output, progress: Progress) -> Iterator[None]:
        with threads(self.recipe.threads):
            for chain in chains:
                for shard in chain:
                    yield from self._encode_shard(shard, output, progress)

    def places(self, names: Sequence[str], suffix: str | None) -> Mapping[str, str]:
        formats = media(self.tokenizer.modality).formats
        ending = formats[0] if suffix is None else f".{suffix.lower().removeprefix('.')}"
        if ending not in formats:
            raise ConfigError(f"{self.tokenizer.modality} can be written as {', '.join(formats)}, not as {ending!r}")
        return output_names(names, ending)

    def decode(self, store: TokenStore, name: str, path: Path) -> None:
        tokens = store[name]
        sample = self.tokenizer.decode(tokens)[0]
        conditions = {key: int(value[0]) for key, value in tokens.side.items() if key == "sample_rate"}
        media(self.tokenizer.modality).write(path, sample.cpu(), conditions)

    def repeat(self, store: TokenStore, inputs: Sequence[Input]) -> Iterator[Repeated | str]:
        with threads(self.recipe.threads):
            for index, sample in decoded(inputs, self.tokenizer.modality, self.recipe.size, self.workers):
                if isinstance(sample, str):
                    yield sample
                else:
                    fresh = self.tokenizer.encode(sample.tensor()[None], **sample.conditions).to("cpu")
                    yield _differences(fresh, store[inputs[index].id])

    # --- inside ----------------------------------------------------------------------------------------------------

    def _encode_shard(self, shard: Shard, output: Output, progress: Progress) -> Iterator[None]:
        rows: dict[int, Tokens] = {}
        errors: dict[int, str] = {}
        files = decoded(shard.inputs, self.tokenizer.modality, self.recipe.size, self.workers)
        for group in _groups(files, self.recipe.batch):
            started = time.monotonic()
            results = self._encode([sample for _, sample in group])
            progress.model_seconds += time.monotonic() - started
            for (index, _), result in zip(group, results, strict=True):
                progress.bytes += shard.inputs[index].size
                if isinstance(result, Tokens):
                    rows[index] = result
                    progress.encoded += 1
                    progress.codes += sum(stream.codes.numel() for stream in result.streams.values())
                else:
                    errors[index] = result
                    progress.failed += 1
            yield
        failures = [{"id": shard.inputs[index].id, "error": errors[index]} for index in sorted(errors)]
        if not rows:
            output.without_rows(shard, failures)
            return
        order = sorted(rows)
        columns = columns_of(rows[order[0]].spec)
        table = to_table([shard.inputs[index].id for index in order], [rows[index] for index in order], columns)
        with output.writer(shard, columns) as writer:
            writer.write(table)
            writer.commit(failures)

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


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch's number of threads on a CPU; the former one comes back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- decoding files --------------------------------------------------------------------------------------------------


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


def _groups(items: Iterator[tuple[int, Sample | str]], batch: int) -> Iterator[list[tuple[int, Sample | str]]]:
    """Neighbours that can share a pass of the model: one extent, the same conditions, at most `batch` of them."""
    group: list[tuple[int, Sample | str]] = []
    for item in items:
        if group and (len(group) == batch or not _alike(group[-1][1], item[1])):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _alike(one: Sample | str, other: Sample | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return False
    return one.data.shape == other.data.shape and one.conditions == other.conditions


def _differences(fresh: Tokens, stored: Tokens) -> Repeated:
    found = Repeated()
    for name, stream in fresh.streams.items():
        other = stored.streams[name].codes
        found.codes += stream.codes.numel()
        same_shape = other.shape == stream.codes.shape
        found.differing += int((other != stream.codes).sum()) if same_shape else stream.codes.numel()
    return found
