"""VQGAN: a convolutional autoencoder whose latents are replaced by vectors of one codebook.

Source: "Taming Transformers for High-Resolution Image Synthesis" (2020), CompVis/taming-transformers; also the VQ
autoencoders of latent diffusion, and what diffusers calls VQModel.

    image ──► encoder ──► quant_conv ──► z (B,H/f,W/f,D) ──► nearest row ──► codes (B,H/f,W/f,1)
    image ◄── decoder ◄── post_quant_conv ◄── z_q ◄───────── gather rows

The codebook is learned by gradient, by moving averages, or is chosen from by Gumbel-softmax logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from smalti.folder import fill
from smalti.image.taming import published
from smalti.image.taming.codebook import Codebook, GradientCodebook, GumbelCodebook, Remap, Remapped
from smalti.image.vqgan import Decoder, Encoder, QuantizedAutoencoder


class VQGAN(QuantizedAutoencoder):
    """The classic VQGAN; see the module's docstring."""

    name: ClassVar[str] = "vqgan"

    class Config(QuantizedAutoencoder.Config):
        """The networks, the codebook, and the renumbering of its codes if there is one.

        The defaults are the ImageNet model with 16x16 positions for 256x256 pixels and 16384 codes.
        """

        codebook: Codebook = GradientCodebook()
        remap: Remap | None = None

        def build(self) -> VQGAN:
            return VQGAN(self)

        @classmethod
        def tiny(cls) -> Self:
            sizes: dict[str, Any] = {"widths": (32, 32), "attention_levels": (1,), "latent_channels": 8}
            return cls(
                encoder=Encoder.Config(stem=32, blocks=1, **sizes),
                decoder=Decoder.Config(blocks=2, **sizes),
                codebook=GradientCodebook(codes=32, dim=4),
            )

    def __init__(self, config: Config) -> None:
        quantizer = config.codebook.build()
        if config.remap is not None:
            quantizer = Remapped(quantizer, torch.arange(config.remap.used), config.remap.unknown)
        super().__init__(config, quantizer)

    @classmethod
    def from_official(
        cls, config: Mapping[str, Any] | None, state: Mapping[str, Tensor], *, legacy_training: bool = False
    ) -> Self:
        """A published checkpoint: of taming-transformers, latent diffusion, or diffusers (VQModel).

        Args:
            config: the yaml beside the checkpoint or its `model.params`, diffusers' config.json, or None.
            state: official keys -> tensors.
            legacy_training: weigh the two losses as the published models were trained, to go on with their training.

        Raises:
            CheckpointError: if a key is missing, unknown, or of an impossible shape.
            ConfigError: if the configuration asks for something that no published model has.
        """
        params = published.parameters(config or {})
        state = published.taming_keys(params, state)
        encoder, decoder = published.read_networks(params, state)
        built = cls.Config(
            encoder=encoder,
            decoder=decoder,
            codebook=published.read_codebook(params, state, legacy_training),
            remap=published.read_remap(params, state),
        )
        tokenizer = cls(built)
        own_names = published.own_names(built.codebook, built.remap)
        fill(
            tokenizer,
            {own_names.get(key, key): published.as_linear(key, tensor) for key, tensor in state.items()},
            "the VQGAN checkpoint",
            {own: key for key, own in own_names.items()},
        )
        return tokenizer.eval()


def _openimages_f8(codes: int) -> VQGAN.Config:
    """Latent diffusion's models, with latents of four dimensions."""
    sizes: dict[str, Any] = {"widths": (128, 256, 256, 512), "attention_levels": (3,), "latent_channels": 4}
    return VQGAN.Config(
        encoder=Encoder.Config(**sizes), decoder=Decoder.Config(**sizes), codebook=GradientCodebook(codes=codes, dim=4)
    )


def _gumbel_f8() -> VQGAN.Config:
    sizes: dict[str, Any] = {"widths": (128, 128, 256, 512), "attention_levels": (3,)}
    return VQGAN.Config(
        encoder=Encoder.Config(**sizes), decoder=Decoder.Config(**sizes), codebook=GumbelCodebook(codes=8192)
    )


VQGAN.presets = {
    "imagenet_f16_16384": VQGAN.Config(),
    "imagenet_f16_1024": VQGAN.Config(codebook=GradientCodebook(codes=1024)),
    "openimages_f8_16384": _openimages_f8(16384),
    "openimages_f8_256": _openimages_f8(256),
    "gumbel_f8": _gumbel_f8(),
}
