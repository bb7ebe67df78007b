"""Text as a tokenizer.json wants it encoded: added tokens, steps before the model, the model, and back.

    UTF-8 ──added tokens──► sections ──steps──► pieces ──symbols──► Encoder ──► ids
    bytes ◄──decoder─────── the bytes of each token ◄────────────────────────── ids

The ids are those of `tokenizers`, with add_special_tokens=False. `TextEngine(file)` raises `Unsupported` for files that
it would not encode exactly. Bytes that are no UTF-8 are characters of their own; byte-level models and those with
<0x00> ... <0xFF> give them back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from smalti.bpe.alphabets import GPT2
from smalti.bpe.blocks import certain
from smalti.bpe.characters import CODE_POINTS, ESCAPED, Bytes, character
from smalti.bpe.compiled import kernel
from smalti.bpe.encoder import Encoder
from smalti.bpe.pretokenizers import Escape, Unsupported, steps_of
from smalti.bpe.splitters import as_array, white_space
from smalti.bpe.tokenizer_json import Added, File, Model, byte_merges, rules
from smalti.bpe.trie import NONE, longest, trie_of
from smalti.errors import CheckpointError

FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True)
class Encoded:
    """Text as tokens.

    Args:
        ids: (tokens,), int32.
        spans: (tokens, 2), int64: the characters of the text that each stands for, partly or wholly; None if not asked.
    """

    ids: Any
    spans: Any = None


@dataclass(frozen=True)
class _Prepared:
    """A text without its added tokens.

    Args:
        text: what goes through the steps, all sections one after another.
        ends: where each section ends.
        found: (added tokens, 3): where each begins and ends in the data, and its id.
        before: (added tokens,): how much of `text` stands before each.
        origin: (text,): the byte of the data that each byte of `text` is made of; None if not asked.
    """

    text: Bytes
    ends: Any
    found: Any
    before: Any
    origin: Any


class TextEngine:
    """Encodes and decodes text with the byte pair encoding of a tokenizer.json.

    Args:
        file: as `tokenizer_json.read` gives it.

    Raises:
        Unsupported: if any step is not one that this engine does exactly as `tokenizers`.
        CheckpointError: if the file does not fit together.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        model = _model(file)
        self.steps = steps_of(file.normalizer, file.pre_tokenizer)
        if self.steps.escape and file.normalizer and any(each.normalized for each in file.added):
            raise Unsupported("added tokens that are searched in normalized text")
        if any(each.single_word for each in file.added):
            raise Unsupported("added tokens that must be single words")
        self._symbols = _Bytes(model) if self.steps.byte_level else _Characters(model, file)
        merges = self._symbols.merges
        whole = self._symbols.whole(model) if model.ignore_merges else {}
        self.encoder = Encoder(merges, whole)
        self.size = max([merges.size, *(each.id + 1 for each in file.added)])
        self._lengths = self.encoder.lengths.copy()
        for token, symbols in whole.items():
            self._lengths[token] = len(symbols)
        self.pieces = self._pieces(model)
        self._search = {special: _Search(file.added, special) for special in (False, True)}

    def encode(self, data: bytes | memoryview, *, special: bool = False, spans: bool = False) -> Encoded:
        """Encodes a whole text.

        Args:
            data: UTF-8.
            special: whether special tokens are searched in the text; other added tokens always are.
            spans: whether to give the characters that each token stands for.
        """
        array = as_array(data)
        prepared = self._prepare(array, special, spans)
        ends = prepared.ends
        for cut in self.steps.cuts:
            ends = cut(prepared.text, ends)
        symbols, ends, first, last = self._symbols.of(prepared.text, ends)
        ids = self.encoder.encode_pieces(symbols, ends)
        places = np.searchsorted(self._borders(ids), np.searchsorted(first, prepared.before), side="right")
        with_added = np.insert(ids, places - 1, prepared.found[:, 2]) if len(places) else ids
        if not spans:
            return Encoded(with_added)
        borders, characters = self._borders(ids), _character_numbers(array)
        start, stop = prepared.origin[first[borders[:-1]]], prepared.origin[last[borders[1:] - 1] - 1]
        both = np.stack([characters[start], characters[stop] + 1], axis=1) if len(ids) else np.zeros((0, 2), np.int64)
        found = prepared.found[:, :2].copy()
        if len(places):
            found = np.stack([characters[found[:, 0]], characters[found[:, 1] - 1] + 1], axis=1)
            both = np.insert(both, places - 1, found, axis=0)
        return Encoded(with_added, both)

    def certain(self, data: bytes | memoryview, *, special: bool = False) -> int:
        """A place where the text may be cut in two, however it goes on; the last one, or 0.

        What stands before and behind it may be encoded alone, to the same ids.
        """
        search = self._search[special]
        if self.steps.prepends or search.strips:
            return 0
        array = as_array(data)
        array = array[: len(array) - _unfinished(array)]
        limit = max(0, len(array) - search.longest + 1)  # added tokens that begin later are not seen yet
        found = search.find(array)
        inside = found[found[:, 0] < limit]
        begin = int(inside[-1, 1]) if len(inside) else 0
        section = array[begin : int(found[len(inside), 0]) if len(inside) < len(found) else len(array)]
        place = begin + self._certain_of_section(section)
        while place > limit:  # seldom: an added token as long as many pieces
            section = section[: limit - begin]
            place = begin + self._certain_of_section(section)
        return place

    def _certain_of_section(self, section: Bytes) -> int:
        if self.steps.cuts and len(section):
            return self.steps.cuts[0].certain(section)
        if not self.steps.byte_level or not len(section):
            return 0
        ids = self.encoder.encode(section)
        return certain(self.encoder, section, ids)[1]

    def _prepare(self, data: Bytes, special: bool, spans: bool) -> _Prepared:
        """Takes the added tokens out, writes spaces as the file wants them."""
        found = self._search[special].find(data)
        starts, stops = np.append(0, found[:, 1]), np.append(found[:, 0], len(data))
        if not len(found) and not self.steps.prepends and self.steps.escape is None:
            return _Prepared(data, stops[stops > 0], found, stops[:0], np.arange(len(data)) if spans else None)
        texts, origins = [], []
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            text, origin = self._section(data[start:stop], start == 0, spans)
            texts.append(text)
            origins.append(start + origin)
        ends = np.cumsum([len(text) for text in texts])
        kept = ends[np.diff(ends, prepend=0) > 0]
        return _Prepared(np.concatenate(texts), kept, found, ends[:-1], np.concatenate(origins))

    def _section(self, data: Bytes, first: bool, spans: bool) -> tuple[Bytes, Any]:
        """A section's text, and the place in it that each byte is made of."""
        escape = self.steps.escape or Escape(" ", "always" if self.steps.space else "never")
        sign = escape.replacement.encode()
        text = data.tobytes().replace(b" ", sign)
        origin = np.repeat(np.arange(len(data)), np.where(data == 32, len(sign), 1)) if spans else np.zeros(0, np.int64)
        begins = escape.prepend == "each" or (not text.startswith(sign) and (escape.prepend == "always" or first))
        if escape.prepend != "never" and begins and text:
            text = sign + text
            origin = np.concatenate([np.zeros(len(sign), np.int64), origin]) if spans else origin
        return np.frombuffer(text, np.uint8), origin

    def _borders(self, ids: Any) -> Any:
        """(tokens + 1,): where tokens begin and end, in symbols."""
        return np.concatenate([[0], np.cumsum(self._lengths[ids])])

    def _pieces(self, model: Model) -> list[bytes]:
        """The bytes that each id stands for, before the decoder's last touch."""
        escape = self.steps.escape
        pieces = [b""] * self.size
        fallback = dict(zip(FALLBACK, range(256), strict=True)) if model.byte_fallback else {}
        for token, number in model.vocab.items():
            if self.steps.byte_level and GPT2.holds(token):
                pieces[number] = GPT2.data(token)
            elif token in fallback:
                pieces[number] = bytes([fallback[token]])
            else:
                text = token.replace(escape.replacement, " ") if escape else token
                pieces[number] = text.encode("utf-8", "surrogatepass")
        for each in self.file.added:
            if each.content not in fallback:
                pieces[each.id] = each.content.encode("utf-8", "surrogatepass")
        return pieces


def _model(file: File) -> Model:
    try:
        model = Model.of(file.model)
    except CheckpointError as error:
        if file.model.get("type") == "BPE":
            raise
        raise Unsupported(str(error)) from None
    if model.dropout:
        raise CheckpointError(f"the file asks for dropout {model.dropout}, which makes ids random: set it to null")
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        raise Unsupported("marks of continued or ending words")
    return model


class _Bytes:
    """Symbols of byte-level models: bytes."""

    def __init__(self, model: Model) -> None:
        if not all(each in model.vocab for each in GPT2.characters):
            raise Unsupported("a byte-level vocabulary without all bytes")
        self.merges = byte_merges(model, GPT2)

    def whole(self, model: Model) -> dict[int, Sequence[int]]:
        tokens = {number: token for token, number in model.vocab.items() if len(token) > 1 and GPT2.holds(token)}
        return {number: list(GPT2.data(token)) for number, token in tokens.items()}

    def of(self, text: Bytes, ends: Any) -> tuple[Any, Any, Any, Any]:
        """(symbols, ends of pieces, first byte of each symbol, end of each symbol)."""
        places = np.arange(len(text) + 1)
        return text, ends, places[:-1], places[1:]


class _Characters:
    """Symbols of text models: the characters that are tokens, the 256 bytes of others, and one for the unknown."""

    def __init__(self, model: Model, file: File) -> None:
        known = sorted(token for token in model.vocab if len(token) == 1)
        symbols = {token: place for place, token in enumerate(known)}
        fallback = [token for token in FALLBACK if token in model.vocab] if model.byte_fallback else []
        if fallback and len(fallback) < 256:
            raise Unsupported("byte_fallback without all bytes")
        self._first = len(symbols) if fallback else NONE
        symbols.update({token: len(symbols) + byte for byte, token in enumerate(fallback)})
        self._unknown = NONE
        if model.unk_token is not None and not fallback:
            if model.unk_token not in model.vocab or len(model.unk_token) == 1:
                raise Unsupported("an unknown token that is no token of its own")
            self._unknown = len(symbols)
            symbols[model.unk_token] = self._unknown
        self._fuse = model.fuse_unk
        self._table = np.full(CODE_POINTS, NONE, np.int32)
        self._table[[ord(token) for token in known]] = np.arange(len(known))
        self._symbols = symbols
        self.merges = rules(model, symbols)

    def whole(self, model: Model) -> dict[int, Sequence[int]]:
        tokens = {number: token for token, number in model.vocab.items() if len(token) > 1}
        return {
            number: [self._symbols[each] for each in token]
            for number, token in tokens.items()
            if self._symbols.keys() >= set(token)
        }

    def of(self, text: Bytes, ends: Any) -> tuple[Any, Any, Any, Any]:
        """(symbols, ends of pieces, first byte of each symbol, end of each symbol)."""
        return _characters(text, ends, self._table, self._first, self._unknown, self._fuse)


class _Search:
    """Finds added tokens: the leftmost, of those the longest."""

    def __init__(self, added: Sequence[Added], special: bool) -> None:
        self._rounds = []
        for normalized in (False, True):
            tokens = [each for each in added if each.normalized == normalized and each.content]
            if tokens:
                self._rounds.append((tokens, _trie_of([each.content.encode() for each in tokens])))
        self._special = special
        active = [each for each in added if special or not each.special]
        self.longest = max((len(each.content.encode()) for each in added), default=1)
        self.strips = any(each.lstrip or each.rstrip for each in active)
        self._idle = not active

    def find(self, data: Bytes) -> Any:
        """(found, 3), int64: where each begins and ends, and its id, in the order of places."""
        found = np.zeros((0, 3), np.int64)
        for tokens, trie in [] if self._idle else self._rounds:
            begin, new = 0, []
            for start, stop in [*found[:, :2].tolist(), [len(data), len(data)]]:
                new += self._within(data, begin, start, tokens, trie)
                begin = stop
            found = np.concatenate([found, np.array(new, np.int64).reshape(-1, 3)])
            found = found[np.argsort(found[:, 0], kind="stable")]
        return found

    def _within(self, data: Bytes, begin: int, end: int, tokens: Sequence[Added], trie: Any) -> list[list[int]]:
        """Added tokens between two places, with the white space that they take with them."""
        found, done = [], begin
        for start, stop, place in _find(data[begin:end], trie).tolist():
            token, start, stop = tokens[place], begin + start, begin + stop
            if token.special and not self._special:
                continue
            if token.lstrip:
                start = max(done, start - _spaces(data[begin:start][::-1], reverse=True))
            if token.rstrip:
                stop += _spaces(data[stop:end], reverse=False)
            found.append([start, stop, token.id])
            done = stop
        return found


def _spaces(data: Bytes, *, reverse: bool) -> int:
    """How many bytes of white space data begins with; `reverse`: the data stands backwards."""
    size = 64
    while True:
        part = data[:size]
        space = white_space(part[::-1] if reverse else part, unicode=True)
        other = np.flatnonzero(~(space[::-1] if reverse else space))
        if len(other) or size >= len(data):
            return int(other[0]) if len(other) else len(data)
        size *= 8


def _trie_of(strings: Sequence[bytes]) -> Any:
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in strings])]).astype(np.int64)
    return trie_of(np.frombuffer(b"".join(strings), np.uint8).astype(np.int32), offsets, np.arange(len(strings)), 256)


def _character_numbers(data: Bytes) -> Any:
    """(bytes,): the number of the character that each byte belongs to."""
    return np.cumsum(_begins(data)) - 1


def _unfinished(data: Bytes) -> int:
    """How many bytes at the end may be the beginning of a character."""
    for size in range(1, min(3, len(data)) + 1):
        byte = int(data[len(data) - size])
        if byte & 0xC0 != 0x80:
            return size if byte >= 0xC0 and size < 2 + (byte >= 0xE0) + (byte >= 0xF0) else 0
    return 0


@kernel
def _begins(data: Any) -> Any:
    """(bytes,): 1 where a character begins, else 0."""
    begins = np.zeros(data.size, np.int64)
    place = 0
    while place < data.size:
        begins[place] = 1
        _, size = character(data, place, data.size)
        place += size
    return begins


@kernel
def _find(data: Any, trie: Any) -> Any:
    """(found, 3): begin, end and number of the strings of a trie, leftmost and longest first, none overlapping."""
    out = np.empty((16, 3), np.int64)
    count, place = 0, 0
    while place < data.size:
        token = longest(trie, data, place, data.size)
        if token < 0:
            place += 1
            continue
        if count == len(out):
            more = np.empty((2 * len(out), 3), np.int64)
            more[:count] = out
            out = more
        node, end = 0, place
        while end < data.size:
            following = trie[node, 0] + data[end]
            if trie[following, 1] != node:
                break
            node = following
            end += 1
        out[count, 0], out[count, 2] = place, token
        place = end
        out[count, 1] = place
        count += 1
    return out[:count]


@kernel
def _characters(text: Any, ends: Any, table: Any, fallback: int, unknown: int, fuse: bool) -> Any:
    """(symbols, ends, first byte of each, end of each) of pieces of text."""
    symbols = np.empty(text.size, np.int32)
    first, last = np.empty(text.size, np.int64), np.empty(text.size, np.int64)
    borders = np.empty(ends.size, np.int64)
    count, place = 0, 0
    for piece in range(ends.size):
        begin = count
        while place < ends[piece]:
            point, size = character(text, place, ends[piece])
            symbol = table[point]
            if symbol >= 0:
                symbols[count], first[count], last[count] = symbol, place, place + size
                count += 1
            elif fallback >= 0:
                for byte in text[place : place + size]:
                    symbols[count], first[count], last[count] = fallback + byte, place, place + size
                    count += 1
            elif unknown >= 0 and fuse and count > begin and symbols[count - 1] == unknown:
                last[count - 1] = place + size
            elif unknown >= 0:
                symbols[count], first[count], last[count] = unknown, place, place + size
                count += 1
            place += size
        borders[piece] = count
    return symbols[:count], borders, first[:count], last[:count]
