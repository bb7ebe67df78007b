"""Discriminators of waveforms: what neural codecs are trained against.

    MultiPeriod       the waveform folded into rows of p samples, for several periods p         (HiFi-GAN)
    MultiResolution   magnitudes of several STFTs with a rectangular window                     (UnivNet, as in Vocos)
    Dac               the periods, and bands of several complex STFTs, of a levelled waveform   (DAC)

    (B,1,T) ──► a list of sub-discriminators ──► Verdict(logits (B,N), maps) of each

Sources: "HiFi-GAN" (2020), "UnivNet" (2021), "Vocos" (2023), "High-Fidelity Audio Compression with Improved RVQGAN"
(2023). WavTokenizer and SimVQ train against all three. Rows of a batch never meet, so real and generated waveforms may
be judged together or apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import smalti.config
from smalti.errors import InputError

SLOPE = 0.1  # of every leaky ReLU here
PERIODS = (2, 3, 5, 7, 11)
LEVEL = 0.8  # peak of what DAC's discriminators hear

# (kernel, stride) of MultiResolution's convolutions over (frequency, time).
MAGNITUDE_LAYERS = (((7, 5), (2, 2)), ((5, 3), (2, 1)), ((5, 3), (2, 2)), ((3, 3), (2, 1)), ((3, 3), (2, 2)))
# The same of DAC's over (time, frequency).
BAND_LAYERS = (((3, 9), (1, 1)), ((3, 9), (1, 2)), ((3, 9), (1, 2)), ((3, 9), (1, 2)), ((3, 3), (1, 1)))

Kernel = tuple[int, int]
Width = Annotated[int, Field(ge=1)]
AdversarialLoss = Literal["hinge", "least_squares"]


@dataclass(frozen=True)
class Verdict:
    """What one sub-discriminator says of a batch.

    Args:
        logits: (batch, places), high where it takes the waveform for real.
        maps: the feature maps that feature matching compares, (batch, channels, height, width) each.
    """

    logits: Tensor
    maps: tuple[Tensor, ...]


class Discriminator(nn.Module):
    """Several sub-discriminators of one kind.

    Shape:
        (batch, 1, time)  ->  a list of Verdict
    """

    class Config(smalti.config.Config):
        """How its verdicts enter the objective; subclasses add sizes and `type`.

        Args:
            loss: of the game. The generator's hinge is relu(1 - logit), as in Vocos.
            average: divide both losses, and feature matching, by the number of sub-discriminators; else they add up.
            weight: of the adversarial loss and of feature matching alike.
            feature_weight: of feature matching, on top.
        """

        loss: AdversarialLoss = "hinge"
        average: bool = True
        weight: float = Field(1.0, ge=0)
        feature_weight: float = Field(1.0, ge=0)

        @property
        def rows(self) -> int:
            """Rows of the table that conditions it on a bandwidth; 0 for none."""
            return 0

        def build(self) -> Discriminator:
            """The discriminator with random weights."""
            raise NotImplementedError  # every kind's own Config says what it builds

    parts: nn.ModuleList

    def heard(self, waveform: Tensor) -> Tensor:
        """What all sub-discriminators get, of (batch, 1, time)."""
        return waveform

    def forward(self, waveform: Tensor, bandwidth: int | None = None) -> list[Verdict]:
        """One verdict per sub-discriminator.

        Args:
            waveform: (batch, 1, time).
            bandwidth: row of the conditioning table, where there is one.

        Raises:
            InputError: if the waveform has another shape.
        """
        if waveform.ndim != 3 or waveform.shape[1] != 1 or waveform.numel() == 0:
            raise InputError(f"discriminators take (batch, 1, time), got {tuple(waveform.shape)}")
        # No spectra in half precision.
        heard = self.heard(waveform.to(torch.promote_types(waveform.dtype, torch.float32)))
        return [part(heard, bandwidth) for part in self.parts]


class MultiPeriod(Discriminator):
    """HiFi-GAN's: sub-discriminator p compares only samples that lie p apart, its columns."""

    class Config(Discriminator.Config):
        """Sizes; the defaults are HiFi-GAN's, with Vocos's losses.

        Args:
            periods: samples per row of each sub-discriminator.
            channels: widths of the convolutions along the columns.
            kernel, stride: of them; the last one has stride 1.
            bandwidths: rows of the table that conditions the logits (WavTokenizer has 4); 0 for none.
        """

        type: Literal["multi-period"] = "multi-period"
        periods: tuple[Width, ...] = Field(PERIODS, min_length=1)
        channels: tuple[Width, ...] = Field((32, 128, 512, 1024, 1024), min_length=2)
        kernel: int = Field(5, ge=1)
        stride: int = Field(3, ge=1)
        bandwidths: int = Field(0, ge=0)

        @model_validator(mode="after")
        def _check(self) -> Self:
            if not self.kernel % 2:
                raise ValueError(f"kernel must be odd, got {self.kernel}")
            return self

        @property
        def rows(self) -> int:
            return self.bandwidths

        def build(self) -> MultiPeriod:
            return MultiPeriod(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            Period(period, config.channels, config.kernel, config.stride, bandwidths=config.bandwidths)
            for period in config.periods
        )


class MultiResolution(Discriminator):
    """UnivNet's as Vocos has it: magnitudes of STFTs whose window is rectangular."""

    class Config(Discriminator.Config):
        """Sizes; the defaults are those of Vocos and WavTokenizer.

        Args:
            resolutions: (points, hop) of each sub-discriminator's STFT.
            channels: width of its five convolutions.
            bandwidths: rows of the table that conditions the logits (WavTokenizer has 4); 0 for none.
        """

        type: Literal["multi-resolution"] = "multi-resolution"
        resolutions: tuple[tuple[Width, Width], ...] = Field(((1024, 256), (2048, 512), (512, 128)), min_length=1)
        channels: int = Field(64, ge=1)
        bandwidths: int = Field(0, ge=0)

        @property
        def rows(self) -> int:
            return self.bandwidths

        def build(self) -> MultiResolution:
            return MultiResolution(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            Magnitudes(n_fft, hop, config.channels, config.bandwidths) for n_fft, hop in config.resolutions
        )


class Dac(Discriminator):
    """DAC's: periods and bands of complex STFTs, of the waveform without its mean and at a peak of 0.8.

    Bringing silence to that peak would multiply rounding errors, and the model's gradient, by up to 1e9: that is where
    training with the published formula (a peak plus 1e-9) finds its NaN. Here a peak below `quietest` counts as
    `quietest`; above it nothing changes.
    """

    class Config(Discriminator.Config):
        """Sizes; the defaults are DAC's, without its discriminators of down-sampled waveforms, as in WavTokenizer.

        Args:
            periods, period_channels: of the sub-discriminators of periods.
            windows: length of each complex STFT's Hann window; the hop is a quarter of it.
            channels: width of the five convolutions that each band has.
            edges: of the bands, as fractions of the bins.
            quietest: peaks below it are not levelled further.
        """

        type: Literal["dac"] = "dac"
        loss: AdversarialLoss = "least_squares"
        average: bool = False
        periods: tuple[Width, ...] = PERIODS
        period_channels: tuple[Width, ...] = Field((32, 128, 512, 1024, 1024), min_length=2)
        windows: tuple[Annotated[int, Field(ge=4, multiple_of=4)], ...] = (2048, 1024, 512)
        channels: int = Field(32, ge=1)
        edges: tuple[float, ...] = Field((0.0, 0.1, 0.25, 0.5, 0.75, 1.0), min_length=2)
        quietest: float = Field(1e-3, gt=0)

        @model_validator(mode="after")
        def _check(self) -> Self:
            if not self.periods and not self.windows:
                raise ValueError("there must be a period or a window")
            if (self.edges[0], self.edges[-1]) != (0, 1):
                raise ValueError(f"edges must run from 0 to 1, got {self.edges}")
            for window in self.windows:
                if any(start >= stop for start, stop in bands(window // 2 + 1, self.edges)):
                    raise ValueError(f"edges {self.edges} leave a band of window {window} without a bin")
            return self

        def build(self) -> Dac:
            return Dac(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.quietest = config.quietest
        # All of a period's maps are matched here but the logits; HiFi-GAN leaves out the first and takes the logits.
        periods = [Period(each, config.period_channels, 5, 3, matched=slice(0, -1)) for each in config.periods]
        spectra = [ComplexBands(window, config.channels, config.edges) for window in config.windows]
        self.parts = nn.ModuleList([*periods, *spectra])

    def heard(self, waveform: Tensor) -> Tensor:
        centred = waveform - waveform.mean(dim=-1, keepdim=True)
        return LEVEL * centred / centred.abs().amax(dim=-1, keepdim=True).clamp(min=self.quietest)


# --- sub-discriminators ----------------------------------------------------------------------------------------------


class Period(nn.Module):
    """Convolutions along the columns of a waveform written in rows of `period` samples.

    Args:
        period: samples per row.
        channels, kernel, stride: of the convolutions.
        bandwidths: rows of the conditioning table; 0 for none.
        matched: which of the maps (one per convolution, then the logits) are matched.
    """

    def __init__(
        self,
        period: int,
        channels: Sequence[int],
        kernel: int,
        stride: int,
        *,
        bandwidths: int = 0,
        matched: slice = slice(1, None),
    ) -> None:
        super().__init__()
        self.period, self.matched = period, matched
        strides = [*[stride] * (len(channels) - 1), 1]
        self.stack = Stack(1, channels, [((kernel, 1), (step, 1)) for step in strides])
        self.last = Logits(channels[-1], (3, 1), bandwidths)

    def forward(self, waveform: Tensor, bandwidth: int | None = None) -> Verdict:
        missing = -waveform.shape[-1] % self.period
        mirrored = missing < waveform.shape[-1]  # a waveform shorter than a row has too little to mirror
        h = F.pad(waveform, (0, missing), mode="reflect" if mirrored else "constant")
        maps = self.stack(h.unflatten(-1, (-1, self.period)))
        logits = self.last(maps[-1], bandwidth)
        return Verdict(logits.flatten(1), (*maps, logits)[self.matched])


class Magnitudes(nn.Module):
    """Convolutions over the magnitudes of an STFT with a rectangular window, centred, mirrored at the ends."""

    def __init__(self, n_fft: int, hop: int, channels: int, bandwidths: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.stack = Stack(1, [channels] * len(MAGNITUDE_LAYERS), MAGNITUDE_LAYERS)
        self.last = Logits(channels, (3, 3), bandwidths)
        self.window: Tensor
        self.register_buffer("window", torch.ones(n_fft), persistent=False)

    def forward(self, waveform: Tensor, bandwidth: int | None = None) -> Verdict:
        maps = self.stack(self.spectrogram(waveform))
        logits = self.last(maps[-1], bandwidth)
        return Verdict(logits.flatten(1), (*maps, logits))

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """(B,1,T) -> (B, 1, n_fft // 2 + 1, T // hop + 1)."""
        rows = waveform[:, 0]
        rows = F.pad(rows, (0, max(0, self.n_fft // 2 + 1 - rows.shape[-1])))
        window = self.window.to(rows)
        return torch.stft(rows, self.n_fft, self.hop, window=window, center=True, return_complex=True).abs()[:, None]


class ComplexBands(nn.Module):
    """Convolutions over real and imaginary parts of an STFT, in bands of their own, then one over all bands."""

    def __init__(self, size: int, channels: int, edges: Sequence[float]) -> None:
        super().__init__()
        self.size, self.hop = size, size // 4
        self.bands = bands(size // 2 + 1, edges)
        self.stacks = nn.ModuleList(Stack(2, [channels] * len(BAND_LAYERS), BAND_LAYERS) for _ in self.bands)
        self.last = Logits(channels, (3, 3), 0)
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(size), persistent=False)

    def forward(self, waveform: Tensor, bandwidth: int | None = None) -> Verdict:
        spectrum = self.spectrogram(waveform)
        maps = [stack(spectrum[..., start:stop]) for (start, stop), stack in zip(self.bands, self.stacks, strict=True)]
        logits = self.last(torch.cat([own[-1] for own in maps], dim=-1), None)
        return Verdict(logits.flatten(1), tuple(chain.from_iterable(maps)))

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """(B,1,T) -> (B, 2, ceil(T / hop), size // 2 + 1); frame t is centred on samples t·hop to (t+1)·hop."""
        rows, edge = waveform[:, 0], (self.size - self.hop) // 2
        if edge + -rows.shape[-1] % self.hop >= rows.shape[-1]:  # too short to be mirrored
            rows = F.pad(rows, (0, edge + self.hop - rows.shape[-1]))
        missing = -rows.shape[-1] % self.hop
        rows = F.pad(rows[:, None], (edge, edge + missing), mode="reflect")[:, 0]
        spectrum = torch.stft(rows, self.size, self.hop, window=self.window.to(rows), center=False, return_complex=True)
        return torch.view_as_real(spectrum).permute(0, 3, 2, 1)


class Stack(nn.Module):
    """Convolutions with leaky ReLUs; gives the map after each of them.

    Args:
        inputs: channels of the input.
        channels: of each map.
        layers: (kernel, stride) of each convolution.
    """

    def __init__(self, inputs: int, channels: Sequence[int], layers: Sequence[tuple[Kernel, Kernel]]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            _conv(before, after, kernel, stride)
            for before, after, (kernel, stride) in zip((inputs, *channels), channels, layers, strict=False)
        )

    def forward(self, h: Tensor) -> list[Tensor]:
        maps = []
        for conv in self.convs:
            h = F.leaky_relu(conv(h), SLOPE)
            maps.append(h)
        return maps


class Logits(nn.Module):
    """The last convolution, plus the product of its input with a row of a table (projection conditioning).

    Shape:
        (batch, channels, height, width)  ->  (batch, 1, height, width)
    """

    def __init__(self, channels: int, kernel: Kernel, bandwidths: int) -> None:
        super().__init__()
        self.conv = _conv(channels, 1, kernel, (1, 1))
        self.table = nn.Embedding(bandwidths, channels) if bandwidths else None
        if self.table is not None:
            nn.init.zeros_(self.table.weight)

    def forward(self, h: Tensor, bandwidth: int | None) -> Tensor:
        logits = self.conv(h)
        if self.table is None or bandwidth is None:
            return logits
        return logits + torch.einsum("c,bchw->bhw", self.table.weight[bandwidth], h)[:, None]


def bands(bins: int, edges: Sequence[float]) -> list[tuple[int, int]]:
    """(first, one past the last) bin of each band: fractions of the bins, rounded down, so bands lie side by side."""
    return list(pairwise(int(edge * bins) for edge in edges))


def _conv(inputs: int, outputs: int, kernel: Kernel, stride: Kernel) -> nn.Module:
    """A convolution in weight norm; its zero padding keeps an extent that its stride does not divide."""
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel[0] // 2, kernel[1] // 2)))
