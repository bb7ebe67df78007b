"""Equal-information windows: text cut into pieces that each become one word of b bits.

    exact     a piece ends where its word is the only one left: bijective, so nothing but the words is stored
    greedy    the paper's idea over the reference coder: the longest piece whose terminated code has at most b bits,
              filled with zeros. A word does not say where its piece ends, so the lengths belong to it.

Exact windows in words: a piece owns an interval of words, at first all 2^b. The first word of an interval means "the
piece ends here"; the others are shared out among the 256 bytes that may follow, in proportion to the model's weights.
At the beginning every byte gets one word beforehand, so that no piece is empty. A piece ends when its next byte gets
none. Source: 3.3 of the sheet (ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from smalti.bpe.compiled import kernel
from smalti.errors import ConfigError
from smalti.text.equal_info.coder import PRECISION, ArithmeticEncoder
from smalti.text.equal_info.counts import CountModel, fill_weights, step
from smalti.text.equal_info.model import BYTES, ByteArray, Cursor, NextByte, WeightArray, WordArray
from smalti.text.equal_info.words import MAX_NATIVE, word_type

MIN_BITS = 9  # 2^8 words, one for each first byte, and one more than that for the empty piece
KEPT = 1 << 14  # nodes whose weights are kept, 34 MB
OUTPUT = 1 << 20  # bytes that the decoding kernel gives at once
LengthArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class Windows:
    """Pieces of text as words.

    Args:
        words: one per piece.
        lengths: the bytes of each piece.
    """

    words: WordArray
    lengths: LengthArray


def encode_windows(data: bytes | memoryview | ByteArray, model: NextByte, bits: int) -> Windows:
    """Exact windows of a whole text; `WindowEncoder` takes it in blocks."""
    encoder = window_encoder(model, bits)
    parts = [encoder.push(data), encoder.finish()]
    return Windows(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("words", "lengths")))


def decode_windows(words: WordArray, model: NextByte, bits: int) -> bytes:
    """The text of some words: any words stand for one."""
    if isinstance(model, CountModel) and bits <= MAX_NATIVE:
        return _decode_native(words, model, bits)
    return b"".join(_decode_word(int(word), model, bits) for word in words)


def greedy_windows(
    data: bytes | memoryview | ByteArray, model: NextByte, bits: int, precision: int = PRECISION
) -> Windows:
    """Greedy windows of a whole text.

    Raises:
        ConfigError: if a single byte's code does not fit into the window.
    """
    text = np.frombuffer(data, np.uint8).tolist()
    words: list[int] = []
    lengths: list[int] = []
    start = 0
    while start < len(text):
        word, length = _greedy_window(text, start, model.cursor(), bits, precision)
        words.append(word)
        lengths.append(length)
        start += length
    return Windows(np.array(words, word_type(bits)), np.array(lengths, np.int64))


def _greedy_window(text: list[int], start: int, cursor: Cursor, bits: int, precision: int) -> tuple[int, int]:
    """The word of the piece at `start`, and its length."""
    encoder, code = ArithmeticEncoder(precision), list[int]()
    for stop in range(start, len(text)):
        encoder.push(text[stop], cursor.weights)
        if encoder.size + 1 > bits:  # the end takes one bit more; sizes never shrink
            break
        code = encoder.finish()
        cursor.push(text[stop])
    else:
        stop = len(text)
    if stop == start:
        raise ConfigError(
            f"the code of byte {text[start]} alone has more than {bits} bits: choose more, or another model"
        )
    return int("".join(map(str, code)), 2) << (bits - len(code)), stop - start


# --- exact windows, byte by byte -------------------------------------------------------------------------------------


class WindowEncoder:
    """Exact windows of text that comes in blocks, for any model and any number of bits.

    Attributes:
        open: bytes of the window that has not ended yet.
    """

    def __init__(self, model: NextByte, bits: int) -> None:
        check_bits(bits)
        self.model, self.bits, self.open = model, bits, 0
        self._cursor, self._low, self._size = model.cursor(), 0, 1 << bits

    def push(self, data: bytes | memoryview | ByteArray) -> Windows:
        """The windows that ended."""
        words: list[int] = []
        lengths: list[int] = []
        for byte in np.frombuffer(data, np.uint8).tolist():
            if not self._narrow(byte):
                words.append(self._low)
                lengths.append(self.open)
                self._restart()
                self._narrow(byte)
            self._cursor.push(byte)
            self.open += 1
        return Windows(np.array(words, word_type(self.bits)), np.array(lengths, np.int64))

    def finish(self) -> Windows:
        """The last window, if one is open."""
        words, lengths = ([self._low], [self.open]) if self.open else ([], [])
        self._restart()
        return Windows(np.array(words, word_type(self.bits)), np.array(lengths, np.int64))

    def _narrow(self, byte: int) -> bool:
        """Goes to a byte's part of the interval, unless it has none."""
        if self._size <= 1:
            return False
        ends = _shares(self._cursor.weights, self._size, self.open == 0)
        start, stop = ends(byte), ends(byte + 1)
        if start == stop:
            return False
        self._low, self._size = self._low + 1 + start, stop - start
        return True

    def _restart(self) -> None:
        self._cursor, self._low, self._size, self.open = self.model.cursor(), 0, 1 << self.bits, 0


def _shares(weights: WeightArray, size: int, root: bool) -> Any:
    """The function that gives where the words of byte j begin, for j in 0..256, in an interval of `size` words."""
    below = np.concatenate([[0], np.cumsum(weights)]).tolist()
    total, others = below[-1], size - 1
    if root:
        return lambda j: j + (others - BYTES) * below[j] // total
    return lambda j: others * below[j] // total


def _decode_word(word: int, model: NextByte, bits: int) -> bytes:
    cursor, low, size, piece = model.cursor(), 0, 1 << bits, bytearray()
    while word != low:
        ends, rank = _shares(cursor.weights, size, not piece), word - low - 1
        byte, above = 0, BYTES
        while above - byte > 1:
            middle = (byte + above) // 2
            byte, above = (middle, above) if ends(middle) <= rank else (byte, middle)
        start = ends(byte)
        low, size = low + 1 + start, ends(byte + 1) - start
        cursor.push(byte)
        piece.append(byte)
    return bytes(piece)


def check_bits(bits: int) -> None:
    """Raises ConfigError unless windows can have so many bits."""
    if bits < MIN_BITS:
        raise ConfigError(f"windows need at least {MIN_BITS} bits, got {bits}")


# --- exact windows of count models, in machine integers ---------------------------------------------------------------


def window_encoder(model: NextByte, bits: int) -> WindowEncoder | NativeWindowEncoder:
    """The quickest encoder of a model."""
    native = isinstance(model, CountModel) and bits <= MAX_NATIVE
    return NativeWindowEncoder(model, bits) if isinstance(model, CountModel) and native else WindowEncoder(model, bits)


class NativeWindowEncoder:
    """`WindowEncoder` for count models and words of at most 62 bits.

    Attributes:
        open: bytes of the window that has not ended yet.
    """

    def __init__(self, model: CountModel, bits: int) -> None:
        check_bits(bits)
        self.bits = bits
        self._arrays, self._kept, self._root = model.arrays, _nothing_kept(), _below(model)
        self._state = np.array([0, 1 << bits, 0, 0], np.int64)  # low, size, node, depth

    @property
    def open(self) -> int:
        return int(self._state[3])

    def push(self, data: bytes | memoryview | ByteArray) -> Windows:
        """The windows that ended."""
        text = np.frombuffer(data, np.uint8)
        words, lengths = np.empty(len(text), np.int64), np.empty(len(text), np.int64)
        count = _encode(self._arrays, self._kept, self._root, self._state, text, self.bits, words, lengths)
        return Windows(words[:count].astype(word_type(self.bits)), lengths[:count].copy())

    def finish(self) -> Windows:
        """The last window, if one is open."""
        low, _, _, depth = self._state.tolist()
        ended = slice(0, 1 if depth else 0)
        self._state[:] = 0, 1 << self.bits, 0, 0
        return Windows(np.array([low], word_type(self.bits))[ended], np.array([depth], np.int64)[ended])


def _decode_native(words: WordArray, model: CountModel, bits: int) -> bytes:
    check_bits(bits)
    kept, root, state = _nothing_kept(), _below(model), np.array([0, 1 << bits, 0, 0], np.int64)
    given, done, parts = words.astype(np.int64), 0, list[bytes]()
    out = np.empty(OUTPUT, np.uint8)
    while True:
        done, size = _decode(model.arrays, kept, root, state, given, done, bits, out)
        parts.append(out[:size].tobytes())
        if done == len(given):
            return b"".join(parts)


def _nothing_kept() -> tuple[WeightArray, WeightArray]:
    """Room for the cumulative weights of nodes that are asked for often."""
    return np.full(KEPT, -1, np.int64), np.empty((KEPT, BYTES + 1), np.int64)


def _below(model: CountModel) -> WeightArray:
    """(257,): cumulative weights at the beginning of a window."""
    return np.concatenate([[0], np.cumsum(model.cursor().weights)])


@kernel
def _part(others: Any, below: Any, total: Any) -> Any:
    """others * below // total, without a product that 64 bits can't hold: others < 2^62, below <= total < 2^31."""
    return others // total * below + others % total * below // total


@kernel
def _below_at(model: Any, kept: Any, node: Any, depth: Any) -> Any:
    """(257,): cumulative weights; `kept` has those of nodes that were asked for lately."""
    nodes, rows = kept
    place = node % nodes.size
    deep = depth >= model[-1]  # there the weights are not the node's
    row = rows[place]
    if deep or nodes[place] != node:
        row[0] = 0
        fill_weights(model, node, depth, row[1:])
        for byte in range(BYTES):
            row[byte + 1] += row[byte]
        nodes[place] = -1 if deep else node
    return row


@kernel
def _encode(model: Any, kept: Any, root: Any, state: Any, text: Any, bits: Any, words: Any, lengths: Any) -> Any:
    """Goes on from `state` (low, size, node, depth); gives the number of windows that ended."""
    low, size, node, depth = state
    count = 0
    for index in range(text.size):
        byte = np.int64(text[index])
        start, stop = np.int64(0), np.int64(0)
        if depth > 0 and size > 1:
            below = _below_at(model, kept, node, depth)
            start = _part(size - 1, below[byte], below[BYTES])
            stop = _part(size - 1, below[byte + 1], below[BYTES])
        if start == stop:
            if depth > 0:
                words[count] = low
                lengths[count] = depth
                count += 1
            low, node, depth = np.int64(0), np.int64(0), np.int64(0)
            others = (np.int64(1) << bits) - 1 - BYTES
            start = byte + _part(others, root[byte], root[BYTES])
            stop = byte + 1 + _part(others, root[byte + 1], root[BYTES])
        low += 1 + start
        size = stop - start
        node = step(model, node, byte)
        depth += 1
    state[0], state[1], state[2], state[3] = low, size, node, depth
    return count


@kernel
def _decode(model: Any, kept: Any, root: Any, state: Any, words: Any, done: Any, bits: Any, out: Any) -> Any:
    """Goes on from word number `done` until all words or all of `out` are used; gives both."""
    low, size, node, depth = state
    used = 0
    while done < words.size:
        if words[done] == low:
            low, size, node, depth = np.int64(0), np.int64(1) << bits, np.int64(0), np.int64(0)
            done += 1
            continue
        if used == out.size:
            break
        others, extra, below = size - 1, np.int64(0), root
        if depth == 0:
            others, extra = others - BYTES, np.int64(1)
        else:
            below = _below_at(model, kept, node, depth)
        rank, byte, above = words[done] - low - 1, np.int64(0), np.int64(BYTES)
        while above - byte > 1:
            middle = (byte + above) >> 1
            if middle * extra + _part(others, below[middle], below[BYTES]) <= rank:
                byte = middle
            else:
                above = middle
        start = byte * extra + _part(others, below[byte], below[BYTES])
        low += 1 + start
        size = (byte + 1) * extra + _part(others, below[byte + 1], below[BYTES]) - start
        node = step(model, node, byte)
        depth += 1
        out[used] = byte
        used += 1
    state[0], state[1], state[2], state[3] = low, size, node, depth
    return done, used
