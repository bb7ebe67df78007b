"""Magnitude spectrograms and mel filter banks, differentiable, as published losses and metrics define them.

    (..., T) ──STFT, centred, reflected──► magnitudes (..., frames, bins) ──triangles──► mels (..., frames, mels)

The two mel scales in use are those of HTK (2595 log10(1 + f/700)) and of Slaney's Auditory Toolbox (linear to 1 kHz,
then logarithmic; librosa's default).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.errors import ConfigError

Scale = Literal["htk", "slaney"]

_SLANEY_STEP = 200 / 3  # Hz per mel below the knee
_SLANEY_KNEE = 1000.0  # Hz
_SLANEY_LOG = log(6.4) / 27  # above it 27 mels make a factor of 6.4


@dataclass(frozen=True)
class MelSpectrogram:
    """A mel spectrogram by its parameters; the defaults are those of Vocos and WavTokenizer.

    Args:
        rate: of the waveform, Hz.
        n_fft: window length; the window is a periodic Hann window.
        hop: samples from frame to frame.
        mels: number of triangles, from 0 Hz to half the rate.
        scale: "htk" or "slaney".
        equal_area: divide every triangle by half its width, as librosa does.
    """

    rate: int = 24_000
    n_fft: int = 1024
    hop: int = 256
    mels: int = 100
    scale: Scale = "htk"
    equal_area: bool = False

    def __call__(self, waveform: Tensor) -> Tensor:
        """Mels of magnitudes: (..., time) -> (..., frames, mels)."""
        return self.of_magnitudes(magnitudes(waveform, self.n_fft, self.hop))

    def of_magnitudes(self, spectrogram: Tensor) -> Tensor:
        """Mels of a magnitude spectrogram: (..., bins) -> (..., mels)."""
        return spectrogram @ self.filters().to(spectrogram).t()

    def filters(self) -> Tensor:
        """The triangles: (mels, n_fft // 2 + 1)."""
        return _filters(self.rate, self.n_fft, self.mels, self.scale, self.equal_area)

    @property
    def label(self) -> str:
        """The parameters but the rate, for protocol strings."""
        return f"{self.n_fft}-{self.hop}/{self.mels}-{self.scale}{'-equal-area' if self.equal_area else ''}"


def magnitudes(waveform: Tensor, n_fft: int, hop: int, window_length: int | None = None) -> Tensor:
    """Magnitudes of the STFT: (..., time) -> (..., time // hop + 1, n_fft // 2 + 1).

    Frames are centred on multiples of the hop; the signal is mirrored at its ends, and one that is too short for that
    is lengthened by zeros first.

    Args:
        waveform: (..., time).
        n_fft: points of the transform.
        hop: samples from frame to frame.
        window_length: of the periodic Hann window, centred in the frame; n_fft if None.
    """
    *batch, time = waveform.shape
    rows = F.pad(waveform.reshape(-1, time), (0, max(0, n_fft // 2 + 1 - time)))
    length = window_length or n_fft
    window = torch.hann_window(length, dtype=waveform.dtype, device=waveform.device)
    spectrum = torch.stft(rows, n_fft, hop, length, window, center=True, pad_mode="reflect", return_complex=True)
    return spectrum.abs().transpose(-1, -2).reshape(*batch, -1, n_fft // 2 + 1)


def hz_to_mel(frequency: Tensor, scale: Scale) -> Tensor:
    """Frequencies in Hz on a mel scale, float64."""
    frequency = frequency.double()
    if scale == "htk":
        return 2595 * torch.log10(1 + frequency / 700)
    high = _SLANEY_KNEE / _SLANEY_STEP + torch.log(frequency.clamp(min=_SLANEY_KNEE) / _SLANEY_KNEE) / _SLANEY_LOG
    return torch.where(frequency < _SLANEY_KNEE, frequency / _SLANEY_STEP, high)


def mel_to_hz(mels: Tensor, scale: Scale) -> Tensor:
    """The inverse of `hz_to_mel`."""
    mels = mels.double()
    if scale == "htk":
        return 700 * (10 ** (mels / 2595) - 1)
    knee = _SLANEY_KNEE / _SLANEY_STEP
    return torch.where(mels < knee, mels * _SLANEY_STEP, _SLANEY_KNEE * torch.exp((mels - knee) * _SLANEY_LOG))


@lru_cache(maxsize=32)
def _filters(rate: int, n_fft: int, mels: int, scale: Scale, equal_area: bool) -> Tensor:
    """Triangles with evenly spaced corners in mels: each rises from one to the next, and falls to the one after."""
    if scale not in ("htk", "slaney") or min(rate, n_fft, mels) < 1:
        raise ConfigError(f"no mel filters of {mels} mels, {n_fft} points, {rate} Hz on the scale {scale!r}")
    bins = torch.linspace(0, rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    low, high = (float(hz_to_mel(torch.tensor(edge), scale)) for edge in (0.0, rate / 2))
    corners = mel_to_hz(torch.linspace(low, high, mels + 2, dtype=torch.float64), scale)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    triangles = torch.minimum(rising, falling).clamp(min=0)
    if equal_area:
        triangles = triangles * 2 / (corners[2:] - corners[:-2])
    return triangles.float()
