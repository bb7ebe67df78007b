"""The convolutional autoencoder of Open-MAGVIT2: no attention, no biases beside the norms. A base, not a system.

Source: "Open-MAGVIT2: An Open-Source Project Toward Democratizing Auto-regressive Visual Generation" (2024),
TencentARC/SEED-Voken; SimVQ and WeTok build on the same network.

    image (B,3,H,W) ──► conv_in ──► level 0 ──► ... ──► level n-1 ──► mid ──► norm, swish, conv_out ──► (B,Z,H/f,W/f)
    image (B,3,H,W) ◄── norm, swish, conv_out ◄── level 0 ◄── ... ◄── level n-1 ◄── mid ◄── conv_in ◄── (B,Z,H/f,W/f)

    level  residual blocks, then a resampling by 2 (not at the last): a strided convolution down, depth to space up
    mid    as many residual blocks as a level
    f      2 ** (n-1)

Parameters carry the official names.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from smalti.checkpoint import take
from smalti.image.vqgan import GROUPS, LevelsConfig, Norm, ResnetBlock, read_levels
from smalti.nn.convolution import channels_last, swish


class Encoder(nn.Module):
    """Image to latent.

    Shape:
        (batch, image channels, H, W)  ->  (batch, latent channels, ceil(H / factor), ceil(W / factor))
    """

    class Config(LevelsConfig):
        """See `LevelsConfig`; the middle has as many blocks as a level.

        Args:
            stem: channels before the first level.
        """

        widths: tuple[int, ...] = Field((128, 256, 256, 512), min_length=1)
        latent_channels: int = Field(128, ge=1)
        stem: int = Field(128, ge=GROUPS, multiple_of=GROUPS)

        def build(self) -> Encoder:
            return Encoder(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.image_channels, config.stem, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            DownLevel(inputs, width, config.blocks, last=level == len(widths) - 1)
            for level, (inputs, width) in enumerate(pairwise((config.stem, *widths)))
        )
        self.mid_block = residual_blocks(widths[-1], widths[-1], config.blocks)
        self.norm_out = Norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 1)
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        for level in self.down:
            x = level(x)
        return self.conv_out(swish(self.norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latent to image.

    Shape:
        (batch, latent channels, h, w)  ->  (batch, image channels, h * factor, w * factor)
    """

    class Config(LevelsConfig):
        """See `LevelsConfig`; the middle has as many blocks as a level."""

        widths: tuple[int, ...] = Field((128, 256, 256, 512), min_length=1)
        latent_channels: int = Field(128, ge=1)

        def build(self) -> Decoder:
            return Decoder(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid_block = residual_blocks(widths[-1], widths[-1], config.blocks)
        self.up = nn.ModuleList(
            UpLevel(inputs, width, config.blocks, last=level == 0)
            for level, (width, inputs) in enumerate(pairwise((*widths, widths[-1])))
        )
        self.norm_out = Norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.image_channels, 3, padding=1)
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x.contiguous(memory_format=torch.channels_last)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(swish(self.norm_out(x)))


class DownLevel(nn.Module):
    """A level of the encoder: it halves the resolution at its end, unless it is the last one."""

    def __init__(self, inputs: int, width: int, blocks: int, *, last: bool) -> None:
        super().__init__()
        self.block = residual_blocks(inputs, width, blocks)
        # Zeros on both sides, unlike VQGAN's: odd extents are rounded up.
        self.downsample = nn.Identity() if last else nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.block(x))


class UpLevel(nn.Module):
    """A level of the decoder: it doubles the resolution at its end, unless it is the last one."""

    def __init__(self, inputs: int, width: int, blocks: int, *, last: bool) -> None:
        super().__init__()
        self.block = residual_blocks(inputs, width, blocks)
        self.upsample = nn.Identity() if last else Upsampler(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(self.block(x))


class Upsampler(nn.Module):
    """A convolution to four times the channels, which become a 2x2 block of pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(self.conv1(x))


def residual_blocks(inputs: int, width: int, count: int) -> nn.Sequential:
    """Residual blocks without biases; the first one changes the width."""
    return nn.Sequential(*(ResnetBlock(width if index else inputs, width, bias=False) for index in range(count)))


def depth_to_space(x: Tensor) -> Tensor:
    """Channels (dy, dx, c), slowest first, to pixels: (B, 4C, H, W) -> (B, C, 2H, 2W).

    This is ONNX's order DCR, not that of `torch.pixel_shuffle`, whose channels are (c, dy, dx).
    """
    batch, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(batch, height, width, 2, 2, channels // 4)
    return rows.transpose(2, 3).reshape(batch, 2 * height, 2 * width, channels // 4).permute(0, 3, 1, 2)


def read_encoder(state: Mapping[str, Tensor]) -> Encoder.Config:
    """Sizes of the encoder, off tensors under the official names (`encoder.*`).

    Raises:
        CheckpointError: if a tensor that says a size is missing, or the sizes are not legal.
    """
    stem = take(state, "encoder.conv_in.weight")
    return Encoder.Config(
        image_channels=stem.shape[1],
        stem=stem.shape[0],
        latent_channels=take(state, "encoder.conv_out.weight").shape[0],
        **read_levels(state, "encoder.down"),
    )


def read_decoder(state: Mapping[str, Tensor]) -> Decoder.Config:
    """Sizes of the decoder, off tensors under the official names (`decoder.*`); see `read_encoder`."""
    return Decoder.Config(
        image_channels=take(state, "decoder.conv_out.weight").shape[0],
        latent_channels=take(state, "decoder.conv_in.weight").shape[1],
        **read_levels(state, "decoder.up"),
    )
