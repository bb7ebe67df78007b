"""equal-info: text cut into windows that a model of the next byte compresses to b bits each.

Source: "Training LLMs over Neurally Compressed Text" (arXiv 2404.03626), in the exact form of 3.3 of the sheet.

    bytes ──model of the next byte──► windows ──arithmetic coding──► words of b bits ──cut──► ids of v bits
    bytes ◄────────────────────────── windows ◄───────────────────── words         ◄──join── ids

With b = v = 16 an id is a string of about five bytes out of a fixed vocabulary of 65,536. Which model is asked:

    table    b <= 20: all windows are written down once; no model runs afterwards. Exact everywhere.
    counts   any b: integer counts of what followed up to six bytes. Exact everywhere.
    neural   any b: a transformer, asked while encoding. Exact on the same build of PyTorch, device and threads, and
             refused elsewhere; see `online`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

import smalti.config
from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.folder import fill
from smalti.text.base import IdArray, Sample, StreamDecoder, StreamEncoder, TextTokenizer, as_bytes, several
from smalti.text.equal_info.counts import SHIFT, CountModel
from smalti.text.equal_info.grams import MAX_ORDER
from smalti.text.equal_info.model import NextByte, WordArray
from smalti.text.equal_info.neural import ByteTransformer, NeuralModel, Training, fingerprint, train_network
from smalti.text.equal_info.online import BlockCoder, BlockDecoder, BlockEncoder
from smalti.text.equal_info.table import MAX_BITS, MAX_LENGTH, Table, TableEncoder
from smalti.text.equal_info.windows import MIN_BITS, NativeWindowEncoder, WindowEncoder, decode_windows, window_encoder
from smalti.text.equal_info.words import MAX_NATIVE, join_words, split_words, word_type
from smalti.tokenizer import Tokenizer

RECIPE = "exact equal-information windows; weights max(1, floor(p * 2^20))"
PIECE = 1 << 20  # bytes, or ids, that are worked on at once
Windower = TableEncoder | WindowEncoder | NativeWindowEncoder


class Counts(smalti.config.Config):
    """A count model with back-off.

    Args:
        order: bytes of the longest context.
        least: contexts that occur less often are left out.
        longest: from this depth of a window on all bytes weigh the same; keeps windows of regular text finite.
    """

    type: Literal["counts"] = "counts"
    order: int = Field(5, ge=0, le=MAX_ORDER)
    least: int = Field(2, ge=1)
    longest: int = Field(192, ge=1)

    def fit(self, samples: Iterable[Sample]) -> CountModel:
        return CountModel.fit(samples, self.order, least=self.least, longest=self.longest)


class Neural(smalti.config.Config):
    """A small causal transformer, M1.

    Args:
        layers, width, heads: of the transformer.
        longest: bytes of a window that it reads; from there on all bytes weigh the same.
        block: bytes that are coded, and checked, at once, where it runs while encoding.
        threads: PyTorch's while it codes.
        training: what `fit` does.
    """

    type: Literal["neural"] = "neural"
    layers: int = Field(4, ge=1)
    width: int = Field(256, ge=4)
    heads: int = Field(8, ge=1)
    longest: int = Field(64, ge=1)
    block: int = Field(4096, ge=1, le=1 << 24)
    threads: int = Field(1, ge=1)
    training: Training = Training()

    def network(self) -> ByteTransformer:
        """With random weights."""
        return ByteTransformer(self.layers, self.width, self.heads, self.longest)

    def fit(self, samples: Iterable[Sample]) -> NeuralModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.training.seed)
            network = self.network()
        train_network(network, samples, self.training)
        return NeuralModel(network)


class Fixed(smalti.config.Config):
    """A table of all windows.

    Args:
        source: the model that the table is made of, once.
    """

    type: Literal["table"] = "table"
    source: Annotated[Counts | Neural, Field(discriminator="type")] = Counts()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source.longest + (MAX_BITS + 7) // 8 > MAX_LENGTH:
            raise ValueError(f"longest must leave room for strings of {MAX_LENGTH} bytes, got {self.source.longest}")
        return self


ONLINE = Counts(order=6)  # of the presets that are too wide for a table
Model = Annotated[Fixed | Counts | Neural, Field(discriminator="type")]


class EqualInfoTokenizer(TextTokenizer):
    """Exact equal-information windows.

    Args:
        config: bits and model.
        model: a table, a count model, or a network in float64, as the configuration says.

    Attributes:
        model: the same.

    Raises:
        ConfigError: if the model is not what the configuration says: a saved folder would give other codes.
    """

    class Config(Tokenizer.Config):
        """Bits of windows and tokens, and the model.

        Args:
            bits: b, of a window.
            token_bits: v, of a token; a window is b / v tokens.
            model: what is asked for the next byte.
            corpus: SHA-256 of the samples that it was fitted on; `fit` fills it in.
        """

        bits: int = Field(16, ge=MIN_BITS, le=1024)
        token_bits: int = Field(16, ge=1, le=MAX_NATIVE)
        model: Model = Fixed()
        corpus: str = ""

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.bits % self.token_bits:
                raise ValueError(f"bits must be a multiple of token_bits, got {self.bits} and {self.token_bits}")
            if isinstance(self.model, Fixed) and self.bits > MAX_BITS:
                raise ValueError(f"a table has at most {MAX_BITS} bits, got {self.bits}: choose model.type counts")
            return self

        def build(self) -> EqualInfoTokenizer:
            """A tokenizer that was fitted on nothing: all bytes alike, or a network with random weights."""
            return EqualInfoTokenizer(self, _untrained(self))

        @classmethod
        def tiny(cls) -> Self:
            return cls(bits=12, token_bits=6, model=Fixed(source=Counts(order=1)))

    name: ClassVar[str] = "equal-info"
    lossless: ClassVar[bool] = True
    # What was fitted stands in the tensors; how it was fitted decides nothing beyond them.
    codeless_fields: ClassVar[tuple[str, ...]] = (
        "corpus", "model.source.*", "model.order", "model.least", "model.training.*",
    )  # fmt: skip
    presets: ClassVar[Mapping[str, Tokenizer.Config]] = {
        "b16-v16": Config(),
        "b16-v8": Config(token_bits=8),
        "b32-v8": Config(bits=32, token_bits=8, model=ONLINE),
        "b32-v16": Config(bits=32, model=ONLINE),
        "b64-v8": Config(bits=64, token_bits=8, model=ONLINE),
        "b64-v16": Config(bits=64, model=ONLINE),
        "b128-v8": Config(bits=128, token_bits=8, model=ONLINE),
        "b128-v16": Config(bits=128, model=ONLINE),
    }
    config: Config

    def __init__(self, config: Config, model: Table | NextByte) -> None:
        _check_model(config, model)
        self.config, self.model = config, model
        self.vocab = (1 << config.token_bits,)

    @classmethod
    def of_table(cls, file: str | Path, token_bits: int | None = None) -> Self:
        """The tokenizer of a table file.

        Args:
            file: what `save_table` or `Table.save` wrote.
            token_bits: v; b by default.

        Raises:
            CheckpointError: if the file is damaged or was changed.
        """
        table, metadata = Table.load(file)
        model = Fixed(source=json.loads(metadata["model"])) if "model" in metadata else Fixed()
        corpus = metadata.get("corpus", "")
        return cls(cls.Config(bits=table.bits, token_bits=token_bits or table.bits, model=model, corpus=corpus), table)

    def save_table(self, file: str | Path) -> Path:
        """Writes the table alone, with the recipe, its model's configuration and the corpus's hash as metadata.

        Raises:
            ConfigError: if this tokenizer has no table.
        """
        if not isinstance(self.model, Table) or not isinstance(self.config.model, Fixed):
            raise ConfigError(f"there is a table where model.type is table, it is {self.config.model.type}")
        source = self.config.model.source.model_dump(mode="json")
        return self.model.save(file, {"recipe": RECIPE, "model": source, "corpus": self.config.corpus})

    def fit(self, samples: Iterable[Sample]) -> Self:
        """Fits the model to samples and, where the configuration asks for it, makes the table; gives this tokenizer.

        Raises:
            InputError: if a network has nothing to be trained on.
        """
        digest, config = hashlib.sha256(), self.config
        seen = _digested(several(samples), digest)
        if isinstance(config.model, Fixed):
            self.model = Table.build(config.model.source.fit(seen), config.bits)
        else:
            model = config.model.fit(seen)
            self.model = _in_float64(model)
        self.config = config.replace(corpus=digest.hexdigest())
        return self

    # --- what TextTokenizer asks for -------------------------------------------------------------------------------

    def stream_encoder(self) -> StreamEncoder:
        if isinstance(self.model, NeuralModel):
            return BlockEncoder(self._blocks())
        windows = (
            TableEncoder(self.model) if isinstance(self.model, Table) else window_encoder(self.model, self.config.bits)
        )
        return _WindowStream(windows, self.config)

    def stream_decoder(self) -> StreamDecoder:
        if isinstance(self.model, NeuralModel):
            return _Checked(BlockDecoder(self._blocks()), self.vocab[0])
        return _Checked(_WordStream(self._decode_words, self.config), self.vocab[0])

    def tensors(self) -> dict[str, Tensor]:
        if isinstance(self.model, NeuralModel):
            return {name: tensor.float() for name, tensor in self.model.network.state_dict().items()}
        assert isinstance(self.model, Table | CountModel)
        arrays = self.model.tensors()
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    @classmethod
    def from_tensors(cls, config: Config, tensors: Mapping[str, Tensor]) -> Self:
        if isinstance(config.model, Neural):
            network = config.model.network()
            fill(network, tensors, "the network of equal-info")
            return cls(config, _in_float64(NeuralModel(network)))
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        if isinstance(config.model, Counts):
            return cls(config, CountModel.from_tensors(arrays, config.model.longest))
        try:
            return cls(config, Table.from_tensors(arrays))
        except ConfigError as error:
            raise CheckpointError(str(error)) from None

    def assets(self) -> dict[str, bytes]:
        """fingerprint.json of a network: where its tokens can be decoded."""
        if not isinstance(self.model, NeuralModel):
            return {}
        return {"fingerprint.json": json.dumps(dict(self._blocks().fingerprint), indent=2).encode()}

    @classmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        draw = np.random.default_rng(seed)
        return {"x": [draw.bytes(int(size)) for size in draw.integers(1, 200, batch)]}

    # --- inside ----------------------------------------------------------------------------------------------------

    def _decode_words(self, words: WordArray) -> bytes:
        if isinstance(self.model, Table):
            return self.model.decode(words)
        return decode_windows(words, self.model, self.config.bits)

    def _blocks(self) -> BlockCoder:
        config, model = self.config.model, self.model
        assert isinstance(config, Neural) and isinstance(model, NeuralModel)
        facts = fingerprint(model.network, config.threads)
        return BlockCoder(model, self.config.bits, self.config.token_bits, config.block, config.threads, facts)


class _WindowStream(StreamEncoder):
    """Windows as tokens. Ids that were given end at the end of a window, and any window can begin anew there."""

    def __init__(self, windows: Windower, config: EqualInfoTokenizer.Config) -> None:
        self._windows, self._config = windows, config
        self._taken = 0

    @property
    def position(self) -> int:  # type: ignore[override]
        return self._taken - self._windows.open

    def push(self, data: bytes | memoryview) -> IdArray:
        pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
        parts = [self._tokens(self._windows.push(piece).words) for piece in pieces]
        self._taken += len(data)
        return np.concatenate([np.zeros(0, word_type(self._config.token_bits)), *parts])

    def finish(self) -> IdArray:
        return self._tokens(self._windows.finish().words)

    def _tokens(self, words: WordArray) -> IdArray:
        return split_words(words, self._config.bits, self._config.token_bits)


class _WordStream(StreamDecoder):
    """Tokens to windows."""

    def __init__(self, decode: Callable[[WordArray], bytes], config: EqualInfoTokenizer.Config) -> None:
        self._decode, self._config = decode, config
        self._rest = np.zeros(0, word_type(config.token_bits))

    def push(self, ids: IdArray) -> bytes:
        config = self._config
        tokens = np.concatenate([self._rest, ids]) if len(self._rest) else ids
        whole = len(tokens) - len(tokens) % (config.bits // config.token_bits)
        self._rest = tokens[whole:]
        return self._decode(join_words(tokens[:whole], config.bits, config.token_bits))

    def finish(self) -> bytes:
        if len(self._rest):
            raise InputError(
                f"the tokens end inside a window: {len(self._rest)} of {self._config.bits // self._config.token_bits}"
            )
        return b""


class _Checked(StreamDecoder):
    """Refuses ids outside the vocabulary before another decoder takes them."""

    def __init__(self, inner: StreamDecoder, vocab: int) -> None:
        self._inner, self._vocab = inner, vocab

    def push(self, ids: IdArray) -> bytes:
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self._vocab:
            raise InputError(f"ids must be in 0..{self._vocab - 1}, got {ids.min()}..{ids.max()}")
        return self._inner.push(ids.astype(word_type((self._vocab - 1).bit_length())))

    def finish(self) -> bytes:
        return self._inner.finish()


def _check_model(config: EqualInfoTokenizer.Config, model: Table | NextByte) -> None:
    """Raises ConfigError unless configuration and tensors together, which is what is saved, are the model."""
    kind = {"table": Table, "counts": CountModel, "neural": NeuralModel}[config.model.type]
    if not isinstance(model, kind):
        raise ConfigError(f"model.type is {config.model.type}, the model a {type(model).__name__}")
    if isinstance(model, Table) and model.bits != config.bits:
        raise ConfigError(f"the table has {model.bits} bits, the config {config.bits}")
    if isinstance(model, NextByte) and isinstance(config.model, Counts | Neural):
        longest = config.model.longest
        if model.longest != longest:
            raise ConfigError(f"the model's longest is {model.longest}, that of the config {longest}")
    if isinstance(model, CountModel) and model.shift != SHIFT:
        raise ConfigError("a model whose weights are counts as they are can't be saved: use CountModel.fit")


def _untrained(config: EqualInfoTokenizer.Config) -> Table | NextByte:
    model = config.model
    if isinstance(model, Neural):
        return _in_float64(NeuralModel(model.network()))
    if isinstance(model, Counts):
        return model.fit([])
    source = model.source
    untrained = NeuralModel(source.network()) if isinstance(source, Neural) else source.fit([])
    return Table.build(untrained, config.bits)


def _in_float64(model: NextByte) -> NextByte:
    """A network as it is asked while encoding; other models as they are."""
    if isinstance(model, NeuralModel):
        model.network.double()
    return model


def _digested(samples: Iterable[Sample], digest: Any) -> Iterator[bytes | memoryview]:
    """The samples, while a digest takes note of them and of their borders."""
    for sample in samples:
        data = as_bytes(sample)
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
        yield data
