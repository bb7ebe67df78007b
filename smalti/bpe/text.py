"""Text as a tokenizer.json wants it encoded: added tokens, steps before the model, the model, and back.

    UTF-8 ──added tokens──► sections ──steps──► pieces ──symbols──► Encoder ──► ids
    bytes ◄──decoder─────── the bytes of each token ◄────────────────────────── ids

The ids are those of `tokenizers`, with add_special_tokens=False. `TextEngine(file)` raises `Unsupported` for files that
it would not encode exactly. Bytes that are no UTF-8 are characters of their own; byte-level models and those with
<0x00> ... <0xFF> give them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smalti.bpe.added import Search
from smalti.bpe.alphabets import GPT2
from smalti.bpe.blocks import certain
from smalti.bpe.characters import CODE_POINTS, Bytes, character
from smalti.bpe.compiled import kernel
from smalti.bpe.decoders import FALLBACK, decoding_of
from smalti.bpe.encoder import Encoder
from smalti.bpe.pretokenizers import Opening, Unsupported, steps_of
from smalti.bpe.spelling import Spellings
from smalti.bpe.splitters import as_array
from smalti.bpe.tokenizer_json import Added, File, Model, byte_merges, rules
from smalti.bpe.trie import NONE
from smalti.errors import CheckpointError


@dataclass(frozen=True)
class Encoded:
    """Text as tokens.

    Args:
        ids: (tokens,), int32.
        spans: (tokens, 2), int64: the characters of the text that each stands for, partly or wholly; None if not asked.
        stop: how many bytes of the text they stand for.
        following: what the text behind them begins.
    """

    ids: Any
    spans: Any
    stop: int
    following: Opening = "inside"


@dataclass(frozen=True)
class _Prepared:
    """A text without its added tokens, with its spaces as the file wants them.

    Args:
        text: all sections between added tokens, one after another.
        ends: where each section ends that is not empty.
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

    Attributes:
        tokens, spellings: the bytes of each id, before a space in front of the text is taken off.
        spaced: tokens whose space in front is the text's, not a mark, where the decoder takes off marks alone.

    Raises:
        Unsupported: if any step is not one that this engine does exactly as `tokenizers`.
        CheckpointError: if the file does not fit together.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        refuse_dropout(file)
        model = _model(file)
        try:
            self.steps = steps_of(file.normalizer, file.pre_tokenizer)
            self.decoding = decoding_of(file.decoder, byte_level=self.steps.byte_level)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"a step of the file is damaged: {error!r}") from None
        if self.steps.escape and file.normalizer and any(each.normalized for each in file.added):
            raise Unsupported("added tokens that are searched in normalized text")
        if any(each.single_word for each in file.added):
            raise Unsupported("added tokens that must be single words")
        self._symbols: _Bytes | _Characters = _Bytes(model) if self.steps.byte_level else _Characters(model)
        merges = self._symbols.merges
        whole = self._symbols.whole(model) if model.ignore_merges else {}
        self._takes_whole = bool(whole)
        self.encoder = Encoder(merges, whole)
        self.size = max([merges.size, *(each.id + 1 for each in file.added)])
        self._lengths = self.encoder.lengths.copy()
        for token, symbols in whole.items():
            self._lengths[token] = len(symbols)
        made = {*merges.base.tolist(), *merges.results.tolist(), *whole}
        self.tokens = self.decoding.tokens(model.vocab, file.added, self.size, made)
        self.spellings = Spellings.of(self.tokens)
        written = [*model.vocab.items(), *((each.content, each.id) for each in file.added)]
        self.spaced = frozenset(token for text, token in written if self.decoding.marks and text.startswith(" "))
        self._search = {special: Search(file.added, special) for special in (False, True)}

    @property
    def unknown(self) -> int | None:
        """The token of characters without one; None if there is none, or all have one."""
        return self._symbols.unknown

    def losses(self, *, special: bool = False) -> list[str]:
        """What decoding does not give back; nothing if it is exact for all bytes.

        Args:
            special: whether special tokens are searched in the text.
        """
        escape, found = self.steps.escape, self._found(special)
        changed = [
            each.content for each in found if self.tokens[each.id] != each.content.encode("utf-8", "surrogatepass")
        ]
        known = {
            "whether a space was in front of the text": self.steps.prepends or self.decoding.strip,
            f"which spaces were {escape.replacement!r}" if escape else "": escape is not None,
            "characters without a token": self._symbols.forgets,
            "white space beside added tokens": self._search[special].strips,
            f"the added tokens {', '.join(map(repr, changed))}, which decode to something else": bool(changed),
        }
        return [loss for loss, present in known.items() if present]

    def streams(self, *, special: bool = False) -> bool:
        """Whether text can be encoded in parts."""
        return not self._search[special].strips

    @property
    def restarts(self) -> bool:
        """Whether what follows a part may be encoded as a text of its own."""
        return not self.steps.prepends

    def _found(self, special: bool) -> list[Added]:
        """The added tokens that are searched in text."""
        return [each for each in self.file.added if special or not each.special]

    def encode(
        self, data: bytes | memoryview, *, special: bool = False, spans: bool = False, opening: Opening = "sample"
    ) -> Encoded:
        """Encodes a whole text, or the end of one.

        Args:
            data: UTF-8.
            special: whether special tokens are searched in the text; other added tokens always are.
            spans: whether to give the characters that each token stands for.
            opening: what the text begins.
        """
        array = as_array(data)
        prepared = self._prepare(array, self._search[special].find(array), spans, opening)
        return self._encoded(array, prepared, self.steps.pieces(prepared.text, prepared.ends), spans)

    def count(self, data: bytes | memoryview, *, special: bool = False) -> int:
        """The number of tokens of a whole text."""
        array = as_array(data)
        prepared = self._prepare(array, self._search[special].find(array), False, "sample")
        symbols, ends, *_ = self._symbols.of(prepared.text, self.steps.pieces(prepared.text, prepared.ends))
        return self.encoder.count_pieces(symbols, ends) + len(prepared.found)

    def encode_open(self, data: bytes | memoryview, *, special: bool = False, opening: Opening = "sample") -> Encoded:
        """Encodes as much of a text's beginning as stays the same however the text goes on.

        What follows it may be encoded with the opening that the result names.
        """
        search, array = self._search[special], as_array(data)
        if not self.streams(special=special):
            return Encoded(np.zeros(0, np.int32), None, 0, opening)
        limit = max(0, len(array) - search.longest + 1)  # added tokens that begin later are not seen yet
        limit -= _unfinished(array[:limit])
        found = search.find(array)
        found = found[found[:, 0] < limit]
        end = max(limit, int(found[-1, 1]) if len(found) else 0)
        written = self.steps.escape is not None or self.steps.prepends
        prepared = self._prepare(array[:end], found, written or len(found) > 0, opening)
        closed = len(found) > 0 and found[-1, 1] == end
        ends, stop = self._cut_open(prepared, closed)
        whole = stop == len(prepared.text)
        data_stop = end if whole else stop if prepared.origin is None else int(prepared.origin[stop])
        kept = found[:, 0] < data_stop
        part = replace(prepared, text=prepared.text[:stop], found=found[kept], before=prepared.before[kept])
        begun = int(part.before[-1]) if len(part.before) else 0  # where the last section begins
        following: Opening = "inside" if stop > begun else "section" if len(part.found) else opening
        return replace(self._encoded(array, part, ends, False), stop=data_stop, following=following)

    def _cut_open(self, prepared: _Prepared, closed: bool) -> tuple[Any, int]:
        """The pieces that stay, and where the last of them ends; `closed`: whether the last section goes on no more."""
        ends, text = prepared.ends, prepared.text
        if closed:
            return self.steps.pieces(text, ends), len(text)
        if not len(text):
            return ends, 0
        if not self.steps.cuts:
            begin = int(ends[-2]) if len(ends) > 1 else 0
            stop = begin + (0 if self._takes_whole else self._border(text[begin:]))
            return np.append(ends[ends < stop], np.array([stop] * (stop > 0), np.int64)), stop
        ends, sure = self.steps.cuts[0].certain(text, ends)
        ends = ends[:sure]
        stop = int(ends[-1]) if sure else 0
        for cut in self.steps.cuts[1:]:
            ends = cut(text[:stop], ends)
        return ends, stop

    def _border(self, text: Bytes) -> int:
        """Where text that is one piece may be cut."""
        symbols, _, first, _ = self._symbols.of(text, np.array([len(text)]))
        border = certain(self.encoder, symbols, self.encoder.encode(symbols))[1]
        return border if first is None or not border else int(first[border])

    def _encoded(self, data: Bytes, prepared: _Prepared, ends: Any, spans: bool) -> Encoded:
        symbols, ends, first, last = self._symbols.of(prepared.text, ends)
        ids = self.encoder.encode_pieces(symbols, ends)
        if not spans and not len(prepared.found):
            return Encoded(ids, None, len(data))
        borders = np.concatenate([[0], np.cumsum(self._lengths[ids])])
        before = prepared.before if first is None else np.searchsorted(first, prepared.before)
        places = np.searchsorted(borders, before, side="right") - 1
        every = np.insert(ids, places, prepared.found[:, 2])
        if not spans:
            return Encoded(every, None, len(data))
        start, stop = borders[:-1], borders[1:] - 1
        if first is not None:
            start, stop = first[start], last[stop] - 1
        numbers = np.cumsum(_begins(data)) - 1  # of the character that each byte belongs to
        own = np.stack([numbers[prepared.origin[start]], numbers[prepared.origin[stop]] + 1], axis=1)
        added = np.stack([numbers[prepared.found[:, 0]], numbers[prepared.found[:, 1] - 1] + 1], axis=1)
        return Encoded(every, np.insert(own, places, added, axis=0), len(data))

    def _prepare(self, data: Bytes, found: Any, spans: bool, opening: Opening) -> _Prepared:
        """Takes the added tokens out, writes spaces as the file wants them."""
        starts, stops = np.append(0, found[:, 1]), np.append(found[:, 0], len(data))
        if self.steps.prepends or self.steps.escape:
            sections = [
                self.steps.written(data[start:stop], start, spans, "section" if place else opening)
                for place, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True))
            ]
            texts, origins = zip(*sections, strict=True)
            origin: Any
            text, origin, sizes = np.concatenate(texts), np.concatenate(origins), [len(each) for each in texts]
        else:
            steps = np.zeros(len(data) + 1, np.int64)
            steps[found[:, 0]] += 1
            steps[found[:, 1]] -= 1
            outside = np.cumsum(steps[:-1]) == 0 if len(found) else slice(None)
            text, sizes = data[outside], list(stops - starts)
            origin = np.arange(len(data))[outside] if spans else None
        ends = np.cumsum(sizes)
        return _Prepared(text, ends[np.diff(ends, prepend=0) > 0], found, ends[:-1], origin)


def refuse_dropout(file: File) -> None:
    """Raises CheckpointError if a file's ids are random."""
    if dropout := file.model.get("dropout"):
        raise CheckpointError(f"the file asks for dropout {dropout}, which makes ids random: set it to null")


def _model(file: File) -> Model:
    if file.model.get("type", "BPE") != "BPE" or "merges" not in file.model:
        raise Unsupported(f"a model of type {file.model.get('type')}")
    model = Model.of(file.model)
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        raise Unsupported("marks of continued or ending words")
    return model


class _Bytes:
    """Symbols of byte-level models: bytes."""

    forgets = False
    unknown: int | None = None

    def __init__(self, model: Model) -> None:
        if not all(each in model.vocab for each in GPT2.characters):
            raise Unsupported("a byte-level vocabulary without all bytes")
        self.merges = byte_merges(model, GPT2)

    def whole(self, model: Model) -> dict[int, Sequence[int]]:
        tokens = {number: token for token, number in model.vocab.items() if len(token) > 1 and GPT2.holds(token)}
        return {number: list(GPT2.data(token)) for number, token in tokens.items()}

    def of(self, text: Bytes, ends: Any) -> tuple[Any, Any, Any, Any]:
        """(symbols, ends of pieces, None, None): every byte is a symbol."""
        return text, ends, None, None


class _Characters:
    """Symbols of text models: the characters that are tokens, the 256 bytes of others, and one for the unknown."""

    def __init__(self, model: Model) -> None:
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
        self.forgets = not fallback
        self._table = np.full(CODE_POINTS, NONE, np.int32)
        self._table[[ord(token) for token in known]] = np.arange(len(known))
        self._symbols = symbols
        self.merges = rules(model, symbols)
        self.unknown = None if self._unknown == NONE else int(self.merges.base[self._unknown])

    def whole(self, model: Model) -> dict[int, Sequence[int]]:
        known = {token: number for token, number in model.vocab.items() if self._symbols.keys() >= set(token) and token}
        if any(len(token) > 1 and token in self._symbols for token in known):
            raise Unsupported("ignore_merges where text can spell the unknown token or a byte's")
        return {number: [self._symbols[each] for each in token] for token, number in known.items() if len(token) > 1}

    def of(self, text: Bytes, ends: Any) -> tuple[Any, Any, Any, Any]:
        """(symbols, ends of pieces, first byte of each symbol, end of each symbol)."""
        return _characters(text, ends, self._table, self._first, self._unknown, self._fuse)


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
