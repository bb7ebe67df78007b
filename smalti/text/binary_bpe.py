"""Binary BPE: byte pair encoding of executables, in vocabularies of which each begins with the smaller ones.

Source: "Binary BPE: A Family of Cross-Platform Tokenizers for Binary Analysis" (2025).

    files ──chunks──► entropy filter ──► splitter ──► merges, the most frequent pair first          (training)
    bytes ──merges over the whole input──► ids ──► the bytes of every id ──► bytes                  (always lossless)

Ids: special tokens, the 256 bytes, glyphs if wanted, further special tokens, learned tokens, padding. Encoding gives
bytes and learned tokens only: text of a special token inside of a file is text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

import smalti.config
from smalti.bpe import Encoder, Merges, Training, tokenizer_json, train
from smalti.bpe.alphabets import GPT2, LATIN1, alphabet_of, escaped_latin1
from smalti.bpe.blocks import BlockEncoder
from smalti.bpe.pretokenizers import flat
from smalti.bpe.spelling import Spellings
from smalti.bpe.splitters import AnySplitter, EntropyFilter, Segments, Whole, as_array
from smalti.errors import CheckpointError, ConfigError
from smalti.text.base import IdArray, StreamDecoder, StreamEncoder, TextTokenizer, several

log = logging.getLogger("smalti")

SPECIALS = ("<|start|>", "<|end|>", "<|pad|>", "<|unk|>", "<|cls|>", "<|sep|>", "<|mask|>")
GLYPHS = tuple("⧈⚖⏵✦⬤●◐◌◑○⬆⬇⇆⟂∴∵⋀⋁⟷⟶⟞⇢⟺⊢👁🧪📊📚🗣🤔★☆⚠❗❓↻✎«»①②③④⑤⑥⑦⑧⑨⑩")
BYTES = 256
FILE = "tokenizer.json"
WHITESPACE = frozenset(b" \t\n\r\x0b\x0c")
LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
PADDING = b" \t\n\r"


class Whitespaces(smalti.config.Config):
    """Which tokens with white space in them may be learned. One that ends in it is never, unless it is nothing else.

    Args:
        with_letters: only such as hold an ASCII letter, or nothing but white space.
        leading: whether a token may begin with it and go on otherwise.
    """

    with_letters: bool = False
    leading: bool = True

    def allows(self, spelling: bytes) -> bool:
        blank = [byte in WHITESPACE for byte in spelling]
        if not any(blank) or all(blank):
            return True
        if blank[-1] or (blank[0] and not self.leading):
            return False
        return not self.with_letters or any(byte in LETTERS for byte in spelling)


class BinaryBPE(TextTokenizer):
    """Byte pair encoding of any bytes; made for executables.

    Args:
        config: how it is, or would be, trained.
        merges: the rules.
        spellings: the bytes of every id, those of special tokens their text.
        special: ids of special tokens, which decode to nothing.

    Attributes:
        stopped: why training ended, as in `smalti.bpe.trainer.Trained`; None if it was not here that it ended.
    """

    class Config(TextTokenizer.Config):
        """How a vocabulary is trained.

        Args:
            training: size of the vocabulary, and how merges are chosen.
            chunk: bytes of the pieces that files are cut into, 0 for whole files.
            entropy: which chunks are dropped; None keeps all.
            splitter: where chunks are cut further.
            seed: of the splitter's draws.
            specials: special tokens beside the seven first ones.
            glyphs: whether 49 signs for reasoning are tokens. No merge makes one.
            whitespace: which tokens with white space may be learned.
            padded: whether tokens of white space fill the vocabulary if merges run out. No merge makes one.
        """

        training: Training = Training(vocab=16384, min_count=10, longest=16)
        chunk: int = Field(8192, ge=0)
        entropy: EntropyFilter | None = None
        splitter: AnySplitter = Whole()
        seed: int = 0
        specials: tuple[str, ...] = ()
        glyphs: bool = False
        whitespace: Whitespaces = Whitespaces()
        padded: bool = True

        @model_validator(mode="after")
        def _specials_differ(self) -> Self:
            names = [*SPECIALS, *self._glyphs]
            for special in self.specials:
                if special in names:
                    raise ValueError(f"specials hold {special!r}, which there is already")
                names.append(special)
            return self

        @classmethod
        def tiny(cls) -> Self:
            return cls(training=Training(vocab=300, min_count=2), padded=False)

        def build(self) -> BinaryBPE:
            """A tokenizer that has learned nothing: every byte is a token. `fit` trains it."""
            base = np.arange(len(SPECIALS), len(SPECIALS) + BYTES, dtype=np.int32)
            merges = Merges(base, np.zeros((0, 2), np.int32), np.zeros(0, np.int32), size=len(self.reserved()))
            return BinaryBPE(self, merges, Spellings.of(self.reserved()), self.special_ids())

        def reserved(self) -> list[bytes]:
            """The spellings of all ids below those of learned tokens."""
            single = [bytes([byte]) for byte in range(BYTES)]
            return [
                *(text.encode() for text in SPECIALS), *single, *(text.encode() for text in self._glyphs),
                *(text.encode() for text in self.specials),
            ]  # fmt: skip

        def special_ids(self) -> tuple[int, ...]:
            further = len(SPECIALS) + BYTES + len(self._glyphs)
            return (*range(len(SPECIALS)), *range(further, further + len(self.specials)))

        @property
        def _glyphs(self) -> Sequence[str]:
            return GLYPHS if self.glyphs else ()

    name: ClassVar[str] = "binary-bpe"
    modality: ClassVar[str] = "executable"
    lossless: ClassVar[bool] = True
    codeless_fields: ClassVar[tuple[str, ...]] = ("*",)  # the merges decide, however they came about
    presets: ClassVar[Mapping[str, Any]] = {
        "4k": Config(training=Training(vocab=4096, min_count=10)),
        "8k": Config(training=Training(vocab=8192, min_count=10)),
        "16k": Config(),
        "32k": Config(training=Training(vocab=32768, min_count=10)),
        "64k": Config(training=Training(vocab=65536, min_count=10)),
    }
    config: Config

    def __init__(self, config: Config, merges: Merges, spellings: Spellings, special: Sequence[int]) -> None:
        self.config = config
        self.stopped: str | None = None
        self._hold(merges, spellings, special)

    def _hold(self, merges: Merges, spellings: Spellings, special: Sequence[int]) -> None:
        """Takes a vocabulary, in place of the one before."""
        self.merges, self.spellings, self.special = merges, spellings, tuple(special)
        self.vocab = (len(spellings),)
        self._encoder = Encoder(merges)
        silent = dict.fromkeys(self.special, b"")
        self._decoded = Spellings.of([silent.get(token, spellings[token]) for token in range(len(spellings))])

    @classmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        generator = np.random.default_rng(seed)
        return {"x": [generator.integers(0, 256, 50 + 13 * row, np.uint8).tobytes() for row in range(batch)]}

    def fit(
        self,
        samples: Iterable[Any],
        *,
        memory: int | None = None,
        report: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Learns merges; those of an earlier training are forgotten.

        Args:
            samples: files as bytes, or uint8 arrays such as memory maps.
            memory: bytes that training may take, about. Merges are the same whatever it is.
            report: called with (merges so far, merges wanted).

        Returns:
            The tokenizer itself.

        Raises:
            ConfigError: if the vocabulary is too small for its reserved tokens, or the memory is too little.
        """
        config, reserved = self.config, self.config.reserved()
        # A learned token may also not be written in GPT-2's alphabet as a special token's text is.
        written = [GPT2.data(text) for text in (*SPECIALS, *config.specials) if GPT2.holds(text)]
        taken = [*reserved[len(SPECIALS) + BYTES :], *written]
        trained = train(
            self._segments(several(samples)), reserved[len(SPECIALS) : len(SPECIALS) + BYTES], config.training,
            base=np.arange(len(SPECIALS), len(SPECIALS) + BYTES), learned=len(reserved), taken=[*reserved[:7], *taken],
            allowed=config.whitespace.allows, memory=memory, report=report,
        )  # fmt: skip
        strings = trained.merges.strings
        learned = [strings[token].astype(np.uint8).tobytes() for token in trained.merges.results]
        spelled = [*reserved, *learned]
        if config.padded:
            spelled += padding(spelled, config.training.vocab - len(spelled))
        self._hold(trained.merges, Spellings.of(spelled), config.special_ids())
        self.stopped = trained.stopped
        return self

    def smaller(self, vocab: int) -> BinaryBPE:
        """The member of the family with the first ids only.

        Raises:
            ConfigError: if that is larger than this one, or leaves no room for bytes and reserved tokens.
        """
        least = len(self.config.reserved())
        if not least <= vocab <= self.vocab[0]:
            raise ConfigError(f"members of this family have {least} to {self.vocab[0]} tokens, not {vocab}")
        config = self.config.replace(training=self.config.training.replace(vocab=vocab))
        merges = self.merges.first(int((self.merges.results < vocab).sum()))
        return BinaryBPE(config, merges, Spellings.of([self.spellings[token] for token in range(vocab)]), self.special)

    # --- what a TextTokenizer fills in -------------------------------------------------------------------------------

    def assets(self) -> dict[str, bytes]:
        try:
            return {FILE: self.to_json()}
        except ConfigError:  # a special token looks like a byte of GPT-2's alphabet
            return {FILE: self.to_json("escaped-latin-1")}

    def stream_encoder(self) -> StreamEncoder:
        return _Encoding(self._encoder)

    def stream_decoder(self) -> StreamDecoder:
        return _Decoding(self._decoded)

    def ids(self, data: bytes | memoryview) -> IdArray:
        return self._encoder.encode(np.frombuffer(data, np.uint8))

    def tensors(self) -> dict[str, Tensor]:
        arrays = {
            "base": self.merges.base,
            "pairs": self.merges.pairs,
            "results": self.merges.results,
            "counts": self.merges.counts,
            "spellings": self.spellings.data,
            "lengths": self.spellings.lengths,
            "special": np.asarray(self.special, np.int64),
        }
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    @classmethod
    def from_tensors(cls, config: Config, tensors: Mapping[str, Tensor]) -> Self:
        try:
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            lengths = arrays["lengths"]
            merges = Merges(arrays["base"], arrays["pairs"], arrays["results"], arrays["counts"], len(lengths))
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            if len(merges.base) != BYTES or (merges.base < 0).any() or offsets[-1] != len(arrays["spellings"]):
                raise CheckpointError("a vocabulary of bytes needs a token for every byte, and a spelling for every id")
            tokenizer = cls(config, merges, Spellings(arrays["spellings"], offsets), arrays["special"].tolist())
        except (KeyError, ConfigError) as error:
            raise CheckpointError(f"this is no vocabulary of binary-bpe: {error}") from None
        tokenizer._check_spellings()
        return tokenizer

    def _check_spellings(self) -> None:
        """Raises CheckpointError unless every token is spelled as its symbols say."""
        strings = self.merges.strings
        made = np.flatnonzero(strings.lengths)
        for token in made:
            if strings[token].astype(np.uint8).tobytes() != self.spellings[token]:
                raise CheckpointError(
                    f"token {token} is spelled {self.spellings[token]!r}, but its merge says otherwise"
                )

    # --- published files ---------------------------------------------------------------------------------------------

    @classmethod
    def from_files(cls, path: str | Path) -> Self:
        """Reads a published tokenizer.json, or a folder that holds one.

        Raises:
            CheckpointError: if there is none, or as in `from_json`.
        """
        place = Path(path)
        try:
            content = (place / FILE if place.is_dir() else place).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} holds no {FILE} that can be read: {error.strerror}") from None
        return cls.from_json(content)

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Reads a tokenizer.json, of any layout of ids and in any alphabet of bytes.

        Published vocabularies encode bytes as a whole, so a Split in the file is left out, which the log says.

        Raises:
            CheckpointError: if it is damaged, or no byte pair encoding of bytes as a whole.
        """
        file = tokenizer_json.read(content)
        model = tokenizer_json.Model.of(file.model)
        steps = list(flat(file.pre_tokenizer, "pretokenizers"))
        cuts = [step for step in steps if step.get("type") == "ByteLevel"]
        if any(step.get("type") == "Split" for step in steps):
            log.warning("this file splits text; binary-bpe encodes bytes as a whole, tokenizer-json splits them")
        if any(step.get("use_regex", True) for step in cuts):  # a decoder has the field, too, where it means nothing
            raise CheckpointError("this file cuts text by a pattern first: load it as tokenizer-json")
        byte_level = bool(cuts) or '"ByteLevel"' in json.dumps(file.decoder)
        specials = [each.content for each in sorted(file.added, key=lambda each: each.id)]
        alphabet = alphabet_of(model.vocab, byte_level=byte_level, specials=specials, glyphs=GLYPHS)
        if alphabet is None:
            raise CheckpointError("the tokens of this file are text, not bytes: load it as tokenizer-json")
        size = max([*model.vocab.values(), *(each.id for each in file.added)]) + 1
        merges = tokenizer_json.byte_merges(model, alphabet, size=size)
        made = {*merges.base.tolist(), *merges.results.tolist()}
        spelled = tokenizer_json.token_bytes(file, alphabet, made)
        special = sorted({each.id for each in file.added if each.special} - made)
        config = cls.Config(training=Training(vocab=size))
        return cls(config, merges, Spellings.of([spelled.get(token, b"") for token in range(size)]), special)

    def to_json(self, alphabet: Literal["gpt2", "latin-1", "escaped-latin-1"] = "gpt2") -> bytes:
        """A tokenizer.json, which `tokenizers` and `transformers` load.

        Args:
            alphabet: how bytes are written. With "gpt2" those libraries take Unicode text and encode its UTF-8 bytes;
                with the others every byte is given to them as the character of its value.
        """
        letters = {"gpt2": GPT2, "latin-1": LATIN1}.get(alphabet)
        if letters is None:
            letters = escaped_latin1(self.spellings[token].decode() for token in self.special)
        known = {*self.special, *self.merges.base.tolist(), *self.merges.results.tolist()}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        return tokenizer_json.byte_file(
            self.merges, letters,
            added=[tokenizer_json.Added(token, self.spellings[token].decode()) for token in self.special],
            texts={letters.text(self.spellings[t]): t for t in range(self.vocab[0]) if t not in known},
            pre_tokenizer=byte_level if letters is GPT2 else None,
            decoder=byte_level if letters is GPT2 else {"type": "Fuse"},
            byte_fallback=True,
        ).dump()  # fmt: skip

    # --- training ----------------------------------------------------------------------------------------------------

    def _segments(self, samples: Iterable[Any]) -> Iterator[Any]:
        """What no merge crosses: chunks, cut further by the splitter."""
        config = self.config
        rng = np.random.default_rng(config.seed)
        for chunk in self._chunks(samples):
            yield chunk if isinstance(config.splitter, Whole) else config.splitter.split(chunk, rng=rng)

    def _chunks(self, samples: Iterable[Any]) -> Iterator[Any]:
        """Files in chunks, without those that the entropy filter drops."""
        size, entropy = self.config.chunk, self.config.entropy
        for sample in samples:
            data = as_array(sample)
            starts = np.arange(0, len(data), size or max(1, len(data)))
            offsets = np.append(starts, len(data)).astype(np.int64)
            chunks = Segments(data, offsets, np.ones(0, np.bool_))
            kept = np.ones(len(chunks), np.bool_) if entropy is None else entropy.keeps(chunks)
            yield from (chunk for chunk, keep in zip(chunks.views(), kept, strict=True) if keep)


class _Encoding(StreamEncoder):
    def __init__(self, encoder: Encoder) -> None:
        self._blocks = BlockEncoder(encoder, threads=torch.get_num_threads())

    def push(self, data: bytes | memoryview) -> IdArray:
        ids = self._blocks.push(np.frombuffer(data, np.uint8))
        self.position = self._blocks.position
        return ids

    def finish(self) -> IdArray:
        ids = self._blocks.finish()
        self.position = self._blocks.position
        return ids


class _Decoding(StreamDecoder):
    def __init__(self, spellings: Spellings) -> None:
        self._spellings = spellings

    def push(self, ids: IdArray) -> bytes:
        return self._spellings.join(ids)

    def finish(self) -> bytes:
        return b""


def is_of_bytes(content: bytes) -> bool:
    """Whether a tokenizer.json spells every byte as the character of its value, as published vocabularies do.

    `tokenizers` has to be given bytes as such characters, which files with steps before the model do not expect.
    """
    try:
        file = tokenizer_json.read(content)
        vocab = file.model["vocab"]
        if file.model.get("type", "BPE") != "BPE" or file.normalizer is not None or file.pre_tokenizer is not None:
            return False
        specials = [each.content for each in sorted(file.added, key=lambda each: each.id)]
        return alphabet_of(vocab, byte_level=False, specials=specials, glyphs=GLYPHS) is not None
    except CheckpointError:
        return False  # whoever reads it says what is wrong


def padding(present: Iterable[bytes], wanted: int) -> list[bytes]:
    """Runs of two and more spaces, tabs, line feeds and carriage returns that are no tokens yet."""
    known = set(present)
    found: list[bytes] = []
    for length in count(2):
        for byte in PADDING:
            if len(found) >= wanted:
                return found
            run = bytes([byte]) * length
            if run not in known:
                found.append(run)
    raise AssertionError  # there is always a longer run
