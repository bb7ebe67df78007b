"""Discriminators of waveforms, against one-dimensional convolutions of columns and Fourier sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.errors import ConfigError, InputError
from smalti.train.audio_discriminators import (
    ComplexBands,
    Dac,
    Discriminator,
    Magnitudes,
    MultiPeriod,
    MultiResolution,
    Period,
    bands,
)

TINY: list[Discriminator.Config] = [
    MultiPeriod.Config(periods=(2, 3), channels=(2, 3, 4)),
    MultiResolution.Config(resolutions=((64, 16), (32, 8)), channels=3),
    Dac.Config(periods=(2,), period_channels=(2, 3), windows=(64, 32), channels=3),
]


def plain_weight(conv: nn.Module) -> Tensor:
    """g v / |v| of every output channel."""
    lengths, directions = (conv.get_parameter(f"parametrizations.weight.original{i}") for i in (0, 1))
    return lengths * directions / directions.square().sum((1, 2, 3), keepdim=True).sqrt()


def plain_period(x: Tensor, part: Period, stride: int) -> list[Tensor]:
    """Maps and logits of one waveform (T,): every column of the folded waveform by itself, (channels, length, p)."""
    period = part.period
    if missing := -len(x) % period:
        x = torch.cat([x, x.flip(0)[1 : 1 + missing]])
    columns: list[list[Tensor]] = []
    for offset in range(period):
        h, found = x[offset::period][None], []
        convs = list(part.stack.convs)
        for index, conv in enumerate(convs):
            step = stride if index < len(convs) - 1 else 1
            h = F.conv1d(h, plain_weight(conv)[..., 0], conv.bias, step, 2)
            h = torch.where(h > 0, h, 0.1 * h)
            found.append(h)
        last = part.last.conv
        found.append(F.conv1d(h, plain_weight(last)[..., 0], last.bias, 1, 1))
        columns.append(found)
    return [torch.stack(maps, dim=-1) for maps in zip(*columns, strict=True)]


@pytest.mark.parametrize(("period", "time"), [(1, 90), (2, 101), (3, 99), (5, 97), (11, 100)])
def test_a_period_is_one_dimensional_convolution_of_every_column(period: int, time: int) -> None:
    torch.manual_seed(period)
    part = Period(period, (3, 4, 5), 5, 3)
    x = torch.randn(2, 1, time)
    verdict = part(x)
    for row in range(2):
        *maps, logits = plain_period(x[row, 0], part, 3)
        torch.testing.assert_close(verdict.logits[row], logits.flatten(), atol=1e-5, rtol=1e-4)
        # The first map is not matched, the logits are.
        for ours, plain in zip(verdict.maps, [*maps[1:], logits], strict=True):
            torch.testing.assert_close(ours[row], plain, atol=1e-5, rtol=1e-4)


def fourier(frames: np.ndarray) -> np.ndarray:
    """(count, size) -> (count, size // 2 + 1), complex."""
    size = frames.shape[1]
    turns = np.outer(np.arange(size), np.arange(size // 2 + 1)) * 2 * np.pi / size
    return frames @ np.exp(-1j * turns)


@pytest.mark.parametrize(("n_fft", "hop", "time"), [(32, 8, 100), (64, 16, 161)])
def test_magnitudes_have_a_rectangular_window(n_fft: int, hop: int, time: int) -> None:
    x = torch.randn(1, 1, time, dtype=torch.float64)
    mirrored = np.pad(x[0, 0].numpy(), n_fft // 2, mode="reflect")
    frames = np.stack([mirrored[start : start + n_fft] for start in range(0, time + 1, hop)])
    ours = Magnitudes(n_fft, hop, 2, 0).spectrogram(x)
    np.testing.assert_allclose(ours[0, 0], np.abs(fourier(frames)).T, atol=1e-9)


@pytest.mark.parametrize(("size", "time"), [(32, 96), (32, 101), (64, 200), (64, 65)])
def test_complex_frames_are_centred_between_hops(size: int, time: int) -> None:
    hop = size // 4
    x = torch.randn(1, 1, time, dtype=torch.float64)
    count, edge = math.ceil(time / hop), (size - hop) // 2
    mirrored = np.pad(x[0, 0].numpy(), (edge, edge + count * hop - time), mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    spectrum = fourier(np.stack([mirrored[t * hop : t * hop + size] * window for t in range(count)]))
    ours = ComplexBands(size, 2, (0.0, 0.5, 1.0)).spectrogram(x)
    assert ours.shape == (1, 2, count, size // 2 + 1)
    np.testing.assert_allclose(ours[0, 0], spectrum.real, atol=1e-5)  # the window was made in float32
    np.testing.assert_allclose(ours[0, 1], spectrum.imag, atol=1e-5)


@pytest.mark.parametrize("window", [32, 510, 512, 1024, 2048])
def test_bands_cover_every_bin_once(window: int) -> None:
    bins = window // 2 + 1
    covered = [index for start, stop in bands(bins, Dac.Config().edges) for index in range(start, stop)]
    assert covered == list(range(bins))


def test_a_band_hears_its_own_bins_only() -> None:
    torch.manual_seed(0)
    part = ComplexBands(64, 2, (0.0, 0.25, 1.0))
    spectrum = torch.randn(1, 2, 9, 33, requires_grad=True)
    part.spectrogram = lambda waveform: spectrum  # type: ignore[method-assign]
    verdict = part(torch.zeros(1, 1, 144))
    (gradient,) = torch.autograd.grad(verdict.maps[4].sum(), spectrum)  # the first band's last map
    heard = gradient.abs().sum((0, 1, 2)) > 0
    assert heard[:8].all() and not heard[8:].any()


def test_lengths_of_the_published_maps() -> None:
    time = 24_000
    x = torch.zeros(1, 1, time)
    narrow = (1, 1, 1, 1, 1)
    for verdict, period in zip(MultiPeriod.Config(channels=narrow).build()(x), (2, 3, 5, 7, 11), strict=True):
        length = math.ceil(time / period)
        wanted = []
        for _ in range(4):
            length = math.ceil(length / 3)
            wanted.append(length)
        assert [each.shape[2:] for each in verdict.maps] == [(n, period) for n in [*wanted[1:], length, length]]
        assert verdict.logits.shape == (1, length * period)
    for verdict, (n_fft, hop) in zip(
        MultiResolution.Config(channels=1).build()(x), ((1024, 256), (2048, 512), (512, 128)), strict=True
    ):
        bins, frames = n_fft // 2 + 1, time // hop + 1
        strides = ((2, 2), (4, 2), (8, 4), (16, 4), (32, 8), (32, 8))
        assert [each.shape[2:] for each in verdict.maps] == [
            (math.ceil(bins / down), math.ceil(frames / along)) for down, along in strides
        ]
    first, *_, verdict = Dac.Config(period_channels=narrow, channels=1).build()(x)
    assert [each.shape[2:] for each in first.maps] == [(n, 2) for n in (4000, 1334, 445, 149, 149)]  # not the logits
    # Window 512: bands of 25, 39, 64, 64 and 65 bins.
    assert verdict.logits.shape == (1, 188 * (4 + 5 + 8 + 8 + 9))
    assert len(verdict.maps) == 25 and verdict.maps[0].shape == (1, 1, 188, 25)


@pytest.mark.parametrize("kind", [MultiPeriod, MultiResolution])
def test_a_bandwidth_adds_its_row_times_the_last_features(kind: type[MultiPeriod] | type[MultiResolution]) -> None:
    torch.manual_seed(0)
    network = kind.Config(bandwidths=3).replace(channels=(2, 4) if kind is MultiPeriod else 4).build()
    x = torch.randn(2, 1, 3000)
    plain = network(x)
    assert all(torch.equal(one.logits, other.logits) for one, other in zip(network(x, 2), plain, strict=True))
    for part, before in zip(network.parts, plain, strict=True):
        nn.init.normal_(part.last.table.weight)
        added = (part.last.table.weight[1].view(1, -1, 1, 1) * before.maps[-2]).sum(1).flatten(1)
        torch.testing.assert_close(part(x, 1).logits, before.logits + added)


@pytest.mark.parametrize("config", TINY, ids=lambda config: config.type)
@pytest.mark.parametrize("time", [1, 7, 64, 333])
def test_samples_are_judged_alone_whatever_their_length(config: Discriminator.Config, time: int) -> None:
    torch.manual_seed(0)
    network = config.build()
    x = torch.randn(3, 1, time)
    for whole, alone in zip(network(x), network(x[1:2]), strict=True):
        torch.testing.assert_close(whole.logits[1:2], alone.logits, atol=1e-5, rtol=1e-4)
        for one, other in zip(whole.maps, alone.maps, strict=True):
            torch.testing.assert_close(one[1:2], other, atol=1e-5, rtol=1e-4)


def test_dac_hears_no_offset_and_no_level() -> None:
    network = TINY[2].build()
    x = torch.randn(2, 1, 500)
    heard = network.heard(x)
    torch.testing.assert_close(heard.abs().amax(-1), torch.full((2, 1), 0.8))
    torch.testing.assert_close(network.heard(0.01 * x + 0.3), heard, atol=1e-4, rtol=0)


@pytest.mark.parametrize("level", [0.0, 1e-30, 1e-9, 1e-4])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_silence_gives_dac_no_huge_gradients(level: float, offset: float) -> None:
    torch.manual_seed(0)
    network = TINY[2].build()
    x = (offset + level * torch.randn(2, 1, 400)).requires_grad_()
    loss = sum((1 - verdict.logits).square().mean() for verdict in network(x))
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.isfinite(gradient).all()
    # The published formula multiplies a perturbation by up to 0.8 / 1e-9.
    (moved,) = torch.autograd.grad(network.heard(x).square().sum() / 2, x)
    assert moved.abs().max() <= 0.8 / 1e-3
    with torch.no_grad():
        nudged = network.heard(x + 1e-6 * torch.randn_like(x))
    assert (nudged - network.heard(x)).abs().max() < 1e-2


def test_wrong_settings_and_inputs_are_named() -> None:
    with pytest.raises(ConfigError, match="kernel"):
        MultiPeriod.Config(kernel=4)
    with pytest.raises(ConfigError, match="edges"):
        Dac.Config(edges=(0.1, 1.0))
    with pytest.raises(ConfigError, match="without a bin"):
        Dac.Config(windows=(16,))
    with pytest.raises(InputError, match="batch, 1, time"):
        TINY[0].build()(torch.zeros(2, 2, 50))
