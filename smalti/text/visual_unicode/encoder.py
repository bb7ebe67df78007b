"""Text to ids and back, in blocks of any size: byte pair encoding by rank over the whole text, special tokens first.

    bytes ──special tokens, UTF-8──► symbols ──rules──► ids

Nothing else cuts the text, so what follows may change what was joined before. Ids are given once they are certain:

- where a character takes part in no rule (spaces, most ideographs) no token crosses, and what is before it is final;
- in a run without such a place, a token may reach at most the longest token's length beyond the data that is there.
  Whatever follows, the tokens then have a border at one of the last so many places, and the tokens before a border are
  those of the text before it. Those that all these beginnings have in common are final.

The second rule needs two facts that hold for every encoding by rank, also where a token has several rules: a part of an
encoding is the encoding of its part of the text, and a row of tokens is an encoding if every two neighbours are one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import numpy as np

from smalti.bpe.hashing import Table, table_of
from smalti.errors import ConfigError, InputError
from smalti.text.base import IdArray, StreamDecoder, StreamEncoder
from smalti.text.visual_unicode import kernels
from smalti.text.visual_unicode.vocabulary import UnicodeVocabulary

OnUnknown = Literal["unk", "surrogate-escape", "byte"]
Int32Array = np.ndarray[tuple[int, ...], np.dtype[np.int32]]
Int64Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
ByteArray = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

BLOCK = 1 << 18  # bytes that are worked on at once
LONG_RUN = 4096  # symbols from which the second rule is worth its effort
CODE_POINTS = 0x110000
HALVES = CODE_POINTS >> 10  # numbers that an escape is made of
MODES = {"unk": kernels.UNKNOWN, "surrogate-escape": kernels.ESCAPE, "byte": kernels.BYTE}


class Rules:
    """A vocabulary as the kernels need it.

    Args:
        vocabulary: tokens and rules.
        on_unk: what becomes of a character that has no token, and of bytes that are no UTF-8. "unk": the unknown token,
            and U+FFFD. "surrogate-escape": three ids, the last special token and the upper and lower bits of its number
            as characters; a byte b as the lone surrogate U+DC00 + b. "byte": an id per byte, from `len(vocabulary)` on.
        match_specials: whether the names of special tokens in text become these tokens.

    Raises:
        ConfigError: if the vocabulary lacks what "surrogate-escape" needs.
    """

    def __init__(self, vocabulary: UnicodeVocabulary, on_unk: OnUnknown, match_specials: bool) -> None:
        self.vocabulary, self.mode = vocabulary, MODES[on_unk]
        self.bytes_from = len(vocabulary)
        self.size = self.bytes_from + (256 if on_unk == "byte" else 0)
        self.id_type: Any = np.uint16 if self.size <= 1 << 16 else np.uint32
        self.characters = np.full(CODE_POINTS, -1, np.int32)
        for index, token in enumerate(vocabulary.tokens):
            if len(token) == 1:
                self.characters[ord(token)] = index
        self.escape = self._escape() if on_unk == "surrogate-escape" else -1
        self.specials = self._names() if match_specials else {}
        self.longest_special = max(map(len, self.specials), default=0)
        names = sorted(self.specials, key=len, reverse=True)
        self.special = re.compile(b"|".join(map(re.escape, names))) if names else None
        keys = (vocabulary.pairs[:, 0].astype(np.int64) << 32) | vocabulary.pairs[:, 1]
        self.table: Table = table_of(keys, np.arange(len(keys), dtype=np.int32))
        self.widths, self.joins_right, self.joins_left = _outlines(vocabulary, self.size)
        self.longest = int(self.widths.max())

    def _escape(self) -> int:
        if not self.vocabulary.specials or (self.characters[:HALVES] < 0).any():
            raise ConfigError("surrogate-escape needs a special token, and the characters below U+0440 as tokens")
        return self.vocabulary.specials[-1]

    def _names(self) -> dict[bytes, int]:
        specials = (index for index in self.vocabulary.specials if index != self.escape)
        return {self.vocabulary.tokens[index].encode(): index for index in specials}

    def read(self, data: bytes, final: bool) -> tuple[Int32Array, Int64Array]:
        """Symbols of text, and how many bytes there are up to each one's end.

        Args:
            data: text.
            final: nothing follows; otherwise what may go on in what follows (a character, a name) is left out.
        """
        limit = len(data) if final else len(data) - self.longest_special + 1
        names = self._find(data, limit)
        used = max(0, limit, names[-1][1] if names else 0)
        room = used * (3 if self.mode == kernels.ESCAPE else 1)
        symbols, ends = np.empty(room, np.int32), np.empty(room, np.int64)
        count = kernels.read_symbols(
            np.frombuffer(data, np.uint8)[:used], final, np.array(names, np.int64).reshape(-1, 3), self.characters,
            self.size, self.mode, self.vocabulary.unknown, self.bytes_from, self.escape, symbols, ends,
        )  # fmt: skip
        return symbols[:count], ends[:count]

    def _find(self, data: bytes, limit: int) -> list[tuple[int, int, int]]:
        """Names of special tokens that begin before a limit: begin, end, id. The first, then the longest one counts."""
        if self.special is None:
            return []
        found = takewhile(lambda name: name.start() < limit, self.special.finditer(data))
        return [(name.start(), name.end(), self.specials[name[0]]) for name in found]

    def merge(self, symbols: Int32Array) -> tuple[Int32Array, int, int]:
        """Tokens of symbols; how many of the tokens and of the symbols are before the run that may go on."""
        tokens = symbols.copy()
        count, open_token, open_symbol = kernels.merge_symbols(
            tokens, self.size, self.joins_right, self.joins_left, *self.table, self.vocabulary.results
        )
        return tokens[:count], open_token, open_symbol

    def certain(self, symbols: Int32Array, tokens: Int32Array) -> int:
        """How many of a run's tokens stay as they are, whatever follows the run; see the module's docstring.

        Args:
            symbols: of the run.
            tokens: what they are merged to, if nothing follows.
        """
        ends = np.cumsum(self.widths[tokens])
        spans = _spans(ends, 0)
        window = 16 * self.longest
        while True:
            before = int(np.searchsorted(ends, len(symbols) - window, side="right"))
            start = int(ends[before - 1]) if before else 0
            certain = len(tokens)
            for stop in range(max(start + 1, len(symbols) - self.longest + 1), len(symbols)):
                shorter, _, _ = self.merge(symbols[start:stop])
                shared = np.isin(spans[before:], _spans(np.cumsum(self.widths[shorter]), start))
                # From a shared token on, the tokens before it are those of either.
                certain = min(certain, before + int(shared.argmax()) + 1 if shared.any() else 0)
            if certain or not start:
                return certain
            window *= 2

    def texts(self, keep_specials: bool) -> list[bytes]:
        """The bytes of every id."""
        named = set() if keep_specials else set(self.vocabulary.specials)
        texts = [b"" if index in named else token.encode() for index, token in enumerate(self.vocabulary.tokens)]
        return texts + [bytes([value]) for value in range(self.size - self.bytes_from)]


def _outlines(vocabulary: UnicodeVocabulary, size: int) -> tuple[Int32Array, BoolArray, BoolArray]:
    """How many symbols a token is made of; and which symbols are ever joined to their right, and left, neighbours.

    Rules that use a token which never comes about, because no rule makes it, do not count.

    Raises:
        ConfigError: if a token can be made of characters, and also of the unknown token by its name.
    """
    widths, first, last = np.ones(size, np.int32), np.arange(size), np.arange(size)
    joins_right, joins_left = np.zeros(2 * size, np.bool_), np.zeros(2 * size, np.bool_)
    made = np.array([len(token) == 1 for token in vocabulary.tokens])
    made[vocabulary.unknown] = True
    rules = zip(vocabulary.pairs.tolist(), vocabulary.results.tolist(), strict=True)
    for (left, right), result in sorted(rules, key=lambda rule: len(vocabulary.tokens[rule[1]])):
        if not (made[left] and made[right]):
            continue
        width = widths[left] + widths[right]
        if made[result] and widths[result] != width:
            raise ConfigError(f"token {vocabulary.tokens[result]!r} is made of characters and of the unknown token")
        made[result], widths[result], first[result], last[result] = True, width, first[left], last[right]
        joins_right[last[left]] = joins_left[first[right]] = True
    return widths, joins_right, joins_left


def _spans(ends: Int64Array | Int32Array, start: int) -> Int64Array:
    """Where tokens begin and end, as one number each."""
    stops = ends.astype(np.int64) + start
    return (np.concatenate([[start], stops[:-1]]) << 32) | stops


class UnicodeEncoder(StreamEncoder):
    """See the module's docstring."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._pending = bytearray()
        self._new = 0  # bytes at the end of `_pending` that were not looked at

    def push(self, data: bytes | memoryview) -> IdArray:
        view, given = memoryview(data).cast("B"), []
        for start in range(0, len(view), BLOCK):
            piece = view[start : start + BLOCK]
            self._pending += piece
            self._new += len(piece)
            if 3 * self._new >= len(self._pending):  # what is looked at again is a share of what is new
                given.append(self._advance(final=False))
        return self._joined(given)

    def finish(self) -> IdArray:
        return self._joined([self._advance(final=True)])

    def _joined(self, given: list[Int32Array]) -> IdArray:
        return np.concatenate([np.zeros(0, np.int32), *given]).astype(self._rules.id_type)

    def _advance(self, final: bool) -> Int32Array:
        """Encodes what is certain and removes it from `_pending`."""
        rules = self._rules
        symbols, ends = rules.read(bytes(self._pending), final)
        tokens, count, done = rules.merge(symbols)
        if final:
            count, done = len(tokens), len(symbols)
        elif len(symbols) - done >= max(LONG_RUN, 64 * rules.longest):
            certain = rules.certain(symbols[done:], tokens[count:])
            done += int(rules.widths[tokens[count : count + certain]].sum())
            count += certain
        used = int(ends[done - 1]) if done else 0
        del self._pending[:used]
        self._new = 0
        self.position += used
        return tokens[:count]


@dataclass(frozen=True, eq=False)
class Texts:
    """The bytes of all tokens, one after another, and what ids mean inside an escape."""

    data: ByteArray
    ends: Int64Array
    halves: Int32Array
    escape: int

    @classmethod
    def of(cls, rules: Rules, keep_specials: bool) -> Texts:
        texts = rules.texts(keep_specials)
        halves = np.full(rules.size, -1, np.int32)
        if rules.escape >= 0:
            halves[rules.characters[:HALVES]] = np.arange(HALVES)
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return cls(np.frombuffer(b"".join(texts), np.uint8), ends, halves, rules.escape)

    @property
    def lengths(self) -> Int64Array:
        return np.diff(self.ends, prepend=0)


class UnicodeDecoder(StreamDecoder):
    """Joins the tokens' strings."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._state = np.zeros(2, np.int64)

    def push(self, ids: IdArray) -> bytes:
        texts = self._texts
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(texts.ends):
            raise InputError(f"ids must be in 0..{len(texts.ends) - 1}, got {int(ids.min())}..{int(ids.max())}")
        out = np.empty(int(texts.lengths[ids].sum()) + 4 * len(ids), np.uint8)
        count = kernels.write_bytes(
            np.ascontiguousarray(ids), texts.data, texts.ends, texts.halves, texts.escape, self._state, out
        )
        if count < 0:
            raise InputError(f"id {int(ids[-1 - count])} can't stand where it does: an escape is damaged")
        return out[:count].tobytes()

    def finish(self) -> bytes:
        if self._state[0]:
            raise InputError(f"the ids end inside an escape: {int(self._state[0])} are missing")
        return b""
