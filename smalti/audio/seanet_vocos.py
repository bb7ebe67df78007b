"""The codec of a SEANet encoder, a quantizer and a Vocos decoder: what WavTokenizer and SimVQ's audio tokenizer share.

A base, not a system.

    (B,1,T) ──► SEANet ──► z (B,L,D) ──► quantizer ──► codes (B,L,1)                   L = ceil(T / hop)
    (B,1,L·hop) ◄── ISTFT head ◄── Vocos backbone ◄── z_q ◄────┘

A system gives its configuration, builds its quantizer, and says under which names its checkpoints keep the networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from smalti.audio.base import AudioTokenizer, Window
from smalti.audio.seanet import SEANetEncoder
from smalti.audio.vocos import ISTFTHead, VocosBackbone
from smalti.checkpoint import KeyTable, drop, fold_weight_norm, take
from smalti.errors import CheckpointError, InputError
from smalti.folder import fill
from smalti.quantize import Quantizer
from smalti.tokenizer import Tokenizer


class CodecConfig(Tokenizer.Config):
    """The networks; the defaults are WavTokenizer's at 75 tokens a second.

    Args:
        sample_rate: Hz.
        encoder, backbone, head: the networks; their sizes must fit together.
        window: how long recordings are cut, or None for one pass whatever their length.
    """

    sample_rate: int = Field(24_000, ge=1)
    encoder: SEANetEncoder.Config = SEANetEncoder.Config()
    backbone: VocosBackbone.Config = VocosBackbone.Config()
    head: ISTFTHead.Config = ISTFTHead.Config()
    window: Window | None = Window()

    @model_validator(mode="after")
    def _check(self) -> Self:
        pairs = {
            "encoder.dimension and backbone.input_channels": (self.encoder.dimension, self.backbone.input_channels),
            "backbone.dim and head.dim": (self.backbone.dim, self.head.dim),
            "the product of encoder.ratios and head.hop": (self.encoder.hop, self.head.hop),
        }
        for names, (one, other) in pairs.items():
            if one != other:
                raise ValueError(f"{names} must be equal, not {one} and {other}")
        if self.encoder.channels != 1:
            raise ValueError(f"encoder.channels must be 1, as the decoder gives, not {self.encoder.channels}")
        return self


def tiny_networks(*, causal: bool, bandwidths: int) -> dict[str, Any]:
    """Fields of a tiny CodecConfig, for checks."""
    return {
        "sample_rate": 8_000,
        "encoder": SEANetEncoder.Config(filters=4, dimension=8, ratios=(3, 2), lstm_layers=1, causal=causal),
        "backbone": VocosBackbone.Config(
            input_channels=8, dim=32, intermediate_dim=32, layers=1, bandwidths=bandwidths, dropout=0.0
        ),
        "head": ISTFTHead.Config(dim=32, n_fft=24, hop=6),
    }


class SEANetVocos(AudioTokenizer):
    """Base of the systems.

    Shape:
        x: (B,C,T) at any rate -> codes (B, ceil(T' / hop), 1), T' the samples at the model's rate
    """

    code_parts: ClassVar[tuple[str, ...]] = ("encoder", "quantizer")
    codeless_fields: ClassVar[tuple[str, ...]] = ("backbone.*", "head.*")
    config: CodecConfig

    def __init__(self, config: CodecConfig, quantizer: Quantizer) -> None:
        super().__init__(config)
        self.sample_rate, self.hop, self.window = config.sample_rate, config.encoder.hop, config.window
        self.encoder = config.encoder.build()
        self.quantizer = quantizer
        self.backbone = config.backbone.build()
        self.head = config.head.build()

    @classmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(seed)
        return {"x": torch.rand(batch, 1, 250, generator=draw) - 0.5}

    def folded(self) -> Self:
        """The same tokenizer with plain weights in its encoder, which are quicker than the weight norm of training."""
        encoder = self.config.encoder.replace(weight_norm=False)
        plain: Self = self.config.replace(encoder=encoder).build()
        fill(plain, fold_weight_norm(self.state_dict()), "the folded tokenizer")
        return plain.to(self.device).train(self.training)

    def analysis(self, inputs: Tensor, options: Any) -> Tensor:
        if inputs.ndim != 3 or inputs.shape[1] != 1:
            raise InputError(f"the network takes (batch, 1, time), got {tuple(inputs.shape)}")
        return self.encoder(inputs.transpose(1, 2))

    def synthesis(self, vectors: Tensor, options: Any) -> Tensor:
        return self.head(self.backbone(vectors))[:, None]


# --- published checkpoints -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where a published file keeps what.

    Args:
        encoder: beginning of the encoder's numbered layers.
        conv: what stands between a layer's number and the tensors of its convolution.
        names: other official beginnings -> ours; the first that fits is used.
        fields: dotted places in the published configuration -> dotted fields of ours.
        ignored: patterns of keys that are not part of the tokenizer.
    """

    encoder: str
    conv: str
    names: Mapping[str, str]
    fields: Mapping[str, str]
    ignored: Sequence[str] = ()


def read_networks(layout: Layout, state: Mapping[str, Tensor], *, causal: bool) -> tuple[dict[str, Any], KeyTable]:
    """The networks' configurations, read off the tensors, and the names of all tensors.

    Args:
        layout: of the file.
        state: official key -> tensor, weight norm folded.
        causal: whether the encoder is; no tensor tells.

    Returns:
        fields of CodecConfig, and the table of names.

    Raises:
        CheckpointError: if tensors are missing or make no such codec.
    """
    encoder = SEANetEncoder.Config.of_official(state, layout.encoder, layout.conv, causal=causal)
    table = KeyTable({**encoder.official_names(layout.encoder, layout.conv, "encoder."), **layout.names})
    backbone = VocosBackbone.Config.of_official(
        {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    )
    rows, dim = take(state, table.official("head.out.weight")).shape
    head = ISTFTHead.Config(dim=dim, n_fft=rows - 2, hop=encoder.hop)
    return {"encoder": encoder, "backbone": backbone, "head": head}, table


def tokenizer_part(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a published state belongs to the tokenizer, with plain convolution weights."""
    return fold_weight_norm(drop(state, layout.ignored))


def constructor_arguments(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The arguments inside a Lightning yaml (`model.init_args`), or the mapping itself."""
    for step in ("model", "init_args"):
        inner = (config or {}).get(step)
        config = inner if isinstance(inner, Mapping) else config
    return config or {}


def stated(layout: Layout, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the published configuration states, under our dotted names."""
    found = {}
    for place, name in layout.fields.items():
        value: Any = arguments
        for step in place.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        if value is not None:
            found[name] = tuple(value) if isinstance(value, list) else value
    return found


def check_stated(fields: Mapping[str, Any], config: CodecConfig) -> None:
    """Raises CheckpointError if the published configuration states another size than the tensors have."""
    for name, value in fields.items():
        read = reduce(getattr, name.split("."), config)
        if read != value:
            raise CheckpointError(f"the configuration says {name} = {value!r}, the tensors say {read!r}")


def fill_official(tokenizer: SEANetVocos, table: KeyTable, state: Mapping[str, Tensor], what: str) -> None:
    """Fills every tensor from a folded official state, strictly.

    The head's window may be missing: it is always Hann's, and the layout of transformers leaves it out.
    """
    own = table.own_state(state)
    own.setdefault("head.window", tokenizer.head.window)
    fill(tokenizer, own, what, table.official_names({**tokenizer.state_dict(), **own}))
