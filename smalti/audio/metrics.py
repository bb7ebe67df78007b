"""How close a reconstruction is to its waveform: spectra, SI-SDR, intelligibility and perceived quality.

    (B,C,T) twice, at one rate ──mean of channels, cut to the shorter──► the metric's own rate ──per sample──► mean

    MelDistance      dB between mel spectra, L2 over bins, mean over frames (audiocodecs)           lower is better
    STFTDistance     the same over linear bins
    LogMelDistance   L1 of natural logarithms of mels, the loss of Vocos and WavTokenizer
    MultiResolutionSTFTDistance   spectral convergence and logarithms over three STFTs (Parallel WaveGAN)
    SISDR            scale-invariant signal-to-distortion ratio, dB                                 higher is better
    STOI             short-time objective intelligibility, 0 to 1 (package pystoi)
    PESQ             ITU P.862 mean opinion score, 1 to 4.6 (package pesq, an extra of its own)

SI-SDR punishes a delay of one sample that nobody hears, and generative decoders delay and re-phase: read it beside the
others. Nothing is aligned in time.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from smalti.audio.io import RESAMPLER, resample
from smalti.audio.losses import VOCOS_MEL, log_mel_distance, multi_resolution_stft_distance
from smalti.audio.mel import MelSpectrogram, magnitudes
from smalti.errors import ConfigError, InputError, require
from smalti.metric import SampleMean

AUDIOCODECS_MEL = MelSpectrogram(rate=16_000, n_fft=1024, hop=320, mels=80)
QUIETEST = 1e-10  # magnitudes are raised to it before they become dB


class WaveformMetric(SampleMean):
    """Base of metrics on waveforms.

    Args:
        rate: of the waveforms that `update` gets, Hz.

    Attributes:
        own_rate: the rate that the metric is defined at; None for any.
    """

    name: str
    own_rate: int | None = None

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.rate = rate

    @property
    def protocol(self) -> str:
        own = self.own_rate or self.rate
        source = f"/from-{self.rate}Hz-soxr-{RESAMPLER}" if own != self.rate else ""
        return f"{self.name}/{own}Hz{source}/mono/per-sample-mean"

    def values(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """The value of each sample: (batch,), float64.

        Args:
            reference, reconstruction: (batch, channels, time); the longer is cut to the shorter.

        Raises:
            InputError: if they are no such pair, hold NaN, or a sample has no value.
        """
        x, y = self._mono(reference, "reference"), self._mono(reconstruction, "reconstruction")
        if len(x) != len(y):
            raise InputError(f"there are {len(x)} references and {len(y)} reconstructions")
        time = min(x.shape[1], y.shape[1])
        return self.compare(x[:, :time], y[:, :time]).double()

    @abstractmethod
    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        """The value of each pair: references and reconstructions (batch, time), float64, at the metric's own rate."""

    def _mono(self, waveform: Tensor, what: str) -> Tensor:
        if waveform.ndim != 3 or not waveform.is_floating_point() or 0 in waveform.shape:
            raise InputError(
                f"the {what} must be floating, (batch, channels, time), got {waveform.dtype} {tuple(waveform.shape)}"
            )
        if not bool(torch.isfinite(waveform).all()):
            raise InputError(f"the {what} holds NaN or infinity")
        mono = waveform.detach().cpu().double().mean(1)
        if self.own_rate is None or self.own_rate == self.rate:
            return mono
        return resample(mono, self.rate, self.own_rate).double()


class MelDistance(WaveformMetric):
    """Distance of mel spectra in dB: per frame the Euclidean norm over bins, then the mean over frames."""

    name = f"mel-distance-dB/{AUDIOCODECS_MEL.label}"
    own_rate = AUDIOCODECS_MEL.rate

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        return (self._decibels(x) - self._decibels(y)).norm(dim=-1).mean(-1)

    def _decibels(self, x: Tensor) -> Tensor:
        return 10 * AUDIOCODECS_MEL(x).clamp(min=QUIETEST).log10()


class STFTDistance(MelDistance):
    """The same over the bins of the STFT itself."""

    name = f"stft-distance-dB/{AUDIOCODECS_MEL.n_fft}-{AUDIOCODECS_MEL.hop}"

    def _decibels(self, x: Tensor) -> Tensor:
        return 10 * magnitudes(x, AUDIOCODECS_MEL.n_fft, AUDIOCODECS_MEL.hop).clamp(min=QUIETEST).log10()


class LogMelDistance(WaveformMetric):
    """The mel loss of Vocos, WavTokenizer and SimVQ."""

    name = f"log-mel-l1/{VOCOS_MEL.label}"
    own_rate = VOCOS_MEL.rate

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        return log_mel_distance(x[:, None], y[:, None])


class MultiResolutionSTFTDistance(WaveformMetric):
    """The STFT loss of Parallel WaveGAN, at the rate of the waveforms."""

    name = "multi-resolution-stft/parallel-wavegan"

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        return multi_resolution_stft_distance(x[:, None], y[:, None])


class SISDR(WaveformMetric):
    """10 log10(|a x|² / |y - a x|²) of zero-mean waveforms, a x the projection of y on x; infinite for y = a x."""

    name = "si-sdr-dB"

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        _refuse((x == 0).all(1), "SI-SDR", "the reference is silent")
        target = (x * y).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
        return 10 * (target.square().sum(1) / (y - target).square().sum(1)).log10()


class STOI(WaveformMetric):
    """Short-time objective intelligibility (Taal 2011), or its extension for modulated noise (Jensen 2016).

    Args:
        rate: of the waveforms, Hz; the package resamples to 10 kHz itself.
        extended: eSTOI.
    """

    def __init__(self, rate: int, *, extended: bool = False) -> None:
        super().__init__(rate)
        self.extended = extended
        self.name = "estoi" if extended else "stoi"

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        pystoi = require("pystoi", "audio")
        _refuse((x == 0).all(1), "STOI", "the reference is silent")
        values = []
        for index, (reference, reconstruction) in enumerate(zip(x.numpy(), y.numpy(), strict=True)):
            with warnings.catch_warnings():
                # The package warns and gives 1e-5 where less than 30 frames (0.4 s) of the reference are not silent.
                warnings.simplefilter("error", RuntimeWarning)
                try:
                    values.append(float(pystoi.stoi(reference, reconstruction, self.rate, extended=self.extended)))
                except (RuntimeWarning, ValueError, IndexError):
                    raise InputError(f"STOI of sample {index}: the reference has less than 0.4 s of sound") from None
        return torch.tensor(values, dtype=torch.float64)


class PESQ(WaveformMetric):
    """Perceptual evaluation of speech quality.

    Args:
        rate: of the waveforms, Hz; they are resampled to 16 kHz, except narrow band at 8 kHz.
        band: "wide" (P.862.2) or "narrow" (P.862).

    Raises:
        MissingDependencyError: at the first value, if the package pesq is not installed.
        InputError: at a sample without speech, which has no value; it is never scored.
    """

    def __init__(self, rate: int, *, band: Literal["wide", "narrow"] = "wide") -> None:
        super().__init__(rate)
        if band not in ("wide", "narrow"):
            raise ConfigError(f"band must be 'wide' or 'narrow', got {band!r}")
        self.band = band
        self.name = f"pesq-{band}"
        # The package measures narrow band at either rate; the results differ, so the protocol names the rate.
        self.own_rate = 8_000 if band == "narrow" and rate == 8_000 else 16_000

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        package = require("pesq", "pesq")
        _refuse((x == 0).all(1) | (y == 0).all(1), "PESQ", "it is silent")
        values = []
        for index, (reference, reconstruction) in enumerate(zip(x.numpy(), y.numpy(), strict=True)):
            try:
                mode = "wb" if self.band == "wide" else "nb"
                values.append(float(package.pesq(self.own_rate, reference, reconstruction, mode)))
            except (package.PesqError, ValueError) as error:
                raise InputError(f"PESQ of sample {index}: {_reason(error)}") from None
        return torch.tensor(values, dtype=torch.float64)


def _reason(error: Exception) -> str:
    text = error.args[0] if error.args else type(error).__name__
    return text.decode() if isinstance(text, bytes) else str(text)


def _refuse(wrong: Tensor, what: str, why: str) -> None:
    if bool(wrong.any()):
        raise InputError(f"{what} of sample {int(wrong.nonzero()[0])}: {why}")
