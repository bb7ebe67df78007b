"""Exact windows as a fixed table: 2^b strings of bytes, of which text is cut by the longest that fits.

A window's model sees nothing before the window, so for a small b all windows can be written down once. The word of a
string is its rank among all of them in the order of bytes; every prefix of a string is in the table too, and so is
every single byte. No model and no float is needed afterwards: the table is the truth.

    NextByte ──build, depth by depth──► Table ──longest match──► words            words ──look up──► bytes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from smalti.bpe.compiled import kernel
from smalti.bpe.trie import BASE, PARENT, ROOT, TOKEN, Trie, trie_of
from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.text.base import IdArray
from smalti.text.equal_info.model import BYTES, ByteArray, NextByte, WordArray
from smalti.text.equal_info.windows import Windows, check_bits
from smalti.text.equal_info.words import word_type

MAX_BITS = 20  # a million strings; more bits take the models that are asked while encoding
MAX_LENGTH = 255  # lengths are stored as uint8
ROWS = 4096  # windows whose weights are asked for at once


@dataclass(frozen=True, eq=False)
class Table:
    """All windows of b bits.

    Args:
        lengths: (2^b,), uint8: bytes of each word's string; word 0 is the empty one, which no text needs but the
            empty one.
        strings: (sum of lengths,), uint8: the bytes of all, in the order of their words, which is their own order.

    Raises:
        CheckpointError: if it is no such table.
    """

    lengths: ByteArray
    strings: ByteArray

    def __post_init__(self) -> None:
        size = len(self.lengths)
        if any(part.dtype != np.uint8 or part.ndim != 1 for part in (self.lengths, self.strings)):
            raise CheckpointError("a table consists of two rows of uint8: lengths and bytes")
        if size < 2 * BYTES or size & (size - 1) or size > 1 << MAX_BITS:
            raise CheckpointError(f"a table has 2^9 .. 2^{MAX_BITS} words, got {size}")
        if int(self.lengths.sum(dtype=np.int64)) != len(self.strings):
            raise CheckpointError("a table's lengths do not add up to its bytes")
        wrong = _misplaced(self.lengths, self.offsets, self.strings)
        if wrong >= 0:
            raise CheckpointError(
                f"word {wrong} of the table is not the next string, or a prefix of it or a single byte is missing"
            )

    @classmethod
    def build(cls, model: NextByte, bits: int) -> Self:
        """Writes down every window of a model.

        Raises:
            ConfigError: for more than 20 bits, or if a string has more than 255 bytes (give the model a `longest`).
        """
        check_bits(bits)
        if bits > MAX_BITS:
            raise ConfigError(f"tables have at most {MAX_BITS} bits, got {bits}: use a model while encoding")
        parents, last = np.zeros(1 << bits, np.int64), np.zeros(1 << bits, np.uint8)
        lengths = np.zeros(1 << bits, np.uint8)
        low, size, contexts = np.zeros(1, np.int64), np.full(1, 1 << bits), np.zeros((1, 0), np.uint8)
        while len(low):
            depth = contexts.shape[1] + 1
            if depth > MAX_LENGTH:
                raise ConfigError(f"a window has more than {MAX_LENGTH} bytes: give the model a smaller `longest`")
            found = [
                _children(model, low[start : start + ROWS], size[start : start + ROWS], contexts[start : start + ROWS])
                for start in range(0, len(low), ROWS)
            ]
            before, parent, byte, low, size = (np.concatenate(column) for column in zip(*found, strict=True))
            parents[low], last[low], lengths[low] = parent, byte, depth
            going_on = size > 1
            low, size = low[going_on], size[going_on]
            contexts = np.concatenate([before[going_on], byte[going_on, None]], axis=1)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return cls(lengths, _strings(parents, last, offsets))

    @property
    def bits(self) -> int:
        """Bits of a word."""
        return len(self.lengths).bit_length() - 1

    @cached_property
    def offsets(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(2^b + 1,): where each string begins."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    @cached_property
    def trie(self) -> Trie:
        """Of all strings but the empty one."""
        words = np.arange(1, len(self.lengths))
        return trie_of(self.strings.astype(np.int32), self.offsets, words, BYTES)

    @property
    def sha256(self) -> str:
        """Of the lengths and the bytes."""
        digest = hashlib.sha256(len(self.lengths).to_bytes(8, "big"))
        digest.update(self.lengths.tobytes())
        digest.update(self.strings.tobytes())
        return digest.hexdigest()

    def tensors(self) -> dict[str, ByteArray]:
        """`lengths` and `bytes`, as they are saved."""
        return {"lengths": self.lengths, "bytes": self.strings}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, ByteArray]) -> Self:
        """The table of what `tensors` gave.

        Raises:
            CheckpointError: if it is no table.
        """
        if tensors.keys() != {"lengths", "bytes"}:
            raise CheckpointError(f"a table has lengths and bytes, got {sorted(tensors)}")
        return cls(tensors["lengths"], tensors["bytes"])

    def string(self, word: int) -> bytes:
        """The bytes that a word stands for."""
        return self.strings[self.offsets[word] : self.offsets[word + 1]].tobytes()

    def encode(self, data: bytes | memoryview | ByteArray) -> IdArray:
        """The words of a whole text."""
        encoder = TableEncoder(self)
        return np.concatenate([encoder.push(data).words, encoder.finish().words])

    def decode(self, words: IdArray) -> bytes:
        """The text of some words: any words stand for one.

        Raises:
            InputError: if a word is out of range.
        """
        if len(words) and not 0 <= int(words.min()) <= int(words.max()) < len(self.lengths):
            raise InputError(f"words must be in 0..{len(self.lengths) - 1}, got {words.min()}..{words.max()}")
        return _look_up(self.lengths, self.offsets, self._padded, np.ascontiguousarray(words)).tobytes()

    def save(self, file: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
        """Writes a table file: safetensors with `lengths`, `bytes`, the SHA-256, the bits and further metadata.

        Args:
            file: where.
            metadata: how the table came about (recipe, SHA-256 of the corpus, the model's configuration).
        """
        facts = {"bits": self.bits, **(metadata or {}), "sha256": self.sha256}
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
        save_file(self.tensors(), file, metadata=texts)
        return Path(file)

    @classmethod
    def load(cls, file: str | Path) -> tuple[Self, dict[str, str]]:
        """Reads a table file; gives the table and its metadata.

        Raises:
            CheckpointError: if it can't be read, is no table, or is not what was written.
        """
        try:
            with safe_open(file, framework="numpy") as opened:
                metadata = dict(opened.metadata() or {})
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} can't be read: {error}") from None
        table = cls.from_tensors(tensors)
        if metadata.get("sha256") != table.sha256 or metadata.get("bits") != str(table.bits):
            raise CheckpointError(f"{file}: the table was changed after it was written (SHA-256)")
        return table, metadata

    @cached_property
    def _padded(self) -> ByteArray:
        """The strings, and eight zeros, so that eight bytes can be copied from anywhere."""
        return np.concatenate([self.strings, np.zeros(8, np.uint8)])


class TableEncoder:
    """Words of text that comes in blocks.

    Attributes:
        open: bytes of the window that has not ended yet.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._state = np.zeros(2, np.int64)  # the trie's node, and its depth

    @property
    def open(self) -> int:
        return int(self._state[1])

    def push(self, data: bytes | memoryview | ByteArray) -> Windows:
        """The windows that ended."""
        text = np.frombuffer(data, np.uint8)
        words = np.empty(len(text), word_type(self._table.bits))
        count = _walk(self._table.trie, self._state, text, words)
        return self._windows(words[:count].copy())

    def finish(self) -> Windows:
        """The last window, if one is open."""
        node, depth = self._state.tolist()
        self._state[:] = 0
        last = [self._table.trie[node, TOKEN]] if depth else []
        return self._windows(np.array(last, word_type(self._table.bits)))

    def _windows(self, words: WordArray) -> Windows:
        return Windows(words, self._table.lengths[words].astype(np.int64))


def _children(model: NextByte, low: Any, size: Any, contexts: ByteArray) -> tuple[Any, ...]:
    """The nodes below some nodes: contexts, words and last bytes of their parents, their own words and sizes."""
    weights = model.weights(contexts)
    below = np.concatenate([np.zeros((len(weights), 1), np.int64), np.cumsum(weights, axis=1)], axis=1)
    root = contexts.shape[1] == 0
    others = (size - 1 - (BYTES if root else 0))[:, None]
    ends = others * below // below[:, -1:]
    if root:
        ends += np.arange(BYTES + 1)
    sizes = np.diff(ends)
    row, byte = np.nonzero(sizes)
    return contexts[row], low[row], byte.astype(np.uint8), low[row] + 1 + ends[row, byte], sizes[row, byte]


@kernel
def _strings(parents: Any, last: Any, offsets: Any) -> Any:
    """Every word's string: that of its parent, which has a smaller word, and its own last byte."""
    strings = np.empty(offsets[-1], np.uint8)
    for word in range(1, parents.size):
        start, end = offsets[word], offsets[word + 1] - 1
        parent = offsets[parents[word]]
        for place in range(end - start):
            strings[start + place] = strings[parent + place]
        strings[end] = last[word]
    return strings


@kernel
def _misplaced(lengths: Any, offsets: Any, strings: Any) -> int:
    """The first word that is not in its place, or -1.

    In the order of bytes a string comes after its parent and that one's other children; so it must equal the string
    before it up to its own last byte, which must be larger there, or new.
    """
    if lengths[0] != 0:
        return 0
    singles = 0
    for word in range(1, lengths.size):
        length, before = np.int64(lengths[word]), np.int64(lengths[word - 1])
        start, previous = offsets[word], offsets[word - 1]
        if length == 0 or length > before + 1:
            return word
        for place in range(length - 1):
            if strings[start + place] != strings[previous + place]:
                return word
        if length <= before and strings[start + length - 1] <= strings[previous + length - 1]:
            return word
        singles += length == 1
    return -1 if singles == BYTES else lengths.size - 1


@kernel
def _walk(trie: Any, state: Any, text: Any, words: Any) -> int:
    """Goes on from `state`; gives the number of windows that ended. Every node of the trie is a word."""
    node, depth = state
    count = 0
    for byte in text:
        place = np.int64(trie[node, BASE]) + byte
        if trie[place, PARENT] != node:
            words[count] = trie[node, TOKEN]
            count += 1
            place, depth = np.int64(trie[ROOT, BASE]) + byte, np.int64(0)
        node = place
        depth += 1
    state[0], state[1] = node, depth
    return count


@kernel
def _look_up(lengths: Any, offsets: Any, padded: Any, words: Any) -> Any:
    size = np.int64(0)
    for word in words:
        size += lengths[word]
    out = np.empty(size + 8, np.uint8)
    place = np.int64(0)
    for word in words:
        start, length = offsets[word], np.int64(lengths[word])
        for index in range(8):  # a fixed number is quicker; what is too much is overwritten
            out[place + index] = padded[start + index]
        for index in range(8, length):
            out[place + index] = padded[start + index]
        place += length
    return out[:size]
