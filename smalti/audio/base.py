"""What audio tokenizers share: legal input, sample rates, channels, true lengths and long recordings.

(B,C,T) at any rate ──► mean of channels, model's rate ──► windows of `Config.window` ──► network
(B,1,T) at that rate ◄── rate and length of side ◄──────── windows ◄───────────────────── network
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import smalti.config
from smalti.audio.io import resample, resampled_length
from smalti.errors import InputError
from smalti.tokenizer import Condition, NeuralTokenizer
from smalti.tokens import Side


class Window(smalti.config.Config):
    """How recordings too long for one pass are cut: it decides codes, so it enters the codes hash.

    Args:
        seconds: what each pass contributes.
        context: seconds on each side that the network also hears, and whose tokens are dropped.
    """

    seconds: float = Field(30.0, gt=0)
    context: float = Field(1.0, ge=0)


class AudioTokenizer(NeuralTokenizer):
    """Base of tokenizers of one-channel audio; other channel counts are averaged, and come back as one channel.

    Attributes:
        sample_rate: the model's own rate, Hz.
        hop: samples per position.
        window: how long recordings are cut, or None for one pass whatever their length.
    """

    modality: ClassVar[str] = "audio"
    grid_axes: ClassVar[int | None] = 1
    outputs: ClassVar[tuple[str, ...]] = ("waveform",)
    conditions: ClassVar[Mapping[str, Condition]] = {"sample_rate": Condition(int, stored=True)}
    sample_rate: int
    hop: int
    window: Window | None = None

    @property
    def token_rate(self) -> float:
        """Positions a second."""
        return self.sample_rate / self.hop

    @property
    def bitrate(self) -> float:
        """Bits a second: positions times ceil(log2 V) over the slots."""
        return self.token_rate * sum((size - 1).bit_length() for size in self.quantizer.vocab)

    def prepare(self, x: Tensor, **conditions: Any) -> tuple[Tensor, dict[str, Side]]:
        check_audio(x)
        rate = conditions.get("sample_rate", self.sample_rate)
        if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
            raise InputError(f"sample_rate must be a positive whole number of Hz, got {rate!r}")
        mono = x.float().mean(dim=1, keepdim=True)
        inputs = mono if rate == self.sample_rate else resample(mono, rate, self.sample_rate)
        side: dict[str, Side] = {
            "length": torch.full((len(x),), x.shape[-1]),
            "sample_rate": torch.full((len(x),), rate),
        }
        return inputs, side

    def finish(self, outputs: Tensor, side: Mapping[str, Side], **conditions: Any) -> Tensor:
        rate = conditions.get("sample_rate", _first(side, "sample_rate", self.sample_rate))
        waveform = outputs if rate == self.sample_rate else resample(outputs, self.sample_rate, rate)
        # The length in side counts samples of the stored rate; another rate than that one keeps all that came out.
        length = _first(side, "length", waveform.shape[-1])
        if rate != _first(side, "sample_rate", rate):
            length = resampled_length(length, _first(side, "sample_rate", rate), rate)
        return F.pad(waveform[..., :length], (0, max(0, length - waveform.shape[-1])))

    def check_raw(self, inputs: Tensor) -> None:
        super().check_raw(inputs)
        if inputs.ndim != 3 or inputs.shape[1] != 1:
            raise InputError(f"raw audio must be (batch, 1, samples), got {tuple(inputs.shape)}")

    def preprocessing(self) -> dict[str, Any]:
        window = None if self.window is None else self.window.model_dump()
        return {"sample_rate": self.sample_rate, "channels": "mean", "window": window}

    def encode_inputs(self, inputs: Tensor, options: Any, *, whole: bool) -> Tensor:
        frames = -(-inputs.shape[-1] // self.hop)
        parts = []
        for first, start, stop, end in self._windows(frames, whole):
            piece = inputs[..., first * self.hop : end * self.hop]
            codes = super().encode_inputs(piece, options, whole=whole)
            parts.append(codes[:, start - first : stop - first])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def decode_vectors(self, vectors: Tensor, options: Any, *, whole: bool) -> Tensor:
        parts = []
        for first, start, stop, end in self._windows(vectors.shape[1], whole):
            piece = super().decode_vectors(vectors[:, first:end], options, whole=whole)
            parts.append(piece[..., (start - first) * self.hop : (stop - first) * self.hop])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _windows(self, frames: int, whole: bool) -> list[tuple[int, int, int, int]]:
        """(first, start, stop, end) in frames: the network hears first..end, start..stop is kept."""
        if whole or self.window is None:
            return [(0, 0, frames, frames)]
        size = max(1, round(self.window.seconds * self.token_rate))
        context = round(self.window.context * self.token_rate)
        if frames <= size:
            return [(0, 0, frames, frames)]
        return [
            (max(0, start - context), start, min(start + size, frames), min(start + size + context, frames))
            for start in range(0, frames, size)
        ]


def check_audio(x: Tensor) -> None:
    """Raises InputError unless x is (B, C, T) with T >= 1, floating and finite."""
    if x.ndim != 3 or not x.is_floating_point() or x.numel() == 0:
        raise InputError(
            f"audio must be floating, (batch, channels, samples), at least one sample, got {x.dtype} {tuple(x.shape)}"
        )
    if not bool(torch.isfinite(x).all()):
        raise InputError("audio must be finite, got NaN or infinity")


def _first(side: Mapping[str, Side], name: str, default: int) -> int:
    return int(torch.as_tensor(side[name])[0]) if name in side else default
