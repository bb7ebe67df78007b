"""One file as rows of ids: read in blocks, encoded as a stream, cut to rows; from its start or from any row on.

    file ──blocks──► encoder ──ids──► cut after every max_row ids ──► row, row, ..., a shorter last one

After each row `part` and `mark` say where the next begins, so that another reader can go on there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from smalti.errors import InputError, SmaltiError
from smalti.store.coder import describe
from smalti.store.shard import Span
from smalti.text.base import IdArray, TextTokenizer
from smalti.text.io import BLOCK, ByteFile
from smalti.tokens import code_dtype

Told = Callable[[int, float], None]


class UnreadableError(InputError):
    """A file that can't be encoded, and why."""


@dataclass(frozen=True)
class Mark:
    """Where a row begins: an encoder that starts at this byte gives so many ids before it."""

    byte: int = 0
    skip: int = 0


class RowReader:
    """An iterator over the rows of one file, in the smallest unsigned type; `contextlib.closing` closes it.

    Args:
        tokenizer: of text or executables.
        path: of the file.
        max_row: ids of every row but the last. An empty file has one row without ids.
        after: what a finished shard says of the rows before; None for all rows.
        block: bytes read at once; marks are no finer.
        told: called after every block with the bytes that were encoded and the seconds that it took.

    Attributes:
        part: number of the next row.
        mark: where it begins.
        state: of the file, when it was opened.

    Raises:
        UnreadableError: if the file can't be opened, read or encoded, or changes meanwhile.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        path: Path,
        max_row: int,
        *,
        after: Span | None = None,
        block: int = BLOCK,
        told: Told | None = None,
    ) -> None:
        self._tokenizer, self._max_row, self._block, self._told = tokenizer, max_row, block, told
        self._vocab, self._dtype = tokenizer.vocab[0], code_dtype(tokenizer.vocab)
        self.part = 0 if after is None else after.next
        self.mark = Mark() if after is None else Mark(after.byte, after.skip)
        with _unreadable():
            self._file = ByteFile(path)
        self.state = self._file.state
        self._rows = self._cut()

    def close(self) -> None:
        self._file.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> IdArray:
        with _unreadable():
            return next(self._rows)

    def reached(self, byte: int | None) -> bool:
        """Whether the next row begins at that byte or later; None is the end of the file."""
        return byte is not None and self.mark.byte >= byte

    def check(self) -> None:
        """Raises UnreadableError if the file changed since it was opened."""
        with _unreadable():
            self._file.check()

    def _cut(self) -> Iterator[IdArray]:
        skip, given = self.mark.skip, 0
        held: list[IdArray] = []
        room = self._max_row
        for ids, before, lead, after in self._encoded():
            at = min(max(skip - given, 0), len(ids))
            given += len(ids)
            while len(ids) - at >= room:
                held.append(ids[at : at + room])
                at += room
                self.part += 1
                self.mark = Mark(after, 0) if at == len(ids) and after > before else Mark(before, lead + at)
                yield np.concatenate(held)
                held, room = [], self._max_row
            held.append(ids[at:])
            room -= len(ids) - at
        if given < skip:
            raise InputError(f"{skip} ids were expected before row {self.part}, {given} came: it is another file")
        if room < self._max_row or self.part == 0:
            self.part += 1
            self.mark = Mark(self.state.size, 0)
            yield np.concatenate(held)

    def _encoded(self) -> Iterator[tuple[IdArray, int, int, int]]:
        """From the mark on: ids, where an encoder begins that gives them after so many others, where one does next."""
        start, lead = self.mark.byte, 0
        if start == self.state.size and self.part:
            return  # an encoder that gets nothing might say so in an id
        encoder = self._tokenizer.stream_encoder()
        for block in self._file.blocks(start, self._block):
            before = start + encoder.position
            ids = self._timed(len(block), encoder.push, block)
            after = start + encoder.position
            yield ids, before, lead, after
            lead = 0 if after > before else lead + len(ids)
        before = start + encoder.position
        ids = self._timed(0, encoder.finish)
        self._file.check()
        yield ids, before, lead, self.state.size

    def _timed(self, size: int, encode: Callable[..., IdArray], *block: bytes) -> IdArray:
        """Ids that an encoder gives, checked; `told` hears what it took."""
        began = time.monotonic()
        ids = encode(*block)
        if self._told is not None:
            self._told(size, time.monotonic() - began)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self._vocab:
            raise InputError(f"the tokenizer gave ids outside its vocabulary of {self._vocab}")
        return ids.astype(self._dtype, copy=False)


@contextmanager
def _unreadable() -> Iterator[None]:
    try:
        yield
    except (SmaltiError, OSError, MemoryError) as error:
        raise UnreadableError(describe(error)) from error
