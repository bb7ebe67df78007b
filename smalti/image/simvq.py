"""SimVQ for images: a codebook that moves as a whole, by learning one linear map over frozen vectors.

Source: "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer" (2024), youngsheen/SimVQ.

    image ──► encoder ──► z (B,H/f,W/f,D) ──► nearest row of  C W' + b  ──► codes (B,H/f,W/f,1)
    image ◄── decoder ◄── z_q ◄───────────── gather rows

The networks are Open-MAGVIT2's. The audio half of the paper is `smalti.audio.simvq`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.checkpoint import KeyTable, drop, prefer_averaged, take
from smalti.config import Training
from smalti.errors import ConfigError
from smalti.folder import fill
from smalti.image.base import ImageTokenizer
from smalti.image.open_magvit2 import Decoder, Encoder, read_decoder, read_encoder
from smalti.quantize import Codebook, Commitment, Mapped, Quantize, Table
from smalti.tokenizer import Tokenizer

IGNORED = ("loss.*",)  # perceptual network and discriminator

KEYS = KeyTable(
    {
        "quantize.embedding.": "quantizer.alphabet.vectors.",
        "quantize.embedding_proj.": "quantizer.alphabet.vectors.network.",
    }
)


class SimVQImage(ImageTokenizer):
    """SimVQ's image tokenizer; see the module's docstring."""

    name: ClassVar[str] = "simvq/image"
    code_parts: ClassVar[tuple[str, ...]] = ("encoder", "quantizer")
    codeless_fields: ClassVar[tuple[str, ...]] = ("decoder.*",)

    class Config(Tokenizer.Config):
        """The networks, the codebook and its losses. Defaults: 65536 codes, 16x16 positions for 128x128 pixels.

        Args:
            encoder, decoder: the networks; the codebook's dimension is that of their latent.
            codes: number of rows of the codebook.
            commitment_weight: of the loss that draws latents to their codes; the other direction has weight 1.
            legacy_training: swap the two weights, a defect that the official code keeps as an option.
        """

        encoder: Encoder.Config = Encoder.Config()
        decoder: Decoder.Config = Decoder.Config()
        codes: int = Field(65536, ge=1)
        commitment_weight: Training[float] = Field(0.25, ge=0)
        legacy_training: Training[bool] = False

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.encoder.latent_channels != self.decoder.latent_channels:
                raise ValueError(
                    f"encoder and decoder must have the same latent channels, not {self.encoder.latent_channels} "
                    f"and {self.decoder.latent_channels}"
                )
            return self

        def build(self) -> SimVQImage:
            return SimVQImage(self)

        @classmethod
        def tiny(cls) -> Self:
            sizes: dict[str, Any] = {"widths": (32, 32), "blocks": 1, "latent_channels": 4}
            return cls(encoder=Encoder.Config(stem=32, **sizes), decoder=Decoder.Config(**sizes), codes=32)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.factor, self.channels = config.encoder.factor, config.encoder.image_channels
        dim, codebook, commitment = config.encoder.latent_channels, 1.0, config.commitment_weight
        if config.legacy_training:
            codebook, commitment = commitment, codebook
        base = torch.randn(config.codes, dim) * dim**-0.5
        self.encoder = config.encoder.build()
        self.quantizer = Quantize(
            Table(Mapped(base, nn.Linear(dim, dim), dim)), terms=[Codebook(codebook), Commitment(commitment)]
        )
        self.decoder = config.decoder.build()

    @classmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(seed)
        return {"x": torch.rand(batch, 3, 8, 8, generator=draw)}

    @classmethod
    def from_official(
        cls, config: Mapping[str, Any] | None, state: Mapping[str, Tensor], *, legacy_training: bool = False
    ) -> Self:
        """A published checkpoint; its moving averages are taken where it has them.

        Args:
            config: the yaml beside the checkpoint, its `model.init_args`, or None.
            state: official keys -> tensors.
            legacy_training: honour the configuration's `legacy`, which swaps the weights of the two losses.

        Raises:
            CheckpointError: if a key is missing, unknown, or of an impossible shape.
            ConfigError: if the configuration asks for something that no published model has.
        """
        settings = _settings(config or {})
        state = drop(prefer_averaged(state), IGNORED)
        encoder, decoder = _read_networks(settings, state)
        quantizer = settings.get("quantconfig", {})
        tokenizer = cls(
            cls.Config(
                encoder=encoder,
                decoder=decoder,
                codes=quantizer.get("n_e", take(state, "quantize.embedding.weight").shape[0]),
                commitment_weight=quantizer.get("beta", 0.25),
                legacy_training=legacy_training and quantizer.get("legacy", False),
            )
        )
        own = KEYS.own_state(state)
        fill(tokenizer, own, "the SimVQ checkpoint", KEYS.official_names(tokenizer.state_dict()))
        return tokenizer.eval()

    def analysis(self, inputs: Tensor, options: Any) -> Tensor:
        return self.encoder(inputs).permute(0, 2, 3, 1)

    def synthesis(self, vectors: Tensor, options: Any) -> Tensor:
        return self.decoder(vectors.permute(0, 3, 1, 2))


SimVQImage.presets = {
    "simvq_1k": SimVQImage.Config(codes=1024),
    "simvq_8k": SimVQImage.Config(codes=8192),
    "simvq_65k": SimVQImage.Config(codes=65536),
    "simvq_262k": SimVQImage.Config(codes=262144),
}


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    model = config["model"] if isinstance(config.get("model"), Mapping) else config
    return model.get("init_args", model)


def _read_networks(settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[Encoder.Config, Decoder.Config]:
    """The networks that a `ddconfig` describes; without one, sizes are read off the tensors."""
    if "ddconfig" not in settings:
        return read_encoder(state), read_decoder(state)
    sizes = settings["ddconfig"]
    missing = sorted({"ch", "ch_mult", "num_res_blocks", "in_channels", "out_ch", "z_channels"} - sizes.keys())
    if missing:
        raise ConfigError(f"ddconfig lacks {missing}")
    if sizes.get("double_z", False):
        raise ConfigError("ddconfig.double_z is True; every published SimVQ has False")
    common: dict[str, Any] = {
        "widths": tuple(sizes["ch"] * multiplier for multiplier in sizes["ch_mult"]),
        "blocks": sizes["num_res_blocks"],
        "latent_channels": sizes["z_channels"],
    }
    return (
        Encoder.Config(stem=sizes["ch"], image_channels=sizes["in_channels"], **common),
        Decoder.Config(image_channels=sizes["out_ch"], **common),
    )
