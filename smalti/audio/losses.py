"""Spectral distances between waveforms, differentiable, one value per sample: training takes their mean.

    reference, reconstruction (B,C,T) ──spectrograms──► distance (B,)

    log_mel_distance                 L1 of natural logarithms of one mel spectrogram (Vocos, WavTokenizer, SimVQ)
    multi_scale_mel_distance         L1 of mels and of their logarithms over several windows (DAC, Codec-SUPERB)
    multi_resolution_stft_distance   spectral convergence and L1 of logarithms over several STFTs (Parallel WaveGAN)

Sources: "Vocos" (2023), "High-Fidelity Audio Compression with Improved RVQGAN" (2023), "Parallel WaveGAN" (2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smalti.audio.mel import MelSpectrogram, magnitudes
from smalti.errors import InputError

VOCOS_MEL = MelSpectrogram()


@dataclass(frozen=True)
class Resolution:
    """One STFT: points, samples from frame to frame, length of the Hann window."""

    n_fft: int
    hop: int
    window: int


PARALLEL_WAVEGAN = (Resolution(1024, 120, 600), Resolution(2048, 240, 1200), Resolution(512, 50, 240))
DAC_WINDOWS = ((2048, 150), (512, 80))  # (window, mels)


def log_mel_distance(
    reference: Tensor, reconstruction: Tensor, mel: MelSpectrogram = VOCOS_MEL, floor: float = 1e-7
) -> Tensor:
    """Mean |ln mel(x) - ln mel(y)|, mels raised to `floor`.

    Args:
        reference, reconstruction: (batch, channels, time), at the rate of `mel`.
        mel: the spectrogram.
        floor: keeps logarithms finite.
    """
    check_pair(reference, reconstruction)
    x, y = (mel(waveform).clamp(min=floor).log() for waveform in (reference, reconstruction))
    return _mean(x - y)


def multi_scale_mel_distance(
    reference: Tensor,
    reconstruction: Tensor,
    rate: int,
    windows: Sequence[tuple[int, int]] = DAC_WINDOWS,
    floor: float = 1e-5,
) -> Tensor:
    """Sum over windows of mean |mel(x) - mel(y)| + mean |log10 mel(x)² - log10 mel(y)²|, mels on Slaney's scale.

    Args:
        reference, reconstruction: (batch, channels, time).
        rate: Hz.
        windows: (window length, mels); the hop is a quarter of the window.
        floor: mels are raised to it before the logarithm.
    """
    check_pair(reference, reconstruction)
    total = torch.zeros(len(reference), device=reference.device)
    for window, mels in windows:
        mel = MelSpectrogram(rate, window, window // 4, mels, "slaney", equal_area=True)
        x, y = mel(reference), mel(reconstruction)
        total = total + _mean(x - y) + _mean(2 * (x.clamp(min=floor).log10() - y.clamp(min=floor).log10()))
    return total


def multi_resolution_stft_distance(
    reference: Tensor,
    reconstruction: Tensor,
    resolutions: Sequence[Resolution] = PARALLEL_WAVEGAN,
    floor: float = 1e-7,
) -> Tensor:
    """Mean over resolutions of |X - Y| / |X| (spectral convergence, Frobenius norms) + mean |ln X - ln Y|.

    Args:
        reference, reconstruction: (batch, channels, time).
        resolutions: the STFTs.
        floor: smallest power of a bin; keeps logarithms finite.
    """
    check_pair(reference, reconstruction)
    total = torch.zeros(len(reference), device=reference.device)
    for each in resolutions:
        x, y = (
            magnitudes(waveform, each.n_fft, each.hop, each.window).square().clamp(min=floor).sqrt()
            for waveform in (reference, reconstruction)
        )
        convergence = (x - y).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
        total = total + convergence + _mean(x.log() - y.log())
    return total / len(resolutions)


def check_pair(reference: Tensor, reconstruction: Tensor) -> None:
    """Raises InputError unless both are floating, of one shape (batch, channels, time), and not empty."""
    if reference.shape != reconstruction.shape or reference.ndim != 3 or reference.numel() == 0:
        raise InputError(
            "waveforms to compare must have one shape (batch, channels, time), got "
            f"{tuple(reference.shape)} and {tuple(reconstruction.shape)}"
        )
    if not (reference.is_floating_point() and reconstruction.is_floating_point()):
        raise InputError(f"waveforms must be floating, got {reference.dtype} and {reconstruction.dtype}")


def _mean(difference: Tensor) -> Tensor:
    """Mean absolute value of each sample."""
    return difference.abs().flatten(1).mean(1)
