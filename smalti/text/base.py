"""What tokenizers of bytes share: samples are bytes (or str, taken as UTF-8), tokens are one slot of ids.

    bytes ──stream_encoder──► ids ──► Tokens (1, T, 1)          encode(b"...") gives Tokens, encode([...]) a list
    bytes ◄──stream_decoder── ids ◄── Tokens                    decode gives a list, a sample for every row

A system fills in the two streams. They take blocks of any size and give what the whole would have given, so that input
of any length is encoded in little memory; everything else is here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self, overload

import numpy as np
import torch
from torch import Tensor

from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.folder import read_folder, write_folder
from smalti.quantize.base import Noise
from smalti.tokenizer import Options, Seed, Tokenizer, codes_digest
from smalti.tokens import Tokens

IdArray = np.ndarray[tuple[int, ...], np.dtype[Any]]  # one axis, any integer type
AT_ONCE = 2**20  # ids that are decoded at once; what decoders need grows with it
Sample = str | bytes | bytearray | memoryview


class StreamEncoder(ABC):
    """Encodes bytes that come in blocks. The ids are those of the whole, whatever the blocks.

    Attributes:
        position: how many bytes the ids stand for that had been given when it last moved. A new encoder that starts
            there gives those that follow. It moves with the ids wherever that is so, and stays where it was where a
            new encoder would take what follows for the beginning of a text.
    """

    position: int = 0

    @abstractmethod
    def push(self, data: bytes | memoryview) -> IdArray:
        """Takes the next bytes; gives the ids that are certain by now."""

    @abstractmethod
    def finish(self) -> IdArray:
        """Gives the remaining ids. The encoder is used up."""


class StreamDecoder(ABC):
    """Decodes ids that come in blocks."""

    @abstractmethod
    def push(self, ids: IdArray) -> bytes:
        """Takes the next ids; gives the bytes that are certain by now.

        Raises:
            InputError: if an id is outside the vocabulary.
        """

    @abstractmethod
    def finish(self) -> bytes:
        """Gives the remaining bytes.

        Raises:
            InputError: if the ids end where they may not.
        """


class TextTokenizer(Tokenizer):
    """A tokenizer of bytes.

    Attributes:
        codeless_fields: fields of Config that decide no code.
        vocab: the number of ids, as a tuple of one slot.
        losses: what decoding does not give back, in words.
    """

    modality: ClassVar[str] = "text"
    outputs: ClassVar[tuple[str, ...]] = ("bytes", "text")
    codeless_fields: ClassVar[tuple[str, ...]] = ()
    vocab: tuple[int]
    losses: Sequence[str] = ()

    # --- what a system fills in --------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def lossless(self) -> bool:
        """Whether decoding gives back every byte of any input; where it is False, the class says what is lost."""

    @abstractmethod
    def stream_encoder(self) -> StreamEncoder:
        """A new encoder of one sample."""

    @abstractmethod
    def stream_decoder(self) -> StreamDecoder:
        """A new decoder of one sample."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What was learned, as it is saved; it decides codes."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, config: Any, tensors: Mapping[str, Tensor]) -> Self:
        """The tokenizer of a configuration and of what `tensors` gave.

        Raises:
            CheckpointError: if they do not fit together.
        """

    def assets(self) -> dict[str, bytes]:
        """Further files of the saved folder, for other programs; loading does not need them."""
        return {}

    @property
    def unknown(self) -> int | None:
        """The id that stands for what has no token; None where every input has one."""
        return None

    # --- what users call -----------------------------------------------------------------------------------------

    def ids(self, data: bytes | memoryview) -> IdArray:
        """The ids of one sample, in the smallest unsigned type that the encoder gives."""
        encoder = self.stream_encoder()
        return np.concatenate([encoder.push(data), encoder.finish()])

    def data(self, ids: IdArray) -> bytes:
        """The bytes of one sample's ids.

        Raises:
            InputError: if they are no integers on one axis, or one is outside the vocabulary.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise InputError(f"ids are integers on one axis, got {ids.dtype} {ids.shape}")
        ids = ids if len(ids) else np.zeros(0, np.int64)
        decoder = self.stream_decoder()
        parts = [decoder.push(ids[start : start + AT_ONCE]) for start in range(0, len(ids), AT_ONCE)]
        return b"".join([*parts, decoder.finish()])

    def token_bytes(self, number: int) -> bytes | None:
        """What an id stands for within a sample; None if it stands for nothing alone."""
        try:
            return self.data(np.array([number]))
        except InputError:
            return None

    def count(self, data: bytes | memoryview) -> int:
        """How many tokens a sample has."""
        return len(self.ids(data))

    @overload
    def encode(
        self, x: Sample, options: Options | None = None, *, raw: bool = False, seed: Seed = None,
        noise: Noise | None = None, **conditions: Any,
    ) -> Tokens: ...  # fmt: skip

    @overload
    def encode(
        self, x: Sequence[Sample], options: Options | None = None, *, raw: bool = False, seed: Seed = None,
        noise: Noise | None = None, **conditions: Any,
    ) -> list[Tokens]: ...  # fmt: skip

    def encode(
        self,
        x: Sample | Sequence[Sample],
        options: Options | None = None,
        *,
        raw: bool = False,
        seed: Seed = None,
        noise: Noise | None = None,
        **conditions: Any,
    ) -> Tokens | list[Tokens]:
        """Bytes to tokens.

        Args:
            x: one sample, or a sequence of them; str is taken as UTF-8.
            options, raw, seed, noise: of other modalities; there is nothing to choose here.

        Returns:
            Tokens of batch 1 and codes (1, T, 1); for a sequence, a list with one of them per sample.

        Raises:
            InputError: if x is something else, or a str that has no UTF-8 form.
            ConfigError: for options.
        """
        self._check_call(options, conditions)
        if isinstance(x, Sample):
            return self._tokens(as_bytes(x))
        if not isinstance(x, Sequence):
            raise InputError(f"encode takes bytes, str or a sequence of them, got a {type(x).__name__}")
        samples: Sequence[Any] = x
        return [self._tokens(as_bytes(sample)) for sample in samples]

    def decode(
        self,
        tokens: Tokens | Sequence[Tokens],
        options: Options | None = None,
        *,
        output: str | None = None,
        raw: bool = False,
        seed: Seed = None,
        noise: Noise | None = None,
        **conditions: Any,
    ) -> list[Any]:
        """Tokens to bytes.

        Args:
            tokens: one Tokens, or a sequence of them.
            output: "bytes", or "text" for str (bytes that are no UTF-8 become U+FFFD).
            options, raw, seed, noise: as in `encode`.

        Returns:
            A list with one sample per row.

        Raises:
            InputError: if codes are out of range, or of another vocabulary.
        """
        self._check_call(options, conditions)
        if output is not None and output not in self.outputs:
            raise ConfigError(f"{self.name} has no output {output!r}: choose one of {self.outputs}")
        items = [tokens] if isinstance(tokens, Tokens) else tokens
        if not isinstance(items, Sequence) or not all(isinstance(item, Tokens) for item in items):
            raise InputError(f"decode takes Tokens or a sequence of them, got a {type(tokens).__name__}")
        samples = [self.data(ids) for item in items for ids in self._rows(item)]
        return [sample.decode("utf-8", "replace") for sample in samples] if output == "text" else samples

    # --- files -----------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, *, licence: str | None = None) -> Path:
        """Writes config.json, model.safetensors and `assets`."""
        facts = {"codes_hash": self.codes_hash, "licence": licence}
        config = self.config.model_dump(mode="json")
        return write_folder(
            folder, kind="tokenizer", name=self.name, config=config, state=self.tensors(), facts=facts,
            assets=self.assets(),
        )  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads a saved folder.

        Raises:
            CheckpointError: if it is damaged, of another system, or not what was saved.
        """
        saved = read_folder(folder, "tokenizer", cls.name)
        tokenizer = cls.from_tensors(cls.Config(**saved.header["config"]), saved.state)
        if saved.header.get("codes_hash") not in (None, tokenizer.codes_hash):
            raise CheckpointError(f"{folder}: the tensors or the config were changed after it was saved (codes hash)")
        return tokenizer

    @property
    def codes_hash(self) -> str:
        """SHA-256 over everything that decides codes: two tokenizers with one hash give the same codes."""
        return codes_digest(self.name, self.config, self.codeless_fields, {}, self.tensors())

    # --- inside ----------------------------------------------------------------------------------------------------

    def _check_call(self, options: Options | None, conditions: Mapping[str, Any]) -> None:
        if options is not None:
            raise ConfigError(f"{self.name} takes no options, got {type(options).__qualname__}")
        if conditions:
            raise InputError(f"{self.name} does not take {sorted(conditions)}; it takes no conditions")

    def _tokens(self, data: bytes | memoryview) -> Tokens:
        ids = torch.from_numpy(self.ids(data).astype(np.int64))
        return Tokens.of(ids[None, :, None], self.vocab)

    def _rows(self, tokens: Tokens) -> list[IdArray]:
        stream = tokens.only
        if len(stream.spec.positions) != 1 or stream.vocab != self.vocab:
            raise InputError(
                f"{self.name} decodes codes (batch, T, 1) of vocabulary {self.vocab}, "
                f"got {tuple(stream.codes.shape)} of {stream.vocab}"
            )
        tokens.check()
        values, offsets = tokens.ragged()
        return [values[start:stop] for start, stop in pairwise(offsets)]


def several(samples: Any) -> Any:
    """What `fit` was given, if that is more than one sample: text, too, can be gone through piece by piece.

    Raises:
        InputError: if it is a single sample.
    """
    if isinstance(samples, Sample):
        raise InputError(f"fit takes a sequence of samples, got a single {type(samples).__name__}: put it in a list")
    return samples


def as_bytes(sample: Sample) -> bytes | memoryview:
    """A sample's bytes.

    Raises:
        InputError: if it is no sample, or a str that has no UTF-8 form.
    """
    if isinstance(sample, str):
        try:
            return sample.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text must have a UTF-8 form, got {sample[error.start]!r} at {error.start}") from None
    if not isinstance(sample, Sample):
        raise InputError(f"a sample is bytes or str, got a {type(sample).__name__}")
    return memoryview(sample).cast("B") if isinstance(sample, memoryview) else bytes(sample)
