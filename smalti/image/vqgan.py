"""The convolutional autoencoder of VQGAN, which half of the field's image tokenizers build on. A base, not a system.

Source: "Taming Transformers for High-Resolution Image Synthesis" (2020), CompVis/taming-transformers; the same network
under other names is in latent diffusion, LlamaGen, RQ-VAE, FQGAN, FVQ and VAR.

    image (B,3,H,W) ──► conv_in ──► level 0 ──► ... ──► level n-1 ──► mid ──► norm, swish, conv_out ──► (B,Z,H/f,W/f)
    image (B,3,H,W) ◄── norm, swish, conv_out ◄── level 0 ◄── ... ◄── level n-1 ◄── mid ◄── conv_in ◄── (B,Z,H/f,W/f)

    level  residual blocks, each followed by attention where the level has it; then a resampling by 2 (not at the last)
    mid    residual block, attention, residual block
    f      2 ** (n-1)

Parameters carry taming's names. Weights and activations are laid out channels-last; where no gradient is recorded,
activations are overwritten as soon as they are not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from statistics import mode
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

import smalti.config
from smalti.checkpoint import take
from smalti.config import Training
from smalti.errors import CheckpointError
from smalti.image.base import ImageTokenizer
from smalti.nn.convolution import channels_last, swish, upsampled_conv2d
from smalti.quantize import Quantizer
from smalti.tokenizer import Tokenizer

GROUPS = 32


class LevelsConfig(smalti.config.Config):
    """Sizes of one half of a convolutional autoencoder.

    Args:
        image_channels: channels of the image.
        widths: channels of each level, full resolution first; every level has half the resolution of the one before.
        blocks: residual blocks per level.
        latent_channels: channels of the latent.
    """

    image_channels: int = Field(3, ge=1)
    widths: tuple[int, ...] = Field((128, 128, 256, 256, 512), min_length=1)
    blocks: int = Field(2, ge=1)
    latent_channels: int = Field(256, ge=1)

    @property
    def factor(self) -> int:
        """Pixels per latent position, in both directions."""
        return 2 ** (len(self.widths) - 1)

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        if any(width < 1 or width % GROUPS for width in self.widths):
            raise ValueError(f"widths {self.widths} must be multiples of {GROUPS}, the groups of the normalisation")
        return self


class NetworkConfig(LevelsConfig):
    """Sizes of one half of this autoencoder; see `LevelsConfig`.

    Args:
        attention_levels: levels with attention after every residual block.
        dropout: probability inside residual blocks, in training.
    """

    attention_levels: tuple[int, ...] = (4,)
    dropout: Training[float] = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_attention(self) -> Self:
        if not set(self.attention_levels) <= set(range(len(self.widths))):
            raise ValueError(f"attention_levels {self.attention_levels} must be among 0..{len(self.widths) - 1}")
        return self


class Encoder(nn.Module):
    """Image to latent.

    Shape:
        (batch, image channels, H, W)  ->  (batch, latent channels, H // factor, W // factor)
    """

    class Config(NetworkConfig):
        """See `NetworkConfig`.

        Args:
            stem: channels before the first level.
            double_latent: give twice the latent channels (means and log variances).
        """

        stem: int = Field(128, ge=GROUPS, multiple_of=GROUPS)
        double_latent: bool = False

        def build(self) -> Encoder:
            return Encoder(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.image_channels, config.stem, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(inputs, width, config, attention=level in config.attention_levels, last=level == len(widths) - 1)
            for level, (inputs, width) in enumerate(pairwise((config.stem, *widths)))
        )
        self.mid = Middle(widths[-1], config.dropout)
        self.norm_out = Norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels * (1 + config.double_latent), 3, padding=1)
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        for level in self.down:
            x = level(x)
        return self.conv_out(swish(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latent to image; it has one residual block per level more than its encoder, as published.

    Shape:
        (batch, latent channels, h, w)  ->  (batch, image channels, h * factor, w * factor)
    """

    class Config(NetworkConfig):
        """See `NetworkConfig`."""

        blocks: int = Field(3, ge=1)

        def build(self) -> Decoder:
            return Decoder(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.dropout)
        self.up = nn.ModuleList(
            UpLevel(inputs, width, config, attention=level in config.attention_levels, last=level == 0)
            for level, (width, inputs) in enumerate(pairwise((*widths, widths[-1])))
        )
        self.norm_out = Norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.image_channels, 3, padding=1)
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x.contiguous(memory_format=torch.channels_last)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(swish(self.norm_out(x)))


class QuantizedAutoencoder(ImageTokenizer):
    """What the tokenizers of this family are: the two networks around a quantizer, with a 1x1 convolution on each side.

        encoder ──► quant_conv ──► quantizer ──► post_quant_conv ──► decoder

    Args:
        config: of the system, whose Config adds what its quantizer needs.
        quantizer: built by the system.
    """

    code_parts: ClassVar[tuple[str, ...]] = ("encoder", "quant_conv", "quantizer")
    codeless_fields: ClassVar[tuple[str, ...]] = ("decoder.*",)

    class Config(Tokenizer.Config):
        """The networks; each may have its own widths, blocks and attention, but not its own factor."""

        encoder: Encoder.Config = Encoder.Config()
        decoder: Decoder.Config = Decoder.Config()

        @model_validator(mode="after")
        def _check_factors(self) -> Self:
            if self.encoder.factor != self.decoder.factor:
                raise ValueError(
                    f"encoder and decoder must have as many levels, not {len(self.encoder.widths)} and "
                    f"{len(self.decoder.widths)}"
                )
            return self

    def __init__(self, config: Config, quantizer: Quantizer) -> None:
        super().__init__(config)
        encoder, decoder = config.encoder, config.decoder
        self.factor, self.channels = encoder.factor, encoder.image_channels
        self.encoder = encoder.build()
        self.quant_conv = nn.Conv2d(encoder.latent_channels, quantizer.dim, 1)
        self.quantizer = quantizer
        self.post_quant_conv = nn.Conv2d(quantizer.dim, decoder.latent_channels, 1)
        self.decoder = decoder.build()

    @classmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        encoder = cls.Config.tiny().encoder
        size = 4 * encoder.factor
        draw = torch.Generator().manual_seed(seed)
        return {"x": torch.rand(batch, encoder.image_channels, size, size, generator=draw)}

    def analysis(self, inputs: Tensor, options: Any) -> Tensor:
        return self.quant_conv(self.encoder(inputs)).permute(0, 2, 3, 1)

    def synthesis(self, vectors: Tensor, options: Any) -> Tensor:
        return self.decoder(self.post_quant_conv(vectors.permute(0, 3, 1, 2)))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where the level has it."""

    def __init__(self, inputs: int, width: int, config: NetworkConfig, *, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(width if index else inputs, width, dropout=config.dropout) for index in range(config.blocks)
        )
        self.attn = nn.ModuleList(AttnBlock(width) if attention else nn.Identity() for _ in range(config.blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block, attn in zip(self.block, self.attn, strict=True):
            x = attn(block(x))
        return x


class DownLevel(Level):
    """A level of the encoder: it halves the resolution at its end, unless it is the last one."""

    def __init__(self, inputs: int, width: int, config: NetworkConfig, *, attention: bool, last: bool) -> None:
        super().__init__(inputs, width, config, attention=attention)
        self.downsample = nn.Identity() if last else Downsample(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(super().forward(x))


class UpLevel(Level):
    """A level of the decoder: it doubles the resolution at its end, unless it is the last one."""

    def __init__(self, inputs: int, width: int, config: NetworkConfig, *, attention: bool, last: bool) -> None:
        super().__init__(inputs, width, config, attention=attention)
        self.upsample = nn.Identity() if last else Upsample(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(super().forward(x))


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout=dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResnetBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 convolution on the shortcut where the width changes."""

    def __init__(self, inputs: int, outputs: int, *, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.norm1 = Norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = Norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.nin_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(swish(self.norm1(x)))
        h = self.conv2(self.dropout(swish(self.norm2(h))))
        return h.add_(self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Self-attention over all positions, one head, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # Channels-last activations are rows of positions already: no copy on the way in or out.
        q, k, v = (conv(h).permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        h = h.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)
        return self.proj_out(h).add_(x)


class Downsample(nn.Module):
    """Halves the resolution: 3x3 convolution of stride 2, with zeros below and to the right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the resolution: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsampled_conv2d(x, self.conv.weight, self.conv.bias)


class Norm(nn.GroupNorm):
    """The normalisation of all these networks: 32 groups of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        # torch.nn's own call refuses groups of one value, which narrow networks have where an image is one position.
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def read_encoder(state: Mapping[str, Tensor]) -> Encoder.Config:
    """Sizes of the encoder, off tensors under taming's names (`encoder.*`).

    Raises:
        CheckpointError: if a tensor that says a size is missing, or the sizes are not legal.
    """
    stem = take(state, "encoder.conv_in.weight")
    return Encoder.Config(
        image_channels=stem.shape[1],
        stem=stem.shape[0],
        latent_channels=take(state, "encoder.conv_out.weight").shape[0],
        attention_levels=_read_attention(state, "encoder.down"),
        **read_levels(state, "encoder.down"),
    )


def read_decoder(state: Mapping[str, Tensor]) -> Decoder.Config:
    """Sizes of the decoder, off tensors under taming's names (`decoder.*`); see `read_encoder`."""
    return Decoder.Config(
        image_channels=take(state, "decoder.conv_out.weight").shape[0],
        latent_channels=take(state, "decoder.conv_in.weight").shape[1],
        attention_levels=_read_attention(state, "decoder.up"),
        **read_levels(state, "decoder.up"),
    )


def read_levels(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """`widths` and `blocks` of a half whose residual blocks are called `PREFIX.LEVEL.block.NUMBER.{conv1,norm2,conv2}`.

    Raises:
        CheckpointError: if there are no levels, or one is missing.
    """
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.block\.(\d+)\.(conv1|norm2|conv2)\.")
    found = [(int(match[1]), int(match[2]), state[key]) for key in state if (match := pattern.match(key))]
    widths: dict[int, list[int]] = {}
    for level, _, tensor in found:
        widths.setdefault(level, []).append(len(tensor))
    if not widths or sorted(widths) != list(range(len(widths))):
        raise CheckpointError(f"the checkpoint has levels {sorted(widths)} of {prefix}.LEVEL.block: some are missing")
    return {
        # Many tensors say a level's width, so that a wrong one among them is the one that gets named.
        "widths": tuple(mode(widths[level]) for level in sorted(widths)),
        "blocks": 1 + max(number for _, number, _ in found),
    }


def _read_attention(state: Mapping[str, Tensor], prefix: str) -> tuple[int, ...]:
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.attn\.")
    return tuple(sorted({int(match[1]) for key in state if (match := pattern.match(key))}))
