"""Splitters: where training data is cut, so that no merge crosses a cut.

    bytes ──boundaries──► places where it may be cut ──keep──► segments

A boundary is kept with some probability; one that is dropped lets merges cross it. Which ones were kept comes with the
result, and can be given, so that a run can be repeated.

Sources: the whitespace, NUL and chunk modes and the entropy filter are those of binary-bpe.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

import smalti.config
from smalti.bpe.characters import Bytes, Flags
from smalti.bpe.compiled import kernel
from smalti.bpe.corpus import Pieces
from smalti.bpe.patterns import GPT2_PATTERN, compiled
from smalti.errors import ConfigError, InputError

Places = np.ndarray[Any, np.dtype[np.int64]]

ASCII_SPACES = b" \t\n\r\v\f"
# The other white space of Unicode, as UTF-8: ranges of last bytes behind the same first ones.
WIDE_SPACES = (
    (b"\xc2", 0x85, 0x85), (b"\xc2", 0xA0, 0xA0), (b"\xe1\x9a", 0x80, 0x80), (b"\xe2\x80", 0x80, 0x8A),
    (b"\xe2\x80", 0xA8, 0xA9), (b"\xe2\x80", 0xAF, 0xAF), (b"\xe2\x81", 0x9F, 0x9F), (b"\xe3\x80", 0x80, 0x80),
)  # fmt: skip


@dataclass(frozen=True)
class Boundaries:
    """Where data may be cut.

    Args:
        starts, stops: of each boundary: a kept one is cut at both, which are the same place unless something stands
            between, as white space does between words.
        always: places that are cut in any case.
    """

    starts: Places
    stops: Places
    always: Places

    @classmethod
    def at(cls, places: Places) -> Boundaries:
        return cls(places, places, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, eq=False)
class Segments(Pieces):
    """Pieces that data was cut into, which cover all of it, and which boundaries were kept.

    Args:
        data: (bytes,), uint8.
        offsets: (pieces + 1,), int64.
        kept: (boundaries,).
    """

    kept: Flags


class Splitter(smalti.config.Config):
    """Cuts data into segments.

    Args:
        keep: the probability with which each boundary is kept.
    """

    keep: float = Field(1.0, ge=0, le=1)

    @abstractmethod
    def boundaries(self, data: Bytes) -> Boundaries:
        """Where the data may be cut."""

    def split(self, data: Any, *, kept: Any = None, rng: np.random.Generator | None = None) -> Segments:
        """Cuts data.

        Args:
            data: bytes, or a uint8 array of one axis (a memory map, too).
            kept: which boundaries to keep; by default they are drawn.
            rng: draws them; needed if `keep` is neither 0 nor 1.

        Raises:
            InputError: if `kept` has not one flag per boundary.
            ConfigError: if boundaries must be drawn and there is no generator.
        """
        array = as_array(data)
        found = self.boundaries(array)
        flags = self._draw(len(found), rng) if kept is None else np.asarray(kept, np.bool_)
        if flags.shape != (len(found),):
            raise InputError(f"{len(found)} boundaries need as many flags, got {flags.shape}")
        cut = np.zeros(len(array) + 1, np.bool_)
        cut[[0, -1]] = True
        for places in (found.always, found.starts[flags], found.stops[flags]):
            cut[places] = True
        return Segments(array, np.flatnonzero(cut), flags)

    def _draw(self, count: int, rng: np.random.Generator | None) -> Flags:
        if self.keep in (0, 1):
            return np.full(count, bool(self.keep))
        if rng is None:
            raise ConfigError(f"boundaries are kept with probability {self.keep}: give a generator, or which to keep")
        return rng.random(count) < self.keep


class Whole(Splitter):
    """No cuts."""

    type: Literal["none"] = "none"

    def boundaries(self, data: Bytes) -> Boundaries:
        return Boundaries.at(np.zeros(0, np.int64))


class Chunks(Splitter):
    """Chunks of a fixed size, of which the last may be shorter.

    Args:
        size: bytes.
    """

    type: Literal["chunks"] = "chunks"
    size: int = Field(8192, ge=1)

    def boundaries(self, data: Bytes) -> Boundaries:
        return Boundaries.at(np.arange(self.size, len(data), self.size, dtype=np.int64))


class Random(Splitter):
    """Cuts at random places.

    Args:
        length: mean length of a segment in bytes, if all boundaries are kept.
        seed: of the places.
    """

    type: Literal["random"] = "random"
    length: float = Field(8192.0, ge=1)
    seed: int = 0

    def boundaries(self, data: Bytes) -> Boundaries:
        rng, found, place = np.random.default_rng(self.seed), [np.zeros(0, np.int64)], 0
        while place < len(data):
            gaps = rng.geometric(1 / self.length, size=1 + int(len(data) / self.length))
            found.append(place + np.cumsum(gaps))
            place = int(found[-1][-1])
        places = np.concatenate(found)
        return Boundaries.at(places[places < len(data)])


class NullDelimited(Splitter):
    """Cuts wherever a run of NULs begins or ends."""

    type: Literal["null-delimited"] = "null-delimited"

    def boundaries(self, data: Bytes) -> Boundaries:
        return Boundaries.at(_changes(data == 0))


class Whitespace(Splitter):
    """Cuts around runs of white space, so that words and what stands between them are segments.

    A boundary is a run between two words: dropping it joins word, run and word. Runs at both ends of the data are
    always cut off, so that no segment ends in white space unless it is nothing else.

    Args:
        unicode: whether all white space of Unicode counts, as UTF-8, or ASCII's only.
    """

    type: Literal["whitespace"] = "whitespace"
    unicode: bool = False

    def boundaries(self, data: Bytes) -> Boundaries:
        space = white_space(data, unicode=self.unicode)
        changes = _changes(space)
        if not len(changes):
            return Boundaries.at(changes)
        leading = changes[: int(space[0])]
        between = changes[int(space[0]) :]
        trailing = between[len(between) - len(between) % 2 :]
        between = between[: len(between) - len(between) % 2]
        return Boundaries(between[::2], between[1::2], np.concatenate([leading, trailing]))


class Matches(Splitter):
    """Cuts text around the matches of a pattern.

    Args:
        pattern: the regular expression; by default GPT-2's.
    """

    type: Literal["pattern"] = "pattern"
    pattern: str = GPT2_PATTERN

    def boundaries(self, data: Bytes) -> Boundaries:
        ends = compiled(self.pattern).pieces(data)[0]
        return Boundaries.at(ends[:-1])


AnySplitter = Annotated[Whole | Chunks | Random | NullDelimited | Whitespace | Matches, Field(discriminator="type")]


class EntropyFilter(smalti.config.Config):
    """Drops padding and what is compressed, by the Shannon entropy of a segment's bytes.

    Args:
        least, most: bits per byte that segments may have.
    """

    least: float = Field(0.10, ge=0, le=8)
    most: float = Field(7.95, ge=0, le=8)

    def keeps(self, segments: Segments) -> Flags:
        """(pieces,): which of them stay."""
        bits = entropy(segments.data, segments.offsets)
        return (bits >= self.least) & (bits <= self.most)


def entropy(data: Bytes, offsets: Places) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(pieces,): the Shannon entropy of each piece in bits per byte; 0 where it is empty."""
    return _entropy(data, offsets)


def as_array(data: Any) -> Bytes:
    """Bytes as an array, without a copy.

    Raises:
        InputError: if they are none, or an array of another type or shape.
    """
    if not isinstance(data, np.ndarray):
        try:
            return np.frombuffer(data, np.uint8)
        except (TypeError, ValueError) as error:
            raise InputError(f"bytes are needed, got {type(data).__name__} ({error})") from None
    if data.dtype != np.uint8 or data.ndim != 1:
        raise InputError(f"bytes are a uint8 array of one axis, got {data.dtype} {data.shape}")
    return data


def white_space(data: Bytes, *, unicode: bool) -> Flags:
    """(bytes,): which bytes are white space, or belong to a character that is."""
    table = np.zeros(256, np.bool_)
    table[list(ASCII_SPACES)] = True
    space = table[data]
    for prefix, low, high in WIDE_SPACES if unicode else ():
        size = len(prefix) + 1
        if len(data) < size:
            continue
        last = data[size - 1 :]
        match = (last >= low) & (last <= high)
        for place, byte in enumerate(prefix):
            match &= data[place : len(data) - size + 1 + place] == byte
        for place in range(size):
            space[place : len(data) - size + 1 + place] |= match
    return space


def _changes(flags: Flags) -> Places:
    """Where a flag differs from the one before."""
    return np.flatnonzero(flags[1:] != flags[:-1]) + 1


@kernel
def _entropy(data: Any, offsets: Any) -> Any:
    out = np.zeros(offsets.size - 1, np.float64)
    counts = np.zeros(256, np.int64)
    for piece in range(out.size):
        counts[:] = 0
        size = offsets[piece + 1] - offsets[piece]
        for place in range(offsets[piece], offsets[piece + 1]):
            counts[data[place]] += 1
        for count in counts:
            if count > 0:
                share = count / size
                out[piece] -= share * np.log2(share)
    return out
