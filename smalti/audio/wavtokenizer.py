"""WavTokenizer: 40 or 75 tokens per second of sound, from a single codebook.

Source: "WavTokenizer: an Efficient Acoustic Discrete Codec Tokenizer for Audio Language Modeling" (ICLR 2025),
jishengpeng/WavTokenizer; and its port in transformers.

    24 kHz (B,1,T) ──► SEANet ──► z (B,L,512) ──► nearest of 4096 rows ──► codes (B,L,1)       L = ceil(T / hop)
    24 kHz (B,1,L·hop) ◄── ISTFT head ◄── attention + ConvNeXt ◄── z_q ◄───┘                   hop 600 or 320

The codebook starts from k-means and follows its latents by moving averages. The decoder hears the whole utterance at
once (attention, group norm over time), so nothing streams; recordings over 30 s are cut into overlapping windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

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
from smalti.audio.vocos import ISTFTHead
from smalti.checkpoint import take
from smalti.config import Training
from smalti.errors import CheckpointError, ConfigError
from smalti.quantize import EMA, Commitment, Expire, Quantize, Table, Trained
from smalti.tokenizer import Options

SUB_MODEL = "encoder_model."  # later versions of transformers keep the encoder and the quantizer below it

LIGHTNING = Layout(
    encoder="feature_extractor.encodec.encoder.model.",
    conv=".conv.conv",
    names={
        "feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed_avg": "quantizer.alphabet.ema_sum",
        "feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed": "quantizer.alphabet.vectors.weight",
        "feature_extractor.encodec.quantizer.vq.layers.0._codebook.cluster_size": "quantizer.alphabet.ema_count",
        "feature_extractor.encodec.quantizer.vq.layers.0._codebook.inited": "quantizer.alphabet.started",
        "head.istft.window": "head.window",
    },
    fields={
        "sample_rate": "sample_rate",
        "feature_extractor.init_args.dowmsamples": "encoder.ratios",
        "feature_extractor.init_args.vq_bins": "codes",
        "feature_extractor.init_args.vq_kmeans": "kmeans_iterations",
        "backbone.init_args.input_channels": "backbone.input_channels",
        "backbone.init_args.dim": "backbone.dim",
        "backbone.init_args.intermediate_dim": "backbone.intermediate_dim",
        "backbone.init_args.num_layers": "backbone.layers",
        "backbone.init_args.adanorm_num_embeddings": "backbone.bandwidths",
        "head.init_args.dim": "head.dim",
        "head.init_args.n_fft": "head.n_fft",
        "head.init_args.hop_length": "head.hop",
    },
    # A whole SEANet decoder that is never used, discriminators, and the filters of the mel loss.
    ignored=(
        "feature_extractor.encodec.decoder.*",
        "multiperioddisc.*",
        "multiresddisc.*",
        "dac.*",
        "dacdiscriminator.*",
        "melspec_loss.*",
    ),
)

TRANSFORMERS = Layout(
    encoder="encoder.layers.",
    conv=".conv",
    names={
        "quantizer.codebook.embed_avg": "quantizer.alphabet.ema_sum",
        "quantizer.codebook.embed": "quantizer.alphabet.vectors.weight",
        "quantizer.codebook.cluster_size": "quantizer.alphabet.ema_count",
        "quantizer.codebook.inited": "quantizer.alphabet.started",
        "head.linear.": "head.out.",
    },
    fields={
        "sampling_rate": "sample_rate",
        "num_filters": "encoder.filters",
        "upsampling_ratios": "encoder.ratios",
        "num_lstm_layers": "encoder.lstm_layers",
        "hidden_size": "encoder.dimension",
        "codebook_size": "codes",
        "codebook_dim": "encoder.dimension",
        "decoder_hidden_size": "backbone.dim",
        "decoder_intermediate_size": "backbone.intermediate_dim",
        "decoder_num_layers": "backbone.layers",
        "adanorm_num_embeddings": "backbone.bandwidths",
    },
)


@dataclass(frozen=True)
class Decode(Options):
    """How to decode.

    Args:
        bandwidth_id: row of the adaptive norms. All rows were trained on the same bit rate; 0 is what is published.
    """

    bandwidth_id: int = 0


class WavTokenizer(SEANetVocos):
    """The tokenizer; see the module's docstring."""

    name: ClassVar[str] = "wavtokenizer"
    decode_options: ClassVar[type[Options]] = Decode

    class Config(CodecConfig):
        """The networks and the codebook; the defaults are the published ones at 75 tokens a second.

        Args:
            codes: number of rows of the codebook.
            kmeans_iterations: of its start, on the first training batch.
            decay: of the moving averages.
            expire: codes chosen less often than this in a step (moving average) are replaced by latents of the batch.
            commitment_weight: of the quantizer's loss; the published objective multiplies it by 1000.
            legacy_training: never replace a code. The published training means to, but overwrites every replacement in
                the same step.
        """

        codes: int = Field(4096, ge=1)
        kmeans_iterations: Training[int] = Field(200, ge=0)
        decay: Training[float] = Field(0.99, gt=0, lt=1)
        expire: Training[float] = Field(2.0, ge=0)
        commitment_weight: Training[float] = Field(1.0, ge=0)
        legacy_training: Training[bool] = False

        def build(self) -> WavTokenizer:
            return WavTokenizer(self)

        @classmethod
        def tiny(cls) -> Self:
            return cls(codes=16, kmeans_iterations=2, **tiny_networks(causal=False, bandwidths=4))

        def build_quantizer(self) -> Quantize:
            """The codebook alone."""
            table = Table(
                Trained(self.codes, self.encoder.dimension),
                learn=EMA(decay=self.decay, kmeans_iterations=self.kmeans_iterations),
                revive=None if self.legacy_training else Expire(self.expire),
            )
            return Quantize(table, terms=[Commitment(self.commitment_weight)])

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.build_quantizer())

    @classmethod
    def from_official(
        cls, config: Mapping[str, Any] | None, state: Mapping[str, Tensor], *, legacy_training: bool = False
    ) -> Self:
        """A published checkpoint, in the layout of the authors (Lightning) or of transformers.

        Args:
            config: the yaml beside the checkpoint or its `model.init_args`, transformers' config.json, or None.
            state: official keys -> tensors.
            legacy_training: go on with the training as it was published; see `Config`.

        Raises:
            CheckpointError: if a key is missing, unknown, or of an impossible shape, or the configuration contradicts
                the tensors.
        """
        state = {key.removeprefix(SUB_MODEL): value for key, value in state.items()}
        layout = _layout(state)
        state = tokenizer_part(layout, state)
        networks, table = read_networks(layout, state, causal=False)
        fields = stated(layout, constructor_arguments(config))
        told = {name: fields[name] for name in ("sample_rate", "kmeans_iterations") if name in fields}
        rows = take(state, table.official("quantizer.alphabet.vectors.weight"))
        built = cls.Config(codes=len(rows), legacy_training=legacy_training, **told, **networks)
        check_stated(fields, built)
        started = table.official("quantizer.alphabet.started")
        state[started] = take(state, started).reshape(()) != 0  # published as one float
        tokenizer = cls(built)
        fill_official(tokenizer, table, state, "the WavTokenizer checkpoint")
        return tokenizer.eval()

    def synthesis(self, vectors: Tensor, options: Any) -> Tensor:
        return self.head(self.backbone(vectors, self._row(options)))[:, None]

    def _row(self, options: Decode) -> int:
        rows = self.config.backbone.bandwidths
        if self.training:
            return int(torch.randint(max(1, rows), ()))  # every row is trained, each step one of them
        if not 0 <= options.bandwidth_id < max(1, rows):
            raise ConfigError(f"bandwidth_id must be in 0..{rows - 1}, got {options.bandwidth_id}")
        return options.bandwidth_id


WavTokenizer.presets = {
    "smalldata_frame75": WavTokenizer.Config(),
    "smalldata_frame40": WavTokenizer.Config(
        encoder=SEANetEncoder.Config(ratios=(6, 5, 5, 4)), head=ISTFTHead.Config(n_fft=2400, hop=600)
    ),
}


@dataclass(frozen=True)
class KnownCodes:
    """Codes that a published checkpoint is known to give, so that a conversion can be checked with the real weights.

    Args:
        checkpoint: its name in `smalti.systems`.
        description: of the waveform, for people.
        codes: the first ones that come out.
        source: who published them.
    """

    checkpoint: str
    description: str
    codes: tuple[int, ...]
    source: str

    def waveform(self) -> Tensor:
        """(1, 1, 12000) at 24 kHz."""
        return 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(12_000) / 24_000)[None, None]

    def holds(self, tokenizer: WavTokenizer) -> bool:
        """Whether a tokenizer gives these codes."""
        return tokenizer.encode(self.waveform()).codes[0, : len(self.codes), 0].tolist() == list(self.codes)


KNOWN_CODES = KnownCodes(
    checkpoint="wavtokenizer_large_unify_600_24k",
    description="half a second of 0.5 sin(2π 440 t) at 24 kHz",
    codes=(1323, 1442, 3524, 2056, 3229, 1723, 2785, 1389, 3144, 1723),
    source="the port in transformers, bit-exact against the original",
)


def _layout(state: Mapping[str, Tensor]) -> Layout:
    for layout in (LIGHTNING, TRANSFORMERS):
        if any(key.startswith(layout.encoder) for key in state):
            return layout
    raise CheckpointError(
        f"not a WavTokenizer checkpoint: it has neither {LIGHTNING.encoder}* nor {TRANSFORMERS.encoder}*, but "
        f"{sorted(state)[:4]}"
    )
