"""Models of the next byte, as the coders see them: 256 positive integers, given the bytes of the window so far.

NextByte.weights(contexts (batch, depth)) ──► (batch, 256)        many windows at once, of one length: builds tables
NextByte.cursor() ──► Cursor: weights, push(byte)                 one window, byte by byte: codes text
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from smalti.errors import ConfigError

ByteArray = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
WeightArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
WordArray = np.ndarray[tuple[int, ...], np.dtype[Any]]  # uint64, or Python integers where a word has more than 62 bits

BYTES = 256
MAX_TOTAL = 2**31 - 1  # of one row of weights: products of two such numbers fit 64 bits
SCALE_BITS = 20  # probabilities become weights of this many bits


class Cursor(ABC):
    """A model in the middle of a window."""

    @property
    @abstractmethod
    def weights(self) -> WeightArray:
        """(256,): of the next byte; to be read before the next `push`."""

    @abstractmethod
    def push(self, byte: int) -> None:
        """Goes on by one byte."""


class NextByte(ABC):
    """A model of the next byte.

    Attributes:
        longest: from this depth on all bytes weigh the same, so that windows of very regular text end; None: never.
    """

    longest: int | None = None

    @abstractmethod
    def weights(self, contexts: ByteArray) -> WeightArray:
        """Weights after each of many windows.

        Args:
            contexts: (batch, depth): the bytes of each window so far.

        Returns:
            (batch, 256), every one at least 1, every row's sum at most `MAX_TOTAL`.
        """

    @abstractmethod
    def cursor(self) -> Cursor:
        """The model at the beginning of a window."""


def check_weights(weights: WeightArray) -> WeightArray:
    """The weights as int64.

    Raises:
        ConfigError: if one is below 1, or a row's sum is too large.
    """
    if weights.dtype.kind not in "iu" or weights.shape[-1] != BYTES:
        raise ConfigError(f"weights must be (..., {BYTES}) integers, got {weights.dtype} {weights.shape}")
    if weights.size and (int(weights.min()) < 1 or int(weights.sum(-1, dtype=np.uint64).max()) > MAX_TOTAL):
        raise ConfigError(f"weights must be at least 1 and sum to at most {MAX_TOTAL}")
    return weights.astype(np.int64)
