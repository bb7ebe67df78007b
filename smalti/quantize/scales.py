"""What MultiScale is made of: the extents of scales, ways between them, and smoothing convolutions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import prod
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.errors import ConfigError, InputError

Extent = tuple[int, ...]
Resize = Callable[[Tensor, Extent], Tensor]  # channel-first latents to an extent


class Scales(ABC):
    """The extents of scales, coarse to fine.

    Attributes:
        axes: axes of positions (1 for sound, 2 for images, 3 for video).
    """

    axes: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def extents(self, full: Extent) -> list[Extent]:
        """Each scale's extent for latents of extent `full`."""

    @abstractmethod
    def full(self, codes: int) -> Extent:
        """The extent of latents that have so many codes at all scales together."""


class Sizes(Scales):
    """Fixed extents, whatever that of the latents: VAR's 1, 2, 3 ... 16.

    Args:
        sizes: of each scale; a number stands for the same size along every axis.
        axes: axes of positions.
        full: extent that codes decode to unless another is asked for; the last scale's if None.
    """

    def __init__(self, sizes: Sequence[int | Sequence[int]], *, axes: int = 2, full: Extent | None = None) -> None:
        self.axes = axes
        self.sizes = [(size,) * axes if isinstance(size, int) else tuple(size) for size in sizes]
        if not self.sizes or any(len(size) != axes or min(size) < 1 for size in self.sizes):
            raise ConfigError(f"sizes must be positive, for {axes} axes, got {list(sizes)}")
        self._full = self.sizes[-1] if full is None else tuple(full)

    def __len__(self) -> int:
        return len(self.sizes)

    def extents(self, full: Extent) -> list[Extent]:
        return list(self.sizes)

    def full(self, codes: int) -> Extent:
        return self._full


class Strides(Scales):
    """One position for every `stride` latents, along one axis: SNAC's 4, 2, 1.

    Args:
        strides: of each scale, coarse to fine. The number of latents must be a multiple of each.
    """

    axes = 1

    def __init__(self, strides: Sequence[int]) -> None:
        self.strides = tuple(strides)
        if not self.strides or min(self.strides) < 1:
            raise ConfigError(f"strides must be positive, got {self.strides}")

    def __len__(self) -> int:
        return len(self.strides)

    def extents(self, full: Extent) -> list[Extent]:
        if any(full[0] % stride for stride in self.strides):
            raise InputError(f"{full[0]} positions are no multiple of the strides {self.strides}: pad them")
        return [(full[0] // stride,) for stride in self.strides]

    def full(self, codes: int) -> Extent:
        length = Fraction(codes) / sum(Fraction(1, stride) for stride in self.strides)
        if length.denominator != 1:
            raise InputError(f"{codes} codes are no whole length at strides {self.strides}: give the extent")
        return (int(length),)


# --- ways between extents --------------------------------------------------------------------------------------------


class Interpolate:
    """torch's interpolation, left out where the extent is already right.

    Args:
        mode: "area" is the mean over what a position covers; "linear" means that along any number of axes.
    """

    def __init__(self, mode: Literal["area", "nearest", "linear", "bicubic"]) -> None:
        self.mode = mode

    def __call__(self, x: Tensor, extent: Extent) -> Tensor:
        if tuple(x.shape[2:]) == tuple(extent):
            return x
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(extent)] if self.mode == "linear" else self.mode
        return F.interpolate(x, size=extent, mode=mode)


def average(x: Tensor, extent: Extent) -> Tensor:
    """The mean of equally many positions along one axis."""
    return x.unflatten(2, (extent[0], -1)).mean(-1)


def repeat(x: Tensor, extent: Extent) -> Tensor:
    """Each position, equally often in a row along one axis."""
    return x.repeat_interleave(extent[0] // x.shape[2], 2)


# --- smoothing -------------------------------------------------------------------------------------------------------


class Smoothing(nn.Module):
    """(1 - share) x + share * conv3(x): hides the seams that going up leaves.

    Args:
        dim: channels.
        share: of the convolution.
        axes: axes of positions.
    """

    def __init__(self, dim: int, share: float = 0.5, *, axes: int = 2) -> None:
        super().__init__()
        self.share = abs(share)
        self.conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 - self.share) + self.conv(x) * self.share


def shared_smoothings(smoothings: Sequence[nn.Module], scales: int) -> list[nn.Module]:
    """VAR's choice of a smoothing for each scale: the one whose tick lies nearest to scale / (scales - 1).

    Ticks are float64 as numpy makes them: with an odd number of scales the middle is a tie of rounding, and other
    arithmetic decides it differently.
    """
    count = len(smoothings)
    edge = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(edge, 1 - edge, count)
    return [smoothings[int(np.argmin(np.abs(ticks - scale / max(1, scales - 1))))] for scale in range(scales)]


def positions(extents: Sequence[Extent]) -> list[int]:
    """How many codes each scale has."""
    return [prod(extent) for extent in extents]
