"""What tokens stand for: the bytes of every id, and joining those of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from smalti.bpe.compiled import kernel
from smalti.errors import InputError


@dataclass(frozen=True, eq=False)
class Spellings:
    """The bytes of every id.

    Args:
        data: uint8, of all ids one after another.
        offsets: (ids + 1,), int64: where those of each begin.
    """

    data: Any
    offsets: Any

    @classmethod
    def of(cls, spellings: Sequence[bytes]) -> Self:
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in spellings])]).astype(np.int64)
        return cls(np.frombuffer(b"".join(spellings), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, token: int | np.integer[Any]) -> bytes:
        return bytes(self.data[self.offsets[token] : self.offsets[token + 1]])

    @property
    def lengths(self) -> Any:
        """(ids,), int64."""
        return np.diff(self.offsets)

    def join(self, ids: Any) -> bytes:
        """The bytes of a sequence of ids.

        Raises:
            InputError: if one is outside the vocabulary.
        """
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < len(self)):
            wrong = int(np.flatnonzero((ids < 0) | (ids >= len(self)))[0])
            raise InputError(f"id {int(ids[wrong])} at {wrong} is outside 0..{len(self) - 1}")
        return _join(self.data, self.offsets, ids).tobytes()


@kernel
def _join(data: Any, offsets: Any, ids: Any) -> Any:
    size = 0
    for token in ids:
        size += offsets[token + 1] - offsets[token]
    out, place = np.empty(size, np.uint8), 0
    for token in ids:
        for index in range(offsets[token], offsets[token + 1]):
            out[place] = data[index]
            place += 1
    return out
