"""Smalti's own photo tokenizer: a small residual network over finite scalar codes, quick enough for a laptop.

Source: our own. Codes as in "Finite Scalar Quantization: VQ-VAE Made Simple"; blocks without normalisation as in
"Enhanced Deep Residual Networks for Single Image Super-Resolution".

    image (B,3,H,W) ─4x4 pixels to channels─► blocks ─2x2─► blocks ─► z (B,H/8,W/8,D) ─round─► codes (B,H/8,W/8,1)
    image (B,3,H,W) ◄─channels to pixels───── blocks ◄────── blocks ◄─ z_q            ◄──────┘
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

import smalti.tokenizer
from smalti.image.base import ImageTokenizer
from smalti.quantize import BoundFSQ, Quantize, Scalars


class Block(nn.Module):
    """x + conv(silu(conv(x))); it starts as the identity, so depth needs no normalisation to train."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(x)))


class Encoder(nn.Module):
    """Pixels to latents: (B,3,H,W) -> (B,latent_dim,H/factor,W/factor)."""

    def __init__(self, patch: int, widths: tuple[int, ...], blocks: int, latent_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(patch), nn.Conv2d(3 * patch**2, widths[0], 3, padding=1)]
        for level, width in enumerate(widths):
            if level:
                layers += [nn.PixelUnshuffle(2), nn.Conv2d(4 * widths[level - 1], width, 1)]
            layers += [Block(width) for _ in range(blocks)]
        layers.append(nn.Conv2d(widths[-1], latent_dim, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Decoder(nn.Module):
    """Latents to pixels: (B,latent_dim,H/factor,W/factor) -> (B,3,H,W)."""

    def __init__(self, patch: int, widths: tuple[int, ...], blocks: int, latent_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(latent_dim, widths[-1], 3, padding=1)]
        for level in reversed(range(len(widths))):
            layers += [Block(widths[level]) for _ in range(blocks)]
            if level:
                layers += [nn.Conv2d(widths[level], 4 * widths[level - 1], 1), nn.PixelShuffle(2)]
        layers += [nn.Conv2d(widths[0], 3 * patch**2, 3, padding=1), nn.PixelShuffle(patch)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class PhotoTokenizer(ImageTokenizer):
    """Photos to one code per patch of `factor` x `factor` pixels, and back.

    Shape:
        x: (B,3,H,W) in [0,1] -> codes (B, ceil(H/factor), ceil(W/factor), 1)
    """

    name: ClassVar[str] = "smalti-photo"
    code_parts: ClassVar[tuple[str, ...]] = ("encoder", "quantizer")
    codeless_fields: ClassVar[tuple[str, ...]] = ("decoder_blocks",)

    class Config(smalti.tokenizer.Tokenizer.Config):
        """Sizes of the network.

        Args:
            patch: pixels that become channels at once, in both directions.
            widths: channels at each level, finest first; each further level halves the grid.
            encoder_blocks, decoder_blocks: residual blocks per level.
            levels: values of each latent dimension; their product is the vocabulary, at most 2^16.
        """

        patch: int = Field(4, ge=1, le=16)
        widths: tuple[int, ...] = Field((72, 144), min_length=1, max_length=5)
        encoder_blocks: int = Field(2, ge=1)
        decoder_blocks: int = Field(4, ge=1)
        levels: tuple[int, ...] = Field((8, 8, 8, 5, 5, 5), min_length=1)

        @field_validator("levels")
        @classmethod
        def _fits_16_bits(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
            if min(levels) < 2 or prod(levels) > 2**16:
                raise ValueError("levels must be at least 2 each, their product at most 2^16")
            return levels

        def build(self) -> PhotoTokenizer:
            return PhotoTokenizer(self)

        @classmethod
        def tiny(cls) -> Self:
            return cls(patch=2, widths=(8, 8), encoder_blocks=1, decoder_blocks=1, levels=(5, 5, 5))

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.factor = config.patch * 2 ** (len(config.widths) - 1)
        dim = len(config.levels)
        self.encoder = Encoder(config.patch, config.widths, config.encoder_blocks, dim)
        self.quantizer = Quantize(Scalars(config.levels, grid="fsq"), before=BoundFSQ(config.levels))
        self.decoder = Decoder(config.patch, config.widths, config.decoder_blocks, dim)

    def analysis(self, inputs: Tensor, options: Any) -> Tensor:
        return self.encoder(inputs.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)

    def synthesis(self, vectors: Tensor, options: Any) -> Tensor:
        return self.decoder(vectors.permute(0, 3, 1, 2))

    @classmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        return {"x": torch.rand(batch, 3, 19, 26, generator=torch.Generator().manual_seed(seed))}
