"""SimVQ for audio: WavTokenizer's codec made causal, with a codebook that moves as a whole.

Source: "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer" (2024), youngsheen/SimVQ.

    24 kHz (B,1,T) ──► causal SEANet ──► z (B,L,512) ──► nearest row of  C W' + b  ──► codes (B,L,1)
    24 kHz (B,1,L·320) ◄── ISTFT head ◄── attention + ConvNeXt ◄── z_q ◄── gather rows             L = ceil(T / 320)

C is frozen and random; training moves W and b, and with them all rows at once, so none is left behind. Tokens do not
hear what comes later, but for the first ten or so, whose left padding is mirrored sound. The decoder is not causal. The
image half of the paper is `smalti.image.simvq`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from smalti.audio.seanet import SEANetEncoder
from smalti.audio.seanet_vocos import (
    CodecConfig,
    Layout,
    SEANetVocos,
    check_stated,
    constructor_arguments,
    fill_official,
    read_networks,
    stated,
    tiny_networks,
    tokenizer_part,
)
from smalti.audio.vocos import VocosBackbone
from smalti.checkpoint import prefer_averaged, take
from smalti.config import Training
from smalti.quantize import Codebook, Commitment, Mapped, Quantize, Table

LAYOUT = Layout(
    encoder="encoder.model.",
    conv=".conv.conv",
    names={
        "quantize.embedding.weight": "quantizer.alphabet.vectors.weight",
        "quantize.embedding_proj.": "quantizer.alphabet.vectors.network.",
        "head.istft.window": "head.window",
    },
    fields={
        "sample_rate": "sample_rate",
        "ddconfig.n_filters": "encoder.filters",
        "ddconfig.dimension": "encoder.dimension",
        "ddconfig.ratios": "encoder.ratios",
        "ddconfig.causal": "encoder.causal",
        "quantconfig.n_e": "codes",
        "quantconfig.e_dim": "encoder.dimension",
        "quantconfig.beta": "commitment_weight",
        "quantconfig.legacy": "legacy_training",
    },
    ignored=("decoder.*", "loss.*"),  # a SEANet decoder that is never used; discriminators
)


class SimVQAudio(SEANetVocos):
    """SimVQ's audio tokenizer; see the module's docstring."""

    name: ClassVar[str] = "simvq/audio"

    class Config(CodecConfig):
        """The networks, the codebook and its losses. Defaults: 65536 codes, 75 tokens a second.

        Args:
            codes: number of rows of the codebook.
            commitment_weight: of the loss that draws latents to their codes; the other direction has weight 1, and the
                published objective multiplies both by 1000.
            legacy_training: swap the two weights, a defect that the official code keeps as an option.
        """

        encoder: SEANetEncoder.Config = SEANetEncoder.Config(causal=True)
        backbone: VocosBackbone.Config = VocosBackbone.Config(bandwidths=0)
        codes: int = Field(65536, ge=1)
        commitment_weight: Training[float] = Field(0.25, ge=0)
        legacy_training: Training[bool] = False

        def build(self) -> SimVQAudio:
            return SimVQAudio(self)

        @classmethod
        def tiny(cls) -> Self:
            return cls(codes=32, **tiny_networks(causal=True, bandwidths=0))

        def build_quantizer(self) -> Quantize:
            """The codebook alone."""
            dim, weights = self.encoder.dimension, (1.0, self.commitment_weight)
            codebook, commitment = reversed(weights) if self.legacy_training else weights
            base = torch.randn(self.codes, dim) * dim**-0.5
            table = Table(Mapped(base, nn.Linear(dim, dim), dim))
            return Quantize(table, terms=[Codebook(codebook), Commitment(commitment)])

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.build_quantizer())

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
            CheckpointError: if a key is missing, unknown, or of an impossible shape, or the configuration contradicts
                the tensors.
        """
        fields = stated(LAYOUT, constructor_arguments(config))
        legacy = fields.pop("legacy_training", False) and legacy_training
        state = tokenizer_part(LAYOUT, prefer_averaged(state))
        networks, table = read_networks(LAYOUT, state, causal=fields.get("encoder.causal", True))
        told = {name: fields[name] for name in ("sample_rate", "commitment_weight") if name in fields}
        rows = take(state, "quantize.embedding.weight")
        built = cls.Config(codes=len(rows), legacy_training=legacy, **told, **networks)
        check_stated(fields, built)
        tokenizer = cls(built)
        fill_official(tokenizer, table, state, "the SimVQ checkpoint")
        return tokenizer.eval()


SimVQAudio.presets = {
    "simvq_4k": SimVQAudio.Config(codes=4096),
    "simvq_8k": SimVQAudio.Config(codes=8192),
    "simvq_65k": SimVQAudio.Config(codes=65536),
    "simvq_262k": SimVQAudio.Config(codes=262144),
}
