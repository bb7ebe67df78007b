"""Any tokenizer.json as a tokenizer of Smalti.

    bytes ──TextEngine──► ids ──the bytes of each token──► bytes        byte pair encoding, where ours is exact
    bytes ──tokenizers──► ids ──tokenizers───────────────► bytes        everything else; `engine` says which, `why` why

Ids are those of `tokenizers` with add_special_tokens=False: what a file puts around a text for a model (its
post-processor) is no part of the text. Text that spells a special token is text unless `special` is set.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from smalti.bpe import Merges, tokenizer_json
from smalti.bpe.alphabets import GPT2
from smalti.bpe.pretokenizers import Opening, Unsupported
from smalti.bpe.spelling import Spellings
from smalti.bpe.text import Encoded, TextEngine, refuse_dropout
from smalti.errors import CheckpointError, InputError, require
from smalti.text.base import IdArray, Sample, StreamDecoder, StreamEncoder, TextTokenizer, as_bytes

FILE = "tokenizer.json"
BLOCK = 2**20  # bytes that are waited for
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
Engine = Literal["smalti", "tokenizers"]


class JsonTokenizer(TextTokenizer):
    """The tokenizer of a tokenizer.json.

    Args:
        config: how it is used.
        content: the file.

    Attributes:
        engine: "smalti", or "tokenizers" for what Smalti's engine does not do exactly.
        why: why the engine is not Smalti's; empty if it is.
        losses: what decoding does not give back.

    Raises:
        CheckpointError: if the file is damaged.
        MissingDependencyError: if it needs `tokenizers`, which is not installed.
    """

    class Config(TextTokenizer.Config):
        """How a tokenizer.json is used.

        Args:
            special: whether text that spells a special token becomes that token.
            engine: "auto" takes Smalti's engine where it gives the ids of `tokenizers`.
        """

        special: bool = False
        engine: Literal["auto", "smalti", "tokenizers"] = "auto"

        @classmethod
        def tiny(cls) -> Self:
            return cls()

        def build(self) -> JsonTokenizer:
            """A tokenizer that has learned nothing: 256 bytes, and GPT-2's pattern."""
            merges = Merges.of_bytes([])
            file = tokenizer_json.byte_file(merges, GPT2, pre_tokenizer=BYTE_LEVEL, decoder=BYTE_LEVEL)
            return JsonTokenizer(self, file.dump())

    name: ClassVar[str] = "tokenizer-json"
    config: Config

    def __init__(self, config: Config, content: bytes) -> None:
        self.config, self.content = config, content
        self.file = tokenizer_json.read(content)
        self._engine, self.why = _engine(config.engine, self.file, content)
        self.engine: Engine = "smalti" if isinstance(self._engine, TextEngine) else "tokenizers"
        self.vocab = (self._engine.size,)
        self.losses = self._engine.losses(special=config.special)

    @classmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        words = np.random.default_rng(seed).choice(["the", "quick,", "brown\nfox", "東京", "naïve", "123"], (batch, 20))
        return {"x": [" ".join(row).encode() for row in words]}

    @classmethod
    def from_files(cls, path: str | Path) -> Self:
        """Reads a tokenizer.json, or a folder that holds one.

        Raises:
            CheckpointError: if there is none, or it is damaged.
        """
        place = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            content = place.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{place} can't be read: {error.strerror}") from None
        return cls(cls.Config(), content)

    @property
    def lossless(self) -> bool:
        return not self.losses

    @property
    def unknown(self) -> int | None:
        return self._engine.unknown

    def token_bytes(self, number: int) -> bytes | None:
        if not isinstance(self._engine, TextEngine):
            return super().token_bytes(number)
        return self._engine.tokens[number] if 0 <= number < self._engine.size else None

    # --- what users call beside encode and decode --------------------------------------------------------------------

    def offsets(self, text: Sample) -> Any:
        """(tokens, 2), int64: the characters that each token of a text stands for, partly or wholly.

        Bytes that are no UTF-8 are characters of their own, if the engine is Smalti's.
        """
        return self._engine.encode(as_bytes(text), special=self.config.special, spans=True).spans

    def count(self, data: bytes | memoryview) -> int:
        return self._engine.count(data, special=self.config.special)

    def first(self, text: Sample, tokens: int) -> bytes:
        """The beginning of a text that encodes to its first tokens.

        Args:
            text: a sample.
            tokens: how many at most. A few less come where no beginning encodes to exactly so many, such as between
                two tokens that are parts of one character.

        Raises:
            InputError: if it is less than 0.
        """
        if tokens < 0:
            raise InputError(f"a text can't have {tokens} tokens")
        data = as_bytes(text)
        ids, read = self._beginning(data, tokens + 1)
        if read == len(data) and len(ids) <= tokens:
            return bytes(data)
        borders = self._borders(bytes(data[:read]))
        for count in range(min(tokens, len(ids)), 0, -1):
            part = bytes(data[: borders[count - 1]])
            if np.array_equal(self.ids(part), ids[:count]):
                return part
        return b""

    # --- what a TextTokenizer fills in -------------------------------------------------------------------------------

    def ids(self, data: bytes | memoryview) -> IdArray:
        return self._engine.encode(data, special=self.config.special).ids

    def stream_encoder(self) -> _Encoding:
        return _Encoding(self._engine, self.config.special)

    def stream_decoder(self) -> StreamDecoder:
        if isinstance(self._engine, TextEngine):
            return _Joining(self._engine.spellings, self._engine.decoding.strip, self._engine.spaced)
        return _Gathering(self._engine)

    def tensors(self) -> dict[str, Tensor]:
        return {"tokenizer_json": torch.frombuffer(bytearray(self.content), dtype=torch.uint8)}

    def assets(self) -> dict[str, bytes]:
        return {FILE: self.content}

    @classmethod
    def from_tensors(cls, config: Config, tensors: Mapping[str, Tensor]) -> Self:
        if tensors.keys() != {"tokenizer_json"} or tensors["tokenizer_json"].dtype != torch.uint8:
            raise CheckpointError(f"the tensors of a tokenizer.json are its bytes, got {sorted(tensors)}")
        return cls(config, tensors["tokenizer_json"].numpy().tobytes())

    # --- inside ------------------------------------------------------------------------------------------------------

    def _beginning(self, data: bytes | memoryview, tokens: int) -> tuple[IdArray, int]:
        """The ids of a beginning that has so many tokens, or of everything; and how many bytes that is."""
        encoder, ids, count = self.stream_encoder(), [], 0
        for start in range(0, len(data), BLOCK):
            ids.append(encoder.push(data[start : start + BLOCK]))
            count += len(ids[-1])
            if count >= tokens:
                return np.concatenate(ids), encoder.given
        return np.concatenate([*ids, encoder.finish()]), len(data)

    def _borders(self, data: bytes) -> list[int]:
        """After how many bytes each token ends."""
        spans = self._engine.encode(data, special=self.config.special, spans=True).spans
        if isinstance(self._engine, TextEngine) and self.lossless:
            return list(accumulate(len(self._engine.tokens[token]) for token in self.ids(data)))
        text = data.decode("utf-8", "surrogateescape")
        sizes = [0, *accumulate(len(character.encode("utf-8", "surrogateescape")) for character in text)]
        return [sizes[stop] for stop in spans[:, 1].tolist()]


class _Foreign:
    """`tokenizers`, with the face of a TextEngine."""

    def __init__(self, file: tokenizer_json.File, content: bytes, why: str) -> None:
        tokenizers = require("tokenizers", "text")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # it has no class of its own
            raise CheckpointError(f"`tokenizers` can't read the file: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._why = why
        unknown = file.model.get("unk_token")
        self.unknown = file.model.get("unk_id") if unknown is None else self._tokenizer.token_to_id(unknown)

    def losses(self, *, special: bool = False) -> list[str]:
        return [f"whatever `tokenizers` leaves out, which does this file ({self._why})"]

    def encode(self, data: bytes | memoryview, *, special: bool = False, spans: bool = False) -> Encoded:
        self._tokenizer.encode_special_tokens = not special
        text = bytes(data).decode("utf-8", "replace")
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        offsets = np.array(encoded.offsets, np.int64).reshape(-1, 2) if spans else None
        return Encoded(np.array(encoded.ids, np.int32), offsets, len(data))

    def count(self, data: bytes | memoryview, *, special: bool = False) -> int:
        return len(self.encode(data, special=special).ids)

    def decode(self, ids: IdArray) -> bytes:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False).encode()


def _engine(wanted: str, file: tokenizer_json.File, content: bytes) -> tuple[TextEngine | _Foreign, str]:
    """The engine of a file, and why it is not Smalti's."""
    refuse_dropout(file)
    if wanted == "tokenizers":
        return _Foreign(file, content, "the configuration"), "the configuration asks for it"
    try:
        return TextEngine(file), ""
    except Unsupported as error:
        if wanted == "smalti":
            raise CheckpointError(f"Smalti's engine does not do {error}") from None
        return _Foreign(file, content, str(error)), str(error)


class _Encoding(StreamEncoder):
    """Encodes what is certain of every block; all at the end, where a file leaves nothing certain before.

    Attributes:
        given: how many bytes the ids given so far stand for.
    """

    def __init__(self, engine: TextEngine | _Foreign, special: bool) -> None:
        self._engine, self._special = engine, special
        self._opening: Opening = "sample"
        self._waiting: list[bytes] = []
        self._size, self._needed, self.given = 0, BLOCK, 0

    def push(self, data: bytes | memoryview) -> IdArray:
        self._waiting.append(bytes(data))
        self._size += len(data)
        engine = self._engine
        if self._size < self._needed or not isinstance(engine, TextEngine) or not engine.streams(special=self._special):
            return np.zeros(0, np.int32)
        text = b"".join(self._waiting)
        part = engine.encode_open(text, special=self._special, opening=self._opening)
        self._opening = part.following
        self._waiting, self._size = [text[part.stop :]], len(text) - part.stop
        self._needed = max(BLOCK, 2 * self._size)  # a piece of many blocks must not be encoded for every one
        self.given += part.stop
        if engine.restarts:
            self.position = self.given
        return part.ids

    def finish(self) -> IdArray:
        text, engine = b"".join(self._waiting), self._engine
        self._waiting = []
        self.given += len(text)
        self.position = self.given
        if isinstance(engine, TextEngine):
            return engine.encode(text, special=self._special, opening=self._opening).ids
        return engine.encode(text, special=self._special).ids


class _Joining(StreamDecoder):
    """Joins the bytes of tokens."""

    def __init__(self, spellings: Spellings, strip: bool, spaced: Container[int]) -> None:
        self._spellings, self._strip, self._spaced = spellings, strip, spaced

    def push(self, ids: IdArray) -> bytes:
        data = self._spellings.join(ids)
        if self._strip and data:
            self._strip = False
            return data if int(ids[0]) in self._spaced else data.removeprefix(b" ")
        return data

    def finish(self) -> bytes:
        return b""


class _Gathering(StreamDecoder):
    """Decodes everything at the end, because what a token becomes may depend on all others."""

    def __init__(self, engine: _Foreign) -> None:
        self._engine = engine
        self._ids: list[IdArray] = []

    def push(self, ids: IdArray) -> bytes:
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < self._engine.size):
            raise InputError(f"ids must be in 0..{self._engine.size - 1}, got {int(ids.min())}..{int(ids.max())}")
        self._ids.append(ids)
        return b""

    def finish(self) -> bytes:
        return self._engine.decode(np.concatenate(self._ids)) if self._ids else b""
