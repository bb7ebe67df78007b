"""Tokenizer and NeuralTokenizer: the one interface of every system that turns data into tokens and back.

    x ──prepare──► inputs ──analysis──► latents ──quantizer──► codes ──► Tokens
    x ◄──finish─── outputs ◄─synthesis─ vectors ◄─quantizer─── codes ◄── Tokens

A neural system fills in the four arrows in between: `prepare` and `finish` (its modality's base class has them),
`analysis` and `synthesis`; and a `quantizer`. Everything that users call is here, once.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, overload

import torch
from torch import Tensor, nn

import smalti.config
from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.folder import as_float32, fill, read_folder, write_folder
from smalti.quantize.base import Noise, Quantized, Quantizer
from smalti.tokens import Latents, Side, Stream, Tokens

OnInvalid = Literal["raise", "clip"]

Seed = int | Sequence[int] | None


@dataclass(frozen=True)
class Condition:
    """Data beside x that encode or decode takes as a keyword.

    Args:
        type: what a value is, for messages and documentation.
        required: encoding fails without it.
        stored: encode writes it into `Tokens.side`, where decode finds it.
    """

    type: type
    required: bool = False
    stored: bool = False


@dataclass(frozen=True)
class Options:
    """How to encode or decode, where a system leaves a choice. Systems with choices subclass it as Encode, Decode."""


@dataclass(frozen=True)
class Reconstruction:
    """What `forward` gives; systems subclass it to add fields.

    Args:
        x: the reconstruction, in the range and layout of the input; None where a system has no decoder.
        quantized: the quantizer's result.
        loss: what the model alone knows (the quantizer's loss, mostly); objectives add the rest.
        terms: parts of the loss by name, and statistics.
    """

    x: Tensor | None
    quantized: Quantized | None
    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Tokenizer(ABC):
    """Anything that encodes samples of one modality into Tokens and decodes them.

    Attributes:
        name: the record's name in `smalti.systems`.
        modality: "image", "audio" ...
        presets: published configurations by name.
        conditions: the keywords that encode and decode take.
        outputs: what decode can give, the default first.
    """

    class Config(smalti.config.Config):
        """Numbers and choices of a system; its defaults are a published configuration."""

        def build(self) -> Tokenizer:
            """The tokenizer with random weights."""
            raise NotImplementedError  # every system's own Config says what it builds

        @classmethod
        def tiny(cls) -> Self:
            """A tiny random configuration, for checks."""
            raise NotImplementedError

    name: ClassVar[str]
    modality: ClassVar[str]
    presets: ClassVar[Mapping[str, Tokenizer.Config]] = {}
    conditions: ClassVar[Mapping[str, Condition]] = {}
    outputs: ClassVar[tuple[str, ...]]
    config: Config

    @abstractmethod
    def encode(
        self,
        x: Any,
        options: Options | None = None,
        *,
        raw: bool = False,
        seed: Seed = None,
        noise: Noise | None = None,
        **conditions: Any,
    ) -> Any:
        """Samples to Tokens (or Latents): a batch gives one, a sequence of samples a list."""

    @abstractmethod
    def decode(
        self,
        tokens: Any,
        options: Options | None = None,
        *,
        output: str | None = None,
        raw: bool = False,
        seed: Seed = None,
        noise: Noise | None = None,
        **conditions: Any,
    ) -> Any:
        """Tokens to samples; the inverse of `encode` as far as the codes carry."""

    @abstractmethod
    def save(self, folder: str | Path) -> Path:
        """Writes a folder that `load` reads."""

    @classmethod
    @abstractmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads what `save` wrote."""

    @property
    @abstractmethod
    def codes_hash(self) -> str:
        """SHA-256 over everything that decides codes: two tokenizers with one hash give the same codes."""

    @classmethod
    @abstractmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        """Legal inputs of `Config.tiny()`: {"x": a batch, **conditions}. The checks use it."""


class NeuralTokenizer(Tokenizer, nn.Module):
    """A tokenizer made of a network and a quantizer.

    Attributes:
        code_parts: names of the sub-modules that decide codes; their tensors enter `codes_hash`.
        codeless_fields: patterns of dotted Config fields that decide no code (decoders); those that are marked as
            `Training` don't either, all others enter it.
        grid_axes: how many axes positions have (2 for images), where the modality says.
        encode_options, decode_options: the option classes of the system.
        on_invalid: what decode does with codes out of range: "raise", or "clip" where that was published.
    """

    code_parts: ClassVar[tuple[str, ...]]
    codeless_fields: ClassVar[tuple[str, ...]] = ()
    grid_axes: ClassVar[int | None] = None
    encode_options: ClassVar[type[Options]] = Options
    decode_options: ClassVar[type[Options]] = Options
    on_invalid: ClassVar[OnInvalid] = "raise"
    quantizer: Quantizer

    def __init__(self, config: Tokenizer.Config) -> None:
        super().__init__()
        self.config = config

    # --- what a system or its modality's base fills in ---------------------------------------------------------------

    @abstractmethod
    def prepare(self, x: Tensor, **conditions: Any) -> tuple[Tensor, dict[str, Side]]:
        """Public data to the network's range and layout, and the side information that undoes it.

        Raises:
            InputError: if x is not legal; it says what was got and what is needed.
        """

    @abstractmethod
    def finish(self, outputs: Tensor, side: Mapping[str, Side], **conditions: Any) -> Tensor:
        """The network's output to public data, undoing `prepare` (one extent per call)."""

    @abstractmethod
    def analysis(self, inputs: Tensor, options: Any) -> Tensor:
        """Network input to latents, channel-last: (batch, *positions, dim)."""

    @abstractmethod
    def synthesis(self, vectors: Tensor, options: Any) -> Tensor:
        """Vectors, channel-last, to the network's output."""

    def encode_inputs(self, inputs: Tensor, options: Any, *, whole: bool) -> Tensor:
        """Network input to codes. A modality with long samples cuts them here, unless the whole is asked for."""
        return self.quantizer.encode(self.analysis(inputs, options))

    def decode_vectors(self, vectors: Tensor, options: Any, *, whole: bool) -> Tensor:
        """Vectors to the network's output; the counterpart of `encode_inputs`."""
        return self.synthesis(vectors, options)

    def check_raw(self, inputs: Tensor) -> None:
        """Raises InputError unless `inputs`, given with raw=True, are what the network takes."""
        # In training the loop watches the loss instead: looking at values would make every step wait for the device.
        finite = self.training or bool(torch.isfinite(inputs).all())
        if not inputs.is_floating_point() or inputs.numel() == 0 or not finite:
            raise InputError(
                f"raw input must be floating, finite and not empty, got {inputs.dtype} {tuple(inputs.shape)}"
            )

    def preprocessing(self) -> dict[str, Any]:
        """What happens to data before the network, as plain values: part of `codes_hash`."""
        return {}

    @classmethod
    def from_official(cls, config: Any, state: Mapping[str, Any]) -> Self:
        """The officially published configuration and state in, a ready tokenizer out.

        Args:
            config: the published file's own configuration, or None (sizes are then read off the tensors).
            state: official keys -> tensors.

        Raises:
            CheckpointError: if a key is missing, unknown, or of an impossible shape.
        """
        raise CheckpointError(f"no checkpoints of {cls.name} were published")

    # --- what users call -----------------------------------------------------------------------------------------

    @overload
    def encode(
        self, x: Tensor, options: Options | None = None, *, raw: bool = False, seed: Seed = None,
        noise: Noise | None = None, **conditions: Any,
    ) -> Tokens: ...  # fmt: skip

    @overload
    def encode(
        self, x: Sequence[Tensor], options: Options | None = None, *, raw: bool = False, seed: Seed = None,
        noise: Noise | None = None, **conditions: Any,
    ) -> list[Tokens]: ...  # fmt: skip

    def encode(
        self,
        x: Tensor | Sequence[Tensor],
        options: Options | None = None,
        *,
        raw: bool = False,
        seed: Seed = None,
        noise: Noise | None = None,
        **conditions: Any,
    ) -> Tokens | list[Tokens]:
        """Data to tokens. The codes of a sample do not depend on what is encoded with it.

        Args:
            x: a batch, or a sequence of samples (no batch axis) of any extents.
            options: the system's encoding options.
            raw: x is already in the network's range and layout.
            seed, noise: for systems that draw at random while encoding.
            **conditions: as declared in `conditions`.

        Returns:
            Tokens of the batch; for a sequence, a list with one Tokens (of batch 1) per sample.

        Raises:
            InputError: if x or a condition is not legal.
        """
        chosen = self._options(options, self.encode_options)
        if isinstance(x, Tensor):
            return self._encode_batch(x, chosen, raw, conditions)
        if not isinstance(x, Sequence) or not all(isinstance(sample, Tensor) for sample in x):
            raise InputError(f"encode takes a tensor (a batch) or a sequence of tensors, got {_kind(x)}")
        return [self._encode_batch(sample[None], chosen, raw, conditions) for sample in x]

    @overload
    def decode(
        self, tokens: Tokens | Latents, options: Options | None = None, *, output: str | None = None,
        raw: bool = False, seed: Seed = None, noise: Noise | None = None, **conditions: Any,
    ) -> Tensor: ...  # fmt: skip

    @overload
    def decode(
        self, tokens: Sequence[Tokens], options: Options | None = None, *, output: str | None = None,
        raw: bool = False, seed: Seed = None, noise: Noise | None = None, **conditions: Any,
    ) -> list[Tensor]: ...  # fmt: skip

    def decode(
        self,
        tokens: Tokens | Latents | Sequence[Tokens],
        options: Options | None = None,
        *,
        output: str | None = None,
        raw: bool = False,
        seed: Seed = None,
        noise: Noise | None = None,
        **conditions: Any,
    ) -> Tensor | list[Tensor]:
        """Tokens to data of the extents that were encoded.

        Args:
            tokens: one Tokens (or Latents), or a sequence of them.
            options: the system's decoding options.
            output: one of `outputs`.
            raw: give the network's own range and layout, uncropped.
            seed, noise: for systems that draw at random while decoding.
            **conditions: override what `side` holds.

        Returns:
            A batch for Tokens (all rows must come out with one extent), a list of samples for a sequence.

        Raises:
            InputError: if codes are out of range, do not fit this tokenizer, or rows have different extents.
        """
        chosen = self._options(options, self.decode_options)
        if output is not None and output not in self.outputs:
            raise ConfigError(f"{self.name} has no output {output!r}: choose one of {self.outputs}")
        if isinstance(tokens, Tokens | Latents):
            rows = self._decode_rows(tokens, chosen, raw, conditions)
            if len({row.shape for row in rows}) != 1:
                raise InputError(
                    f"rows decode to different extents {sorted({tuple(row.shape) for row in rows})}: "
                    "decode(list(tokens)) gives a list"
                )
            return torch.stack(rows)
        if not isinstance(tokens, Sequence) or not all(isinstance(item, Tokens | Latents) for item in tokens):
            raise InputError(f"decode takes Tokens, Latents or a sequence of them, got {_kind(tokens)}")
        return [row for item in tokens for row in self._decode_rows(item, chosen, raw, conditions)]

    def latents(self, x: Tensor, options: Options | None = None, *, raw: bool = False, **conditions: Any) -> Tensor:
        """What the quantizer would get: (batch, *positions, dim)."""
        with self._inference():
            inputs, _ = self._prepared(x, raw, conditions)
            return self.analysis(inputs, self._options(options, self.encode_options))

    def features(self, x: Tensor, **conditions: Any) -> Tensor:
        """What a language model gets where that is not an embedding of ids: the latents, unless a system says other."""
        return self.latents(x, **conditions)

    def embed(self, tokens: Tokens) -> Tensor:
        """Vectors for a language model's input: (batch, *positions, dim), differentiable in the codebook."""
        return self.quantizer.decode(self._stream(tokens).codes.to(self.device))

    def forward(self, x: Tensor, *, raw: bool = False, **conditions: Any) -> Reconstruction:
        """Encodes, quantizes and decodes with gradients.

        Args:
            x: a batch of one extent.
            raw: x is already in the network's range and layout, and so is the reconstruction.
            **conditions: as declared in `conditions`.
        """
        inputs, side = self._prepared(x, raw, conditions)
        z = self.analysis(inputs, self.encode_options())
        with torch.autocast(self.device.type, enabled=False):  # bf16 flips codes
            quantized = self.quantizer(z.float())
        outputs = self.synthesis(quantized.z.to(self.dtype), self.decode_options())
        rebuilt = outputs if raw else self.finish(outputs, side, **conditions)
        return Reconstruction(rebuilt, quantized, quantized.loss, dict(quantized.terms))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's weights. Codes are certified in float32; other types flip some."""
        return next(self.parameters()).dtype

    # --- files -----------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None, licence: str | None = None) -> Path:
        """Writes config.json and model.safetensors.

        Args:
            folder: where; an earlier saved folder at that path is replaced.
            dtype: store floating tensors as this (float16 halves the size); codes are those of the rounded weights.
            licence: licence of the weights, kept in config.json.
        """
        stored = {
            key: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
            for key, tensor in self.state_dict().items()
        }
        rounded = {key: as_float32(tensor) for key, tensor in stored.items()}
        facts: dict[str, Any] = {"externals": {}, "codes_hash": self._hash(rounded), "licence": licence}
        config = self.config.model_dump(mode="json")
        return write_folder(folder, kind="tokenizer", name=self.name, config=config, state=stored, facts=facts)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads a saved folder, ready to encode.

        Raises:
            CheckpointError: if it is damaged, of another system, or its weights are not those that it was saved with.
        """
        saved = read_folder(folder, "tokenizer", cls.name)
        tokenizer = cls.Config(**saved.header["config"]).build()
        if not isinstance(tokenizer, cls):
            raise CheckpointError(f"{folder}: its config builds a {type(tokenizer).__name__}, not a {cls.__name__}")
        fill(tokenizer, saved.state, str(folder))
        recorded = saved.header.get("codes_hash")
        if recorded is not None and recorded != tokenizer.codes_hash:
            raise CheckpointError(f"{folder}: the weights or the config were changed after it was saved (codes hash)")
        return tokenizer.eval()

    @property
    def codes_hash(self) -> str:
        """SHA-256 over everything that decides codes: two tokenizers with one hash give the same codes."""
        return self._hash(self.state_dict())

    def _hash(self, state: Mapping[str, Tensor]) -> str:
        facts = {
            "preprocessing": self.preprocessing(),
            "options": {key: repr(value) for key, value in sorted(vars(self.encode_options()).items())},
        }
        deciding = {key: state[key] for key in self._code_keys() & state.keys()}
        return codes_digest(self.name, self.config, self.codeless_fields, facts, deciding)

    def _code_keys(self) -> set[str]:
        keys = set()
        for part in self.code_parts:
            for path, module in self.get_submodule(part).named_modules(prefix=part):
                names = [
                    name for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
                ]
                keys |= {f"{path}.{name}" for name in names if name not in getattr(module, "statistics", ())}
        return keys

    # --- inside ----------------------------------------------------------------------------------------------------

    def _options(self, options: Options | None, kind: type[Options]) -> Options:
        if options is None:
            return kind()
        if not isinstance(options, kind):
            raise ConfigError(
                f"{self.name} takes options of type {kind.__qualname__}, got {type(options).__qualname__}"
            )
        return options

    def _check_conditions(self, conditions: Mapping[str, Any], encoding: bool) -> None:
        unknown = sorted(conditions.keys() - self.conditions.keys())
        if unknown:
            raise InputError(
                f"{self.name} does not take {unknown}; it takes {sorted(self.conditions) or 'no conditions'}"
            )
        missing = [name for name, each in self.conditions.items() if each.required and name not in conditions]
        if encoding and missing:
            raise InputError(f"{self.name} needs {missing} to encode")

    def _prepared(self, x: Tensor, raw: bool, conditions: Mapping[str, Any]) -> tuple[Tensor, dict[str, Side]]:
        """Network input on the network's device and in its type, and side information."""
        if raw:
            self.check_raw(x)
            return x.to(self.device, self.dtype), {}
        inputs, side = self.prepare(x, **conditions)
        return inputs.to(self.device, self.dtype), side

    def _encode_batch(self, x: Tensor, options: Options, raw: bool, conditions: Mapping[str, Any]) -> Tokens:
        self._check_conditions(conditions, encoding=True)
        with self._inference():
            inputs, side = self._prepared(x, raw, conditions)
            # One by one on a CPU: batching gains nothing there, and batch shapes move latents in the last bit.
            parts = inputs.split(1) if inputs.device.type == "cpu" else (inputs,)
            codes = torch.cat([self.encode_inputs(part, options, whole=raw) for part in parts])
        return Tokens.of(codes, self.quantizer.vocab, side=side)

    def _decode_rows(
        self, tokens: Tokens | Latents, options: Options, raw: bool, conditions: Mapping[str, Any]
    ) -> list[Tensor]:
        self._check_conditions(conditions, encoding=False)
        rows = []
        with self._inference():
            for index in range(len(tokens)):
                if isinstance(tokens, Latents):
                    vectors = tokens.values[index : index + 1].to(self.device)  # no quantizer in between
                else:
                    vectors = self.quantizer.decode(self._row_codes(tokens, index).to(self.device))
                outputs = self.decode_vectors(vectors.to(self.dtype), options, whole=raw).float()
                side = {name: value[index : index + 1] for name, value in tokens.side.items()}
                rows.append((outputs if raw else self.finish(outputs, side, **conditions))[0])
        return rows

    def _row_codes(self, tokens: Tokens, index: int) -> Tensor:
        stream = self._stream(tokens)
        codes = stream.codes[index : index + 1]
        return codes if stream.lengths is None else codes[:, : int(stream.lengths[index])]

    def _stream(self, tokens: Tokens) -> Stream:
        stream = tokens.only
        if self.grid_axes is not None and len(stream.spec.positions) != self.grid_axes:
            raise InputError(
                f"{self.name} decodes codes (batch, {'*, ' * self.grid_axes}slots), got {tuple(stream.codes.shape)}"
            )
        if stream.vocab != self.quantizer.vocab:
            raise InputError(f"these tokens have vocabulary {stream.vocab}, {self.name} has {self.quantizer.vocab}")
        if self.on_invalid == "clip":
            top = torch.tensor(stream.vocab, device=stream.codes.device) - 1
            return stream.map(torch.minimum(stream.codes.clamp(min=0), top), stream.lengths)
        tokens.check()
        return stream

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Evaluation mode, no gradients, float32 arithmetic; training flags come back afterwards."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # convolutions round to 10 bits otherwise
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False), exact:
                yield
        finally:
            for module in training:
                module.training = True


def codes_digest(
    name: str,
    config: Tokenizer.Config,
    codeless_fields: Sequence[str],
    facts: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> str:
    """SHA-256 over what decides codes.

    Args:
        name: of the system.
        config: its fields count, but for those marked as `Training` and those that match one of `codeless_fields`
            (patterns of dotted names).
        codeless_fields: fields that decide no code.
        facts: what else decides codes, as plain data.
        tensors: those that decide codes; floating ones count as float32.
    """
    fields = _flattened(config.model_dump(mode="json"))
    left_out = (*config.of_training(), *codeless_fields)
    recipe = {
        "name": name,
        "config": {
            field: value for field, value in fields.items() if not any(fnmatch(field, pattern) for pattern in left_out)
        },
        **facts,
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = as_float32(tensors[key]).detach().cpu().contiguous()
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flattened(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _kind(value: object) -> str:
    if isinstance(value, Sequence) and value and not isinstance(value, str):
        return f"a {type(value).__name__} of {type(value[0]).__name__}"
    return f"a {type(value).__name__}"
