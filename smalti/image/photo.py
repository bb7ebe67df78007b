"""Smalti's own photo tokenizer: a small residual network around a quantizer, quick enough for a laptop.

Source: our own. Channel norms and zero-started branches keep the network trainable at high rates; any quantizer
whose codes lie on the latents' positions can stand in the middle, by its name.

    image (B,3,H,W) ─pixels to channels─► blocks ─2x2─► blocks ─► z (B,H/f,W/f,D) ─quantizer─► codes (B,H/f,W/f,slots)
    image (B,3,H,W) ◄─channels to pixels─ blocks ◄────── blocks ◄─ z_q            ◄──────────┘
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

import smalti.tokenizer
from smalti.image.base import ImageTokenizer
from smalti.quantize.named.choice import Choice


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B,C,H,W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """x + conv(silu(conv(norm(x)))); it starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(self.norm(x))))


class Encoder(nn.Module):
    """Pixels to latents: (B,3,H,W) -> (B,latent_dim,H/factor,W/factor)."""

    def __init__(self, patch: int, widths: tuple[int, ...], blocks: tuple[int, ...], latent_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(patch), nn.Conv2d(3 * patch**2, widths[0], 3, padding=1)]
        for level, width in enumerate(widths):
            if level:
                layers += [nn.PixelUnshuffle(2), nn.Conv2d(4 * widths[level - 1], width, 1)]
            layers += [Block(width) for _ in range(blocks[level])]
        layers += [ChannelNorm(widths[-1]), nn.Conv2d(widths[-1], latent_dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Decoder(nn.Module):
    """Latents to pixels: (B,latent_dim,H/factor,W/factor) -> (B,3,H,W)."""

    def __init__(self, patch: int, widths: tuple[int, ...], blocks: tuple[int, ...], latent_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(latent_dim, widths[-1], 3, padding=1)]
        for level in reversed(range(len(widths))):
            layers += [Block(widths[level]) for _ in range(blocks[level])]
            if level:
                layers += [nn.Conv2d(widths[level], 4 * widths[level - 1], 1), nn.PixelShuffle(2)]
        layers += [ChannelNorm(widths[0]), nn.Conv2d(widths[0], 3 * patch**2, 3, padding=1), nn.PixelShuffle(patch)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class PhotoTokenizer(ImageTokenizer):
    """Photos to a few codes per patch of `factor` x `factor` pixels, and back.

    Shape:
        x: (B,3,H,W) in [0,1] -> codes (B, ceil(H/factor), ceil(W/factor), slots)
    """

    name: ClassVar[str] = "smalti-photo"
    code_parts: ClassVar[tuple[str, ...]] = ("encoder", "quantizer")
    codeless_fields: ClassVar[tuple[str, ...]] = ("decoder_blocks",)

    class Config(smalti.tokenizer.Tokenizer.Config):
        """Sizes of the network; the defaults are those of `smalti-photo-f8`.

        Args:
            patch: pixels that become channels at once, in both directions.
            widths: channels at each level, finest first; each further level halves the grid.
            encoder_blocks, decoder_blocks: residual blocks of each level, finest first.
            quantizer: by name; its dimension is that of the latents.
        """

        patch: int = Field(4, ge=1, le=32)
        widths: tuple[int, ...] = Field((64, 160), min_length=1, max_length=5)
        encoder_blocks: tuple[int, ...] = (2, 3)
        decoder_blocks: tuple[int, ...] = (2, 4)
        quantizer: Choice = Choice(type="residual-diveq", dim=16, codes=256, levels=2, expire=0.03, eval_beam=16)

        @model_validator(mode="after")
        def _levels(self) -> Self:
            if not len(self.widths) == len(self.encoder_blocks) == len(self.decoder_blocks):
                raise ValueError("widths, encoder_blocks and decoder_blocks need one entry per level")
            return self

        def build(self) -> PhotoTokenizer:
            return PhotoTokenizer(self)

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                patch=2,
                widths=(8, 8),
                encoder_blocks=(1, 1),
                decoder_blocks=(1, 1),
                quantizer=Choice(type="residual-diveq", dim=4, codes=16, levels=2),
            )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.factor = config.patch * 2 ** (len(config.widths) - 1)
        latent_dim = config.quantizer.latent_dim
        self.encoder = Encoder(config.patch, config.widths, config.encoder_blocks, latent_dim)
        self.quantizer = config.quantizer.build()
        self.decoder = Decoder(config.patch, config.widths, config.decoder_blocks, latent_dim)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def analysis(self, inputs: Tensor, options: Any) -> Tensor:
        return self.encoder(inputs.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)

    def synthesis(self, vectors: Tensor, options: Any) -> Tensor:
        return self.decoder(vectors.permute(0, 3, 1, 2))

    @classmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        return {"x": torch.rand(batch, 3, 19, 26, generator=torch.Generator().manual_seed(seed))}


PhotoTokenizer.presets = {
    "smalti-photo-f8": PhotoTokenizer.Config(),
    "smalti-photo-f16": PhotoTokenizer.Config(patch=8, widths=(96, 168), encoder_blocks=(2, 2), decoder_blocks=(2, 3)),
}
