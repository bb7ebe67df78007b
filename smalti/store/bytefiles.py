"""Files that are encoded as a stream of bytes: text, executables.

    file ──blocks──► stream encoder ──ids──► rows of max_row ids ──row groups──► one file per shard

Nothing grows with a file: a thread holds a block, a row and a row group. Threads work on different chains. The shards
of one long input are done in order, by one encoder that goes on; after a kill, by a new one that starts where the last
finished shard says (`Span`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np

from smalti.errors import ConfigError
from smalti.store.coder import Coder, Output, Progress, Repeated
from smalti.store.format import ROWS_IN_PARTS, ByteRecipe, Column, columns_of
from smalti.store.places import own_names
from smalti.store.plan import Chain, Input, Limits, Shard
from smalti.store.reader import TokenStore
from smalti.store.rows import RowReader, Told, UnreadableError
from smalti.store.shard import ShardWriter, Span, shard_span
from smalti.store.table import ragged_table
from smalti.text.base import IdArray, TextTokenizer
from smalti.text.io import BLOCK, FileState, write_bytes
from smalti.tokens import DEFAULT_STREAM, StreamSpec

MOST_THREADS = 3  # unless more are asked for: each takes 100 to 150 MB, and all should stay below 1 GB
TICK = 0.2  # seconds between reports
GROUP_CODES, GROUP_ROWS = 2**20, 2**15  # a row group is written when it has so many
BLOCKS_PER_PIECE = 8  # at least: pieces end no closer to their byte than a block
DECODED_AT_ONCE = 2**16  # ids; how many bytes they are is known only afterwards


class ByteCoder(Coder):
    """Encodes files as streams of bytes.

    Args:
        tokenizer: of text or executables.
        recipe: the store's.
        workers: threads that encode different files; None for one per core, at most three.
    """

    recipe_type = ByteRecipe
    format = ROWS_IN_PARTS
    limits = Limits(samples=4096, bytes=2**25)
    in_bytes = True

    def __init__(self, tokenizer: TextTokenizer, recipe: ByteRecipe, workers: int | None) -> None:
        self.tokenizer, self.recipe = tokenizer, recipe
        self.workers = min(_cores(), MOST_THREADS) if workers is None else max(1, workers)
        (self.column,) = columns_of({DEFAULT_STREAM: StreamSpec((0,), tokenizer.vocab)})

    def encode(self, chains: Sequence[Chain], output: Output, progress: Progress) -> Iterator[None]:
        output.settle([self.column])  # once, before threads write
        stop = threading.Event()
        work = _ChainEncoder(self, output, progress, stop)
        waiting = iter(chains)
        with ThreadPoolExecutor(self.workers) as pool:
            jobs: set[Future[None]] = {pool.submit(work, chain) for chain in islice(waiting, 2 * self.workers)}
            try:
                while jobs:
                    done, jobs = wait(jobs, TICK, FIRST_COMPLETED)
                    for job in done:
                        job.result()
                    jobs |= {pool.submit(work, chain) for chain in islice(waiting, len(done))}
                    yield
            finally:
                stop.set()  # for the threads that are still at work when the run ends early

    def places(self, names: Sequence[str], suffix: str | None) -> Mapping[str, str]:
        if suffix is not None:
            raise ConfigError(f"{self.tokenizer.modality} is written under its own name, not as {suffix!r}")
        return own_names(names)

    def decode(self, store: TokenStore, name: str, path: Path) -> None:
        write_bytes(path, self._decoded(store, name))

    def repeat(self, store: TokenStore, inputs: Sequence[Input]) -> Iterator[Repeated | str]:
        for each in inputs:
            found = Repeated()
            stored = (codes[:, 0] for codes in store.codes(each.id))
            try:
                with closing(self.reader(each)) as rows:
                    for fresh, old in zip_longest(rows, stored, fillvalue=np.zeros(0, np.uint8)):
                        common = min(len(fresh), len(old))
                        found.codes += len(fresh)
                        found.differing += int((fresh[:common] != old[:common]).sum()) + abs(len(fresh) - len(old))
            except UnreadableError as error:
                yield str(error)
            else:
                yield found

    def reader(self, each: Input, *, after: Span | None = None, told: Told | None = None) -> RowReader:
        """The rows of a file; arguments as of `RowReader`.

        Raises:
            UnreadableError: if it can't be opened.
        """
        block = BLOCK // self.workers  # what encoders need grows with it
        if each.piece is not None:
            block = min(block, each.size // BLOCKS_PER_PIECE)
        return RowReader(self.tokenizer, each.path, self.recipe.max_row, after=after, block=max(1, block), told=told)

    def _decoded(self, store: TokenStore, name: str) -> Iterator[bytes]:
        decoder = self.tokenizer.stream_decoder()
        for codes in store.codes(name):
            for start in range(0, len(codes), DECODED_AT_ONCE):
                yield decoder.push(codes[start : start + DECODED_AT_ONCE, 0])
        yield decoder.finish()


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _StoppedError(Exception):
    """The run ends early, and this thread with it."""


class _ChainEncoder:
    """Does the missing shards of one chain, in a thread."""

    def __init__(self, coder: ByteCoder, output: Output, progress: Progress, stop: threading.Event) -> None:
        self.coder, self.output, self.progress, self.stop = coder, output, progress, stop
        self._lock = threading.Lock()  # of the progress, which all threads share

    def __call__(self, chain: Chain) -> None:
        if chain[0].piece is not None:
            self._long_input(chain)
        else:
            failures: dict[str, str] = {}
            while not self._inputs(chain[0], failures):
                pass

    def _inputs(self, shard: Shard, failures: dict[str, str]) -> bool:
        """Encodes all inputs but those that failed. False if one more did, of which rows had been written already."""
        with self._writer(shard) as writer:
            groups = _RowGroups(writer, self.coder.column)
            for each in shard.inputs:
                if each.id in failures:
                    continue
                try:
                    with closing(self.coder.reader(each, told=self._told)) as rows:
                        for ids in rows:
                            groups.add(each.id, rows.part - 1, ids)
                except UnreadableError as error:
                    failures[each.id] = str(error)
                    if not groups.forget(each.id):
                        return False
            groups.flush()
            listed = [{"id": each.id, "error": failures[each.id]} for each in shard.inputs if each.id in failures]
            if writer.rows:
                writer.commit(listed)
        if not writer.rows:
            self.output.without_rows(shard, listed)
        self._tell(encoded=len(shard.inputs) - len(failures), failed=len(failures), codes=groups.codes)
        return True

    def _long_input(self, chain: Chain) -> None:
        """Encodes the missing pieces of an input. If one fails, the input has no rows at all."""
        failed = next((error["error"] for shard in chain for error in self.output.plans.errors(shard)), None)
        try:
            if failed is None:
                self._pieces(chain)
        except UnreadableError as error:
            failed = str(error)
        if failed is not None:
            for shard in chain:
                self.output.without_rows(shard, [{"id": chain[0].inputs[0].id, "error": failed}])
        self._tell(encoded=int(failed is None), failed=int(failed is not None))

    def _pieces(self, chain: Chain) -> None:
        spans = [self._span(shard) for shard in chain]
        stops = _next_firsts(spans)
        rows: RowReader | None = None
        try:
            for index, shard in enumerate(chain):
                if self.output.plans.path(shard) is not None:
                    if rows is not None:
                        rows.close()
                    rows = None
                    continue
                rows = rows or self._resumed(chain, spans[:index], spans)
                followed = index + 1 < len(chain) and self.output.plans.path(chain[index + 1]) is not None
                spans[index] = self._piece(shard, rows, stops[index], followed)
        finally:
            if rows is not None:
                rows.close()

    def _piece(self, shard: Shard, rows: RowReader, stop: int | None, followed: bool) -> Span | None:
        """Writes the shard of one piece.

        Args:
            shard: of the piece.
            rows: of the input, from where the piece begins.
            stop: the first row that is encoded already, in a later shard.
            followed: whether the next shard is done, so that all rows before `stop` belong to this one.
        """
        (each,), first = shard.inputs, rows.part
        until = None if followed or each.piece is None else each.piece.until
        with self._writer(shard) as writer:
            groups = _RowGroups(writer, self.coder.column)
            while rows.part != stop and not rows.reached(until) and (ids := next(rows, None)) is not None:
                groups.add(each.id, rows.part - 1, ids)
            if followed and stop is not None and rows.part != stop:
                raise UnreadableError(f"{rows.part} rows came before row {stop}, which is encoded already")
            groups.flush()
            rows.check()
            mark, state = rows.mark, rows.state
            span = Span(first, rows.part, mark.byte, mark.skip, state.size, state.mtime_ns)
            if writer.rows:
                writer.commit(span=span)
        self._tell(codes=groups.codes)
        if writer.rows:
            return span
        self.output.without_rows(shard, [])
        return None

    def _resumed(self, chain: Chain, before: Sequence[Span | None], spans: Sequence[Span | None]) -> RowReader:
        """The rows of a long input, from where the pieces before ended."""
        after = next((span for span in reversed(before) if span is not None), None)
        rows = self.coder.reader(chain[0].inputs[0], after=after, told=self._told)
        for span in spans:
            if span is not None and FileState(span.size, span.mtime_ns) != rows.state:
                rows.close()
                raise UnreadableError(
                    f"the file changed since its first shards were encoded: {span.size} bytes written at "
                    f"{span.mtime_ns} ns then, {rows.state.size} at {rows.state.mtime_ns} ns now"
                )
        return rows

    def _span(self, shard: Shard) -> Span | None:
        """Of a shard that is done and has rows."""
        path = self.output.plans.path(shard)
        return shard_span(path) if path is not None and path.name == shard.file else None

    def _writer(self, shard: Shard) -> ShardWriter:
        return self.output.writer(shard, [self.coder.column])

    def _told(self, count: int, seconds: float) -> None:
        if self.stop.is_set():
            raise _StoppedError
        self._tell(read=count, seconds=seconds / self.coder.workers)

    def _tell(self, *, encoded: int = 0, failed: int = 0, read: int = 0, codes: int = 0, seconds: float = 0.0) -> None:
        with self._lock:
            self.progress.encoded += encoded
            self.progress.failed += failed
            self.progress.bytes += read
            self.progress.codes += codes
            self.progress.model_seconds += seconds


def _next_firsts(spans: Sequence[Span | None]) -> list[int | None]:
    """For every piece the first row that a later one has."""
    firsts: list[int | None] = [None]
    for span in reversed(spans):
        firsts.append(firsts[-1] if span is None else span.first)
    return firsts[:0:-1]


class _RowGroups:
    """Gathers rows until they are enough for a row group."""

    def __init__(self, writer: ShardWriter, column: Column) -> None:
        self._writer, self._column = writer, column
        self._names: list[str] = []
        self._parts: list[int] = []
        self._rows: list[IdArray] = []
        self._pending = 0  # ids
        self._last = ""  # whose row was written last
        self.codes = 0

    def add(self, name: str, part: int, ids: IdArray) -> None:
        self._names.append(name)
        self._parts.append(part)
        self._rows.append(ids)
        self._pending += len(ids)
        self.codes += len(ids)
        if self._pending >= GROUP_CODES or len(self._rows) >= GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes what was gathered."""
        if not self._names:
            return
        self._writer.write(ragged_table(self._names, self._parts, [ids[:, None] for ids in self._rows], self._column))
        self._last, self._pending = self._names[-1], 0
        self._names, self._parts, self._rows = [], [], []

    def forget(self, name: str) -> bool:
        """Drops the rows of the sample that was added last; False if some are written already."""
        while self._names and self._names[-1] == name:
            self._names.pop()
            self._parts.pop()
            dropped = len(self._rows.pop())
            self._pending -= dropped
            self.codes -= dropped
        return self._last != name
