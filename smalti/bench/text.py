"""What a tokenizer of bytes makes of files or of a token store: how many tokens, which ones, how evenly used.

files ──ids, never kept──► TokenCounts ──► bytes per token, vocabulary use, entropy, frequent and long tokens
store ──ids──────────────►
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smalti.errors import InputError, StoreError
from smalti.store.plan import Input
from smalti.store.reader import TokenStore
from smalti.store.rows import RowReader, UnreadableError
from smalti.text.base import IdArray, TextTokenizer
from smalti.text.io import BLOCK
from smalti.tokenizer import Tokenizer

CHUNK = 2**20  # ids that are looked at at once
DENSE = 2**24  # larger vocabularies are counted by the ids that occur
SHOWN = 20  # of the most frequent tokens

Report = Callable[[int], None]  # called with the bytes of a file, or 1 of a store's samples, when it is done
TokenString = bytes | None  # what an id stands for, if it does so alone


@dataclass(frozen=True)
class Counted:
    """One sample: its id, its bytes, its tokens; or what was wrong with it."""

    id: str
    bytes: int = 0
    tokens: int = 0
    error: str | None = None


def count_files(tokenizer: TextTokenizer, inputs: Sequence[Input], report: Report) -> Iterator[Counted]:
    """Counts the tokens of files, one after another, in the memory of a block."""
    for each in inputs:
        try:
            if each.size <= BLOCK:
                data = each.path.read_bytes()
                yield Counted(each.id, len(data), tokenizer.count(data))
            else:
                with closing(RowReader(tokenizer, each.path, CHUNK)) as rows:
                    yield Counted(each.id, rows.state.size, sum(len(ids) for ids in rows))
        except (InputError, OSError) as error:
            yield Counted(each.id, error=str(error))
        report(each.size)


class TokenCounts:
    """How often each token occurs.

    Args:
        tokenizer: whose tokens they are.

    Attributes:
        samples, bytes, tokens: seen so far.
        failed: (id, reason) of samples that could not be read.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.samples = self.bytes = self.tokens = 0
        self.failed: list[tuple[str, str]] = []
        (size,) = tokenizer.vocab
        self._dense = np.zeros(size, np.int64) if size <= DENSE else None
        self._sparse: Counter[int] = Counter()

    def add(self, ids: IdArray) -> None:
        """Counts ids."""
        self.tokens += len(ids)
        if self._dense is not None:
            self._dense += np.bincount(ids.astype(np.int64), minlength=len(self._dense))
        else:
            values, counts = np.unique(ids, return_counts=True)
            self._sparse.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def add_files(self, inputs: Sequence[Input], report: Report) -> None:
        """Counts the tokens of files; their bytes are those of the files."""
        for each in inputs:
            try:
                with closing(RowReader(self.tokenizer, each.path, CHUNK)) as rows:
                    for ids in rows:
                        self.add(ids)
                    self.bytes += rows.state.size
                self.samples += 1
            except UnreadableError as error:
                self.failed.append((each.id, str(error)))
            report(each.size)

    def add_store(self, store: TokenStore, report: Report) -> None:
        """Counts the tokens of a store; their bytes are those that they decode to.

        Raises:
            StoreError: if the store was encoded by another tokenizer.
        """
        if store.header["codes_hash"] != self.tokenizer.codes_hash:
            raise StoreError(f"{store.folder} was encoded by another tokenizer ({store.header['tokenizer']})")
        for name in store.ids:
            decoder = self.tokenizer.stream_decoder()
            for codes in store.codes(name):
                for start in range(0, len(codes), CHUNK):
                    ids = codes[start : start + CHUNK, 0]
                    self.add(ids)
                    self.bytes += len(decoder.push(ids))
            self.bytes += len(decoder.finish())
            self.samples += 1
            report(1)

    def counts(self) -> tuple[IdArray, IdArray]:
        """The ids that occur, the most frequent first (of equals the smaller), and how often each does."""
        if self._dense is not None:
            ids = np.flatnonzero(self._dense)
            counts = self._dense[ids]
        else:
            ids = np.array(sorted(self._sparse), np.int64)
            counts = np.array([self._sparse[number] for number in ids.tolist()], np.int64)
        order = np.argsort(-counts, kind="stable")
        return ids[order], counts[order]

    def summary(self, shown: int = SHOWN) -> TextStatistics:
        """What the counts say."""
        ids, counts = self.counts()
        shares = counts / max(self.tokens, 1)
        entropy = abs(float((shares * np.log2(shares)).sum()))  # of one token alone 0, not -0
        strings = [self.tokenizer.token_bytes(number) for number in ids.tolist()]
        lengths: Counter[int] = Counter()
        for string, count in zip(strings, counts.tolist(), strict=True):
            if string is not None:
                lengths[len(string)] += count
        unknown = self.tokenizer.unknown
        return TextStatistics(
            samples=self.samples,
            failed=self.failed,
            bytes=self.bytes,
            tokens=self.tokens,
            vocabulary=self.tokenizer.vocab[0],
            used=len(ids),
            entropy=entropy,
            unknown=None if unknown is None else int(counts[ids == unknown].sum()),
            lossless=self.tokenizer.lossless,
            frequent=list(zip(ids.tolist(), counts.tolist(), strings, strict=True))[:shown],
            lengths=dict(sorted(lengths.items())),
        )


@dataclass(frozen=True)
class TextStatistics:
    """What a tokenizer makes of a corpus.

    Args:
        samples: that were read.
        failed: (id, reason) of those that could not be.
        bytes: of the samples.
        tokens: that they became.
        vocabulary: ids that there are.
        used: of those, ids that occur.
        entropy: of a token drawn from the corpus, in bits: what a code that knows frequencies and no context needs.
        unknown: how many tokens stand for what has no token; None where nothing is unknown.
        lossless: what the tokenizer says of itself.
        frequent: (id, count, bytes), the most frequent first; no bytes where an id alone stands for none.
        lengths: bytes of a token -> how many tokens of the corpus are that long, those that have bytes of their own.
    """

    samples: int
    failed: list[tuple[str, str]] = field(repr=False)
    bytes: int
    tokens: int
    vocabulary: int
    used: int
    entropy: float
    unknown: int | None
    lossless: bool
    frequent: list[tuple[int, int, TokenString]] = field(repr=False)
    lengths: Mapping[int, int] = field(repr=False)

    @property
    def bytes_per_token(self) -> float:
        """NaN where there are no tokens."""
        return self.bytes / self.tokens if self.tokens else float("nan")

    @property
    def entropy_per_byte(self) -> float:
        """Bits; NaN where there are no bytes."""
        return self.entropy * self.tokens / self.bytes if self.bytes else float("nan")

    def data(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        share = 1 / max(self.tokens, 1)
        return {
            "samples": self.samples,
            "failed": [{"id": name, "error": error} for name, error in self.failed],
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bytes_per_token": self.bytes_per_token if self.tokens else None,
            "vocabulary": self.vocabulary,
            "used": self.used,
            "used_share": self.used / self.vocabulary,
            "entropy_bits_per_token": self.entropy,
            "entropy_bits_per_byte": self.entropy_per_byte if self.bytes else None,
            "unknown_share": None if self.unknown is None else self.unknown * share,
            "lossless": self.lossless,
            "frequent": [
                {
                    "id": number,
                    "count": count,
                    "share": count * share,
                    "text": None if string is None else printable(string),
                    "hex": None if string is None else string.hex(),
                }
                for number, count, string in self.frequent
            ],
            "token_lengths": {str(length): count * share for length, count in self.lengths.items()},
        }


def printable(data: bytes) -> str:
    """Bytes as UTF-8 with what can't be shown escaped."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_text(tokenizer: Tokenizer, name: str) -> TextTokenizer:
    """A tokenizer of bytes.

    Raises:
        InputError: if it is one of something else.
    """
    if not isinstance(tokenizer, TextTokenizer):
        raise InputError(f"{name} tokenizes {tokenizer.modality}, not text: `smalti bench` measures it")
    return tokenizer


def is_store(path: Path) -> bool:
    """Whether a path is a token store rather than files."""
    return (path / "store.json").is_file()
