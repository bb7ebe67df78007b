"""Smalti's own speech codec: a mel front end, a quantizer, and a Vocos decoder; quick enough for a laptop.

Source: our own; any quantizer that has a name can stand in the middle. The decoder is that of "Vocos: Closing the gap
between time-domain and Fourier-based neural vocoders for high-quality audio synthesis".

    16 kHz (B,1,T) ─log mel─► (B,L,mels) ─ConvNeXt─► z (B,L,D) ─quantizer─► codes (B,L,slots)     L = ceil(T / hop)
    16 kHz (B,1,L·hop) ◄─ISTFT head─ ConvNeXt ◄───── z_q        ◄──────────┘

50 positions a second of two 10-bit slots make 1 kbit/s.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.audio.base import AudioTokenizer, Window
from smalti.audio.mel import MelSpectrogram
from smalti.audio.vocos import ISTFTHead, VocosBackbone
from smalti.quantize.named.choice import Choice
from smalti.tokenizer import Tokenizer

FLOOR = 1e-4  # of mel magnitudes: what is quieter sounds silent


class MelEncoder(nn.Module):
    """Waveform (B,1,T) to latents (B, ceil(T / hop), latent_dim). Frame l is centred on samples l·hop to (l+1)·hop."""

    def __init__(self, mel: MelSpectrogram, backbone: VocosBackbone.Config, latent_dim: int) -> None:
        super().__init__()
        self.mel = mel
        self.backbone = backbone.build()
        self.out = nn.Linear(backbone.dim, latent_dim)
        self.window: Tensor
        self.filters: Tensor
        self.register_buffer("window", torch.hann_window(mel.n_fft), persistent=False)
        self.register_buffer("filters", mel.filters(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        return self.out(self.backbone(self.log_mel(waveform[:, 0])))

    def log_mel(self, waveform: Tensor) -> Tensor:
        """(B,T) -> (B, ceil(T / hop), mels), scaled to about [-1,1]."""
        n_fft, hop = self.mel.n_fft, self.mel.hop
        edge = (n_fft - hop) // 2
        padded = F.pad(waveform, (edge, edge + -waveform.shape[-1] % hop + (n_fft - hop) % 2))
        magnitudes = torch.fft.rfft(padded.unfold(-1, n_fft, hop) * self.window).abs()
        return (magnitudes @ self.filters.t()).clamp(min=FLOOR).log10() / 2


class SpeechCodec(AudioTokenizer):
    """Speech to a few codes a frame, and back.

    Shape:
        x: (B,C,T) at any rate -> codes (B, ceil(T' / hop), slots), T' the samples at the model's rate
    """

    name: ClassVar[str] = "smalti-speech"
    code_parts: ClassVar[tuple[str, ...]] = ("encoder", "quantizer")
    codeless_fields: ClassVar[tuple[str, ...]] = ("decoder.*", "head_n_fft")

    class Config(Tokenizer.Config):
        """Sizes of the codec.

        Args:
            sample_rate: of the model, Hz.
            hop: samples per position.
            n_fft: window of the mel front end.
            mels: bands of the mel front end.
            encoder, decoder: sizes of the two ConvNeXt stacks.
            head_n_fft: window of the ISTFT head.
            quantizer: by name; its dimension is that of the latents, and the decoder's input channels.
            window: how recordings too long for one pass are cut.
        """

        sample_rate: int = Field(16_000, ge=1)
        hop: int = Field(320, ge=1)
        n_fft: int = Field(1024, ge=2, multiple_of=2)
        mels: int = Field(80, ge=1)
        encoder: VocosBackbone.Config = VocosBackbone.Config(
            input_channels=80, dim=192, intermediate_dim=576, layers=5, bandwidths=0, pos_net=False
        )
        decoder: VocosBackbone.Config = VocosBackbone.Config(
            input_channels=16, dim=256, intermediate_dim=768, layers=6, bandwidths=0, pos_net=False
        )
        head_n_fft: int = Field(1024, ge=2, multiple_of=2)
        quantizer: Choice = Choice(
            type="residual", dim=16, codes=1024, levels=2, decay=0.98, expire=0.03, commitment_weight=0.25
        )
        window: Window | None = Window()

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.encoder.input_channels != self.mels:
                raise ValueError(f"encoder.input_channels must be mels, {self.mels}, got {self.encoder.input_channels}")
            if self.decoder.input_channels != self.quantizer.latent_dim:
                raise ValueError(
                    f"decoder.input_channels must be the quantizer's dimension, {self.quantizer.latent_dim}, "
                    f"got {self.decoder.input_channels}"
                )
            if self.n_fft < self.hop or self.head_n_fft <= self.hop:
                raise ValueError("windows must be longer than the hop")
            return self

        def build(self) -> SpeechCodec:
            return SpeechCodec(self)

        @classmethod
        def tiny(cls) -> Self:
            small = {"dim": 16, "intermediate_dim": 16, "layers": 1, "bandwidths": 0, "pos_net": False}
            return cls(
                sample_rate=8_000,
                hop=20,
                n_fft=64,
                mels=8,
                encoder=VocosBackbone.Config(input_channels=8, **small),
                decoder=VocosBackbone.Config(input_channels=4, **small),
                head_n_fft=64,
                quantizer=Choice(type="residual-diveq", dim=4, codes=16, levels=2),
            )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.sample_rate, self.hop, self.window = config.sample_rate, config.hop, config.window
        mel = MelSpectrogram(rate=config.sample_rate, n_fft=config.n_fft, hop=config.hop, mels=config.mels)
        self.encoder = MelEncoder(mel, config.encoder, config.quantizer.latent_dim)
        self.quantizer = config.quantizer.build()
        self.decoder = config.decoder.build()
        self.head = ISTFTHead.Config(dim=config.decoder.dim, n_fft=config.head_n_fft, hop=config.hop).build()

    def analysis(self, inputs: Tensor, options: Any) -> Tensor:
        return self.encoder(inputs)

    def synthesis(self, vectors: Tensor, options: Any) -> Tensor:
        return self.head(self.decoder(vectors))[:, None]

    @classmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        return {"x": 0.3 * torch.randn(batch, 1, 403, generator=torch.Generator().manual_seed(seed))}
