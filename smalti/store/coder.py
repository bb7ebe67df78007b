"""Coder: how the files of one kind of tokenizer become shards, and rows become files again.

    chains of missing shards ──Coder.encode──► Output (shard files, failures)
    rows of a sample         ──Coder.decode──► a file

There are two kinds: `samples.py` for files that are decoded whole and encoded by a model, `bytefiles.py` for files that
are encoded as a stream of bytes. Everything else in the store is the same for both.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from smalti.errors import ConfigError
from smalti.store.format import SHARDS, Column, Recipe
from smalti.store.plan import Chain, Input, Limits, Plans, Shard
from smalti.store.reader import TokenStore
from smalti.store.shard import ShardWriter, write_atomic


@dataclass
class Progress:
    """How far a run is, for progress bars and summaries.

    Args:
        planned: inputs that this run has to do.
        encoded, failed: of those, so far.
        skipped: files passed over, because they are of no medium of this tokenizer.
        already: inputs that earlier runs encoded.
        without_codes: inputs of the whole store that failed when they were last tried, known when the run ends.
        planned_bytes: of the files that this run has to do, as far as the plan knows.
        bytes: of those, so far.
        codes: that came out.
        seconds: since the run began.
        model_seconds: of those, in the tokenizer (the mean of what works side by side).
    """

    planned: int = 0
    encoded: int = 0
    failed: int = 0
    skipped: int = 0
    already: int = 0
    without_codes: int = 0
    planned_bytes: int = 0
    bytes: int = 0
    codes: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0

    @property
    def model_share(self) -> float:
        """Share of the run's time that the tokenizer worked; the rest waited for files or wrote shards."""
        return self.model_seconds / self.seconds if self.seconds else 0.0


class Output:
    """Where a run's shards go.

    Args:
        plans: of the store.
        settle: called with the columns before the first shard has them; gives what `meaning` gives of the header.
    """

    def __init__(self, plans: Plans, settle: Callable[[Sequence[Column]], str]) -> None:
        self.plans, self.settle, self._folder = plans, settle, plans.folder / SHARDS

    def writer(self, shard: Shard, columns: Sequence[Column]) -> ShardWriter:
        """What writes the file of a shard that has rows."""
        return ShardWriter(self._folder / shard.file, columns, self.settle(columns))

    def without_rows(self, shard: Shard, failures: Sequence[Mapping[str, str]]) -> None:
        """Settles a shard that has no rows, and takes away those that it had."""
        write_atomic(self._folder / shard.failed_file, json.dumps(list(failures), ensure_ascii=False).encode())
        (self._folder / shard.file).unlink(missing_ok=True)
        self.plans.forget(shard)


@dataclass
class Repeated:
    """What encoding one sample anew found: how many codes it has, and how many of them are others than the stored."""

    codes: int = 0
    differing: int = 0


class Coder(ABC):
    """How files become rows, and rows files.

    Subclasses are made of (tokenizer, recipe, workers); workers is how many processes or threads work side by side, or
    None for what suits the kind.

    Attributes:
        recipe_type: of its stores.
        format: of the stores that it writes.
        limits: how much a shard takes, unless a caller says other.
        in_bytes: whether work grows with the bytes of files rather than with their number.
    """

    recipe_type: ClassVar[type[Recipe]]
    format: ClassVar[int]
    limits: ClassVar[Limits]
    in_bytes: ClassVar[bool]

    @classmethod
    def new_recipe(cls, name: str, asked: Mapping[str, Any]) -> Recipe:
        """The recipe of a new store.

        Raises:
            ConfigError: if something is asked for that means nothing to this kind, or has a wrong value.
        """
        unknown = sorted(asked.keys() - cls.recipe_type.model_fields.keys())
        if unknown:
            known = ", ".join(sorted(cls.recipe_type.model_fields))
            raise ConfigError(f"{', '.join(unknown)} means nothing to {name}; one can choose {known}")
        return cls.recipe_type(**asked)

    @classmethod
    def versions(cls) -> Mapping[str, str]:
        """Of libraries whose arithmetic decides codes, for store.json."""
        return {}

    @abstractmethod
    def encode(self, chains: Sequence[Chain], output: Output, progress: Progress) -> Iterator[None]:
        """Does all shards that are missing; yields whenever there is something to tell.

        A shard needs nothing that others did, but that of a long input needs to know where the one before it ended.

        Raises:
            StoreError: if the disk is full or can't be written.
        """

    @abstractmethod
    def places(self, names: Sequence[str], suffix: str | None) -> Mapping[str, str]:
        """The path of each sample's decoded file, below the folder of all of them; all different.

        Raises:
            ConfigError: for a suffix that can't be written.
        """

    @abstractmethod
    def decode(self, store: TokenStore, name: str, path: Path) -> None:
        """Writes one sample's file.

        Raises:
            SmaltiError, OSError: if the codes are wrong, or it can't be written.
        """

    @abstractmethod
    def repeat(self, store: TokenStore, inputs: Sequence[Input]) -> Iterator[Repeated | str]:
        """Encodes samples anew and compares, one after another; or why one can't be."""


def describe(error: BaseException) -> str:
    """One line that says what was wrong with an input."""
    return " ".join(str(error).split()) or type(error).__name__
