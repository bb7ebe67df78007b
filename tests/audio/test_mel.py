"""Spectrograms, mel filters and spectral distances, against sums written out and torch's autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from smalti.audio.losses import (
    VOCOS_MEL,
    Resolution,
    log_mel_distance,
    multi_resolution_stft_distance,
    multi_scale_mel_distance,
)
from smalti.audio.mel import MelSpectrogram, hz_to_mel, magnitudes, mel_to_hz
from smalti.errors import ConfigError, InputError


def plain_magnitudes(x: np.ndarray, n_fft: int, hop: int, window_length: int | None = None) -> np.ndarray:
    """The centred STFT as a product with the matrix of the discrete Fourier transform."""
    length = window_length or n_fft
    window = np.zeros(n_fft)
    start = (n_fft - length) // 2
    window[start : start + length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    half = n_fft // 2
    mirrored = np.concatenate([x[half:0:-1], x, x[-2 : -half - 2 : -1]])
    frames = np.stack([mirrored[i : i + n_fft] for i in range(0, len(x) + 1, hop)]) * window
    turns = np.outer(np.arange(n_fft), np.arange(half + 1)) * 2 * np.pi / n_fft
    return np.abs(frames @ np.exp(-1j * turns))


def plain_filters(rate: int, n_fft: int, mels: int) -> np.ndarray:
    """HTK triangles, a bin and a triangle at a time."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    corners = [700 * (10 ** (top * i / (mels + 1) / 2595) - 1) for i in range(mels + 2)]
    filters = np.zeros((mels, n_fft // 2 + 1))
    for m in range(mels):
        left, middle, right = corners[m : m + 3]
        for k in range(n_fft // 2 + 1):
            f = k * rate / n_fft
            if left < f <= middle:
                filters[m, k] = (f - left) / (middle - left)
            elif middle < f < right:
                filters[m, k] = (right - f) / (right - middle)
    return filters


@pytest.mark.parametrize(("n_fft", "hop", "window"), [(16, 4, None), (32, 10, 20), (64, 7, 33)])
def test_magnitudes_against_the_fourier_matrix(n_fft: int, hop: int, window: int | None) -> None:
    x = torch.randn(2, 1, 101, dtype=torch.float64)
    ours = magnitudes(x, n_fft, hop, window)
    for row, found in zip(x[:, 0], ours[:, 0], strict=True):
        np.testing.assert_allclose(found, plain_magnitudes(row.numpy(), n_fft, hop, window), atol=1e-9)


def test_sounds_too_short_to_be_mirrored_are_lengthened() -> None:
    x = torch.randn(1, 5, dtype=torch.float64)
    expected = plain_magnitudes(torch.nn.functional.pad(x, (0, 12))[0].numpy(), 32, 8)
    np.testing.assert_allclose(magnitudes(x, 32, 8)[0], expected, atol=1e-9)


@pytest.mark.parametrize(("rate", "n_fft", "mels"), [(24_000, 1024, 100), (16_000, 1024, 80), (8_000, 256, 20)])
def test_htk_filters_against_their_definition(rate: int, n_fft: int, mels: int) -> None:
    filters = MelSpectrogram(rate=rate, n_fft=n_fft, mels=mels).filters()
    np.testing.assert_allclose(filters, plain_filters(rate, n_fft, mels), atol=1e-5)


def test_mel_scales_pass_through_their_known_points() -> None:
    assert float(hz_to_mel(torch.tensor(1000.0), "htk")) == pytest.approx(999.9855)
    assert float(hz_to_mel(torch.tensor(1000.0), "slaney")) == pytest.approx(15)
    assert float(hz_to_mel(torch.tensor(6400.0), "slaney")) == pytest.approx(42)
    f = torch.linspace(0, 20_000, 999, dtype=torch.float64)
    torch.testing.assert_close(mel_to_hz(hz_to_mel(f, "htk"), "htk"), f)
    torch.testing.assert_close(mel_to_hz(hz_to_mel(f, "slaney"), "slaney"), f)


def test_equal_area_filters_have_equal_areas() -> None:
    mel = MelSpectrogram(rate=16_000, n_fft=2**15, mels=40, scale="slaney", equal_area=True)
    areas = mel.filters().sum(1) * 16_000 / 2**15
    torch.testing.assert_close(areas, torch.ones(40), rtol=5e-3, atol=0)


def test_filters_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError):
        MelSpectrogram(mels=0).filters()


def test_log_mel_distance_against_the_definition() -> None:
    x, y = torch.randn(2, 3, 1, 3_000, dtype=torch.float64) / 5
    filters = plain_filters(24_000, 1024, 100)
    logs = [
        [np.log(np.maximum(plain_magnitudes(row.numpy(), 1024, 256) @ filters.T, 1e-7)) for row in waveforms[:, 0]]
        for waveforms in (x, y)
    ]
    expected = [np.abs(one - other).mean() for one, other in zip(*logs, strict=True)]
    np.testing.assert_allclose(log_mel_distance(x, y), expected, rtol=1e-5)


def test_multi_resolution_stft_distance_against_the_definition() -> None:
    x, y = torch.randn(2, 2, 1, 900, dtype=torch.float64)
    sizes = (Resolution(64, 16, 40), Resolution(128, 30, 128))
    expected = np.zeros(2)
    for row in range(2):
        for size in sizes:
            a, b = (
                np.sqrt(np.maximum(plain_magnitudes(w[row, 0].numpy(), size.n_fft, size.hop, size.window) ** 2, 1e-7))
                for w in (x, y)
            )
            expected[row] += np.linalg.norm(a - b) / np.linalg.norm(a) + np.abs(np.log(a) - np.log(b)).mean()
    np.testing.assert_allclose(multi_resolution_stft_distance(x, y, sizes), expected / 2, rtol=1e-6)


def test_distances_have_gradients_that_lower_them() -> None:
    torch.manual_seed(0)
    reference = torch.randn(2, 1, 4_000) / 10
    distances = {
        "mel": lambda y: log_mel_distance(reference, y),
        "scales": lambda y: multi_scale_mel_distance(reference, y, 24_000),
        "stft": lambda y: multi_resolution_stft_distance(reference, y),
    }
    for name, distance in distances.items():
        y = (reference + torch.randn(2, 1, 4_000) / 20).requires_grad_()
        value = distance(y)
        assert value.shape == (2,), name
        (gradient,) = torch.autograd.grad(value.sum(), y)
        assert bool(torch.isfinite(gradient).all()), name
        assert (distance(y - 1e-3 * gradient / gradient.norm()) < value).all(), name
        assert not distance(reference).any(), name


def test_silence_has_finite_distances_and_gradients() -> None:
    silence = torch.zeros(1, 1, 2_000, requires_grad=True)
    for value in (log_mel_distance(silence, silence), multi_resolution_stft_distance(silence, silence)):
        assert not value.any()
        assert bool(torch.isfinite(torch.autograd.grad(value, silence)[0]).all())


def test_pairs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        log_mel_distance(torch.zeros(1, 1, 9), torch.zeros(1, 1, 8))
    with pytest.raises(InputError, match="one shape"):
        log_mel_distance(torch.zeros(1, 9), torch.zeros(1, 9))
    with pytest.raises(InputError, match="floating"):
        log_mel_distance(torch.zeros(1, 1, 9).int(), torch.zeros(1, 1, 9))
    assert VOCOS_MEL.label == "1024-256/100-htk"
