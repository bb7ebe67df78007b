"""The reference binary arithmetic coder, and what the paper measures windows against: one stream without windows.

Source: google-deepmind/language_modeling_is_compression at b5c8f8a, whose bits these are.

    weights ──► pdf ──► quantized cumulative ──► interval [low, high] of P-bit numbers ──► bits that both ends share

Floats here are float64, summed one after another, as the reference does; so the bits are equal on every machine.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from smalti.errors import ConfigError, InputError
from smalti.text.base import IdArray
from smalti.text.equal_info.model import ByteArray, NextByte, WeightArray
from smalti.text.equal_info.words import split_words

FLOOR = 2.0**-23  # added to every probability: float32's epsilon
PRECISION = 32
CumulativeArray = np.ndarray[tuple[int], np.dtype[np.float64]]


class _Interval:
    """What encoder and decoder share: the interval, and how a symbol narrows it."""

    def __init__(self, precision: int) -> None:
        if precision < 2:
            raise ConfigError(f"the precision must be at least 2 bits, got {precision}")
        self.precision = precision
        self.low, self.high = 0, (1 << precision) - 1
        self.half, self.quarter = 1 << (precision - 1), 1 << (precision - 2)

    def narrow(self, start: int, stop: int) -> None:
        self.low, self.high = self.low + start, self.low + stop - 1

    @property
    def settled(self) -> bool:
        """Whether both ends begin with one bit."""
        return (self.low ^ self.high) & self.half == 0

    @property
    def straddles(self) -> bool:
        """Whether the ends are 01... and 10..."""
        return bool(self.low & self.quarter) and not self.high & self.quarter

    def shift(self) -> None:
        """Drops the first bit of both ends."""
        self.low = (self.low % self.half) << 1
        self.high = (self.high % self.half) << 1 | 1

    def shift_second(self) -> None:
        """Drops the second bit of both ends."""
        self.low = self.low & self.half | (self.low % self.quarter) << 1
        self.high = self.high & self.half | (self.high % self.quarter) << 1 | 1

    def steps(self, weights: WeightArray) -> CumulativeArray:
        """(257,): where the symbols' shares of the interval begin, whole numbers as float64.

        Raises:
            ConfigError: if a symbol's share is empty: the precision is too small for its probability.
        """
        pdf = weights / weights.sum()
        pdf = pdf / np.cumsum(pdf)[-1]
        pdf = (1 - 2 * len(pdf) * FLOOR) * pdf + FLOOR
        width = self.high - self.low + 1
        steps: CumulativeArray = np.floor(np.insert(np.cumsum(pdf), 0, 0.0) * float(width))
        if not bool((steps[1:] > steps[:-1]).all()) or int(steps[-1]) > width:
            raise ConfigError(
                f"a probability is too small for a precision of {self.precision} bits (an interval of {width})"
            )
        return steps


class ArithmeticEncoder(_Interval):
    """Symbols to bits.

    Args:
        precision: bits of the interval's ends.

    Attributes:
        bits: what is certain so far.
        pending: bits that follow once the next one is known.
    """

    def __init__(self, precision: int = PRECISION) -> None:
        super().__init__(precision)
        self.bits: list[int] = []
        self.pending = 0

    def push(self, symbol: int, weights: WeightArray) -> None:
        """Encodes a symbol whose probability is its weight over the sum of the weights.

        Raises:
            ConfigError: if the precision is too small for the weights.
        """
        steps = self.steps(weights)
        self.narrow(int(steps[symbol]), int(steps[symbol + 1]))
        while self.settled:
            bit = self.low >> (self.precision - 1)
            self.bits.append(bit)
            self.bits.extend([1 - bit] * self.pending)
            self.pending = 0
            self.shift()
        while self.straddles:
            self.pending += 1
            self.shift_second()

    @property
    def size(self) -> int:
        """Bits so far, pending ones included. The end needs one more."""
        return len(self.bits) + self.pending

    def finish(self) -> list[int]:
        """All bits, with the end that makes the last symbol certain."""
        return [*self.bits, self.low >> (self.precision - 1), *[1] * self.pending]


class ArithmeticDecoder(_Interval):
    """Bits to symbols; one has to know how many symbols there are.

    Args:
        bits: what the encoder gave; ones are read beyond its end.
        precision: the encoder's.
    """

    def __init__(self, bits: IdArray | list[int], precision: int = PRECISION) -> None:
        super().__init__(precision)
        self._bits, self._next, self._code = bits, 0, 0
        for _ in range(precision):
            self._code = self._code << 1 | self._read()

    def pull(self, weights: WeightArray) -> int:
        """The next symbol.

        Raises:
            ConfigError: if the precision is too small for the weights.
        """
        steps = self.steps(weights)
        symbol = min(bisect_right(steps, self._code - self.low, key=int) - 1, len(weights) - 1)
        self.narrow(int(steps[symbol]), int(steps[symbol + 1]))
        while self.settled:
            self._code = (self._code % self.half) << 1 | self._read()
            self.shift()
        while self.straddles:
            self._code = self._code & self.half | (self._code % self.quarter) << 1 | self._read()
            self.shift_second()
        return symbol

    def _read(self) -> int:
        bit = int(self._bits[self._next]) if self._next < len(self._bits) else 1
        self._next += 1
        return bit


def encode_bits(
    data: bytes | memoryview | ByteArray, model: NextByte, precision: int = PRECISION
) -> tuple[ByteArray, IdArray]:
    """The arithmetic code of bytes, without windows: the model sees all that came before.

    Returns:
        The bits, and how many were certain or pending after each byte.

    Raises:
        ConfigError: if the precision is too small for the model.
    """
    encoder, cursor = ArithmeticEncoder(precision), model.cursor()
    sizes = np.zeros(len(data), np.int64)
    for place, byte in enumerate(np.frombuffer(data, np.uint8).tolist()):
        encoder.push(byte, cursor.weights)
        cursor.push(byte)
        sizes[place] = encoder.size
    return np.array(encoder.finish(), np.uint8), sizes


def decode_bits(bits: ByteArray, count: int, model: NextByte, precision: int = PRECISION) -> bytes:
    """The `count` bytes that `encode_bits` encoded."""
    decoder, cursor = ArithmeticDecoder(bits.tolist(), precision), model.cursor()
    data = bytearray()
    for _ in range(count):
        byte = decoder.pull(cursor.weights)
        cursor.push(byte)
        data.append(byte)
    return bytes(data)


@dataclass(frozen=True)
class ArithmeticTokens:
    """Text as one arithmetic code, cut into tokens: what equal-information windows are compared with.

    With a model of order 0 it is the paper's StaticAC.

    Args:
        model: of the next byte.
        token_bits: bits of a token; the last one is filled with ones, which is what the decoder reads beyond the end.
        precision: of the coder.
    """

    model: NextByte
    token_bits: int = 16
    precision: int = PRECISION

    def encode(self, data: bytes | memoryview) -> tuple[IdArray, int]:
        """The ids, and the number of bytes, without which they can't be decoded."""
        bits, _ = encode_bits(data, self.model, self.precision)
        if not len(data):
            return np.zeros(0, np.int64), 0
        padded = np.concatenate([bits, np.ones(-len(bits) % self.token_bits, np.uint8)])
        places = np.int64(1) << np.arange(self.token_bits - 1, -1, -1, dtype=np.int64)
        return padded.reshape(-1, self.token_bits).astype(np.int64) @ places, len(data)

    def decode(self, ids: IdArray, count: int) -> bytes:
        """The `count` bytes of some ids.

        Raises:
            InputError: if an id is out of range.
        """
        if len(ids) and not 0 <= int(min(ids)) <= int(max(ids)) < 1 << self.token_bits:
            raise InputError(f"ids must be in 0..{(1 << self.token_bits) - 1}")
        bits = split_words(np.asarray(ids, np.uint64), self.token_bits, 1).astype(np.uint8)
        return decode_bits(bits, count, self.model, self.precision)
