"""Bounds: how latents are brought into a grid's range before they are rounded.

    z ─bound─► b ─round─► code         the gradient passes the rounding straight through, then the bound's own slope

    SoftClamp   tanh, from -limit to limit: FSQ's symmetric form, iFSQ with slope 0.8, residual FSQ, LFQ's soft clamp
    HardClamp   cut at ±limit: for latents that something else has bounded
    BoundFSQ    the published bound of FSQ: tanh, shifted for even levels
    Cumulative  a distribution's cumulative function: (0, 1), evenly used if latents follow that distribution (FSP)
    Rescale     an interval moved to another (TokenBridge)
    UnitSphere  length 1 (BSQ)
    Turn        a fixed rotation (and its way back)

Sources: "Finite Scalar Quantization: VQ-VAE Made Simple"; "iFSQ: Improving FSQ for Image Generation with 1 Line of
Code"; "Finite Scalar Perturbation" (arXiv 2602.17133); "Image and Video Tokenization with Binary Spherical
Quantization"; "QuIP#" (rotation by an orthogonal matrix).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize.constants import in_long_runs, keep, keep_runs, kept

Distribution = Literal["tanh", "sigmoid", "normal", "laplace", "cauchy"]
Function = Callable[[Tensor], Tensor]

IFSQ_SLOPE = 0.8  # 2 sigmoid(1.6 z) - 1 = tanh(0.8 z), which spreads N(0, 1) nearly evenly over the levels
UNIT_DEVIATION = math.sqrt(1 / 12)  # of the uniform distribution over (0, 1)


class SoftClamp(nn.Module):
    """limit * tanh(slope * z / limit).

    Args:
        limit: what is approached; one number, or one per dimension.
        slope: at zero.
    """

    def __init__(self, limit: float | Sequence[float] = 1.0, slope: float = 1.0) -> None:
        super().__init__()
        self._limit: Tensor
        keep(self, "_limit", torch.as_tensor(limit, dtype=torch.float64))
        self.slope = slope

    def forward(self, z: Tensor) -> Tensor:
        limit = kept(self._limit).to(z.dtype)
        return torch.tanh(z * (self.slope / limit)) * limit


class HardClamp(nn.Module):
    """Latents cut at ±limit.

    Args:
        limit: one number, or one per dimension.
    """

    def __init__(self, limit: float | Sequence[float] = 1.0) -> None:
        super().__init__()
        self._limit: Tensor
        keep(self, "_limit", torch.as_tensor(limit, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        limit = kept(self._limit).to(z.dtype)
        return torch.clamp(z, -limit, limit)


class BoundFSQ(nn.Module):
    """Bounds latents so that rounding to Scalars' "fsq" grid can't leave it: tanh, shifted for even levels.

    Args:
        levels: as in Scalars.
        groups: as in Scalars.
        hard: clamps to [-1, 1] instead of tanh, for latents that something else has bounded.
    """

    MARGIN = 1e-3  # published: the bound lies this share outside the outermost level, so that its gradient survives

    def __init__(self, levels: Sequence[int], groups: int = 1, *, hard: bool = False) -> None:
        super().__init__()
        self.hard = hard
        count = torch.tensor(list(levels) * groups, dtype=torch.float64)
        half = (count - 1) * (1 + self.MARGIN) / 2
        offset = torch.where(count % 2 == 0, 0.5, 0.0).double()
        shift = offset / half
        unit = torch.div(count, 2, rounding_mode="floor")
        self._numbers: Tensor
        keep_runs(self, "_numbers", torch.stack([shift if hard else torch.atanh(shift), half / unit, -offset / unit]))

    def forward(self, z: Tensor) -> Tensor:
        runs, numbers = in_long_runs(z, self._numbers)
        shift, half, offset = numbers.to(z.dtype)
        squashed = (runs + shift).clamp(-1, 1) if self.hard else torch.tanh(runs + shift)
        return torch.addcmul(offset, squashed, half).view(z.shape)


# The cumulative function of each distribution and its inverse.
DISTRIBUTIONS: Mapping[Distribution, tuple[Function, Function]] = {
    "tanh": (lambda z: (torch.tanh(z) + 1) / 2, lambda p: torch.atanh(2 * p - 1)),
    "sigmoid": (torch.sigmoid, torch.logit),
    "normal": (lambda z: (1 + torch.erf(z / math.sqrt(2))) / 2, lambda p: torch.erfinv(2 * p - 1) * math.sqrt(2)),
    "laplace": (
        lambda z: (1 - torch.sign(z) * torch.expm1(-z.abs())) / 2,
        lambda p: -torch.sign(p - 0.5) * torch.log1p(-(2 * p - 1).abs()),
    ),
    "cauchy": (lambda z: torch.atan(z) / math.pi + 0.5, lambda p: torch.tan((p - 0.5) * math.pi)),
}


class Cumulative(nn.Module):
    """Latents as their probability under a distribution, in [0, 1].

    Args:
        distribution: "tanh" (a logistic distribution of scale 1/2), "sigmoid", "normal", "laplace" or "cauchy".
    """

    EPS = 1e-6  # the inverse stays this far away from 0 and 1

    def __init__(self, distribution: Distribution = "tanh") -> None:
        super().__init__()
        if distribution not in DISTRIBUTIONS:
            raise ConfigError(f"distribution must be one of {sorted(DISTRIBUTIONS)}, got {distribution!r}")
        self.distribution = distribution

    def forward(self, z: Tensor) -> Tensor:
        return DISTRIBUTIONS[self.distribution][0](z)

    def inverse(self, p: Tensor) -> Tensor:
        return DISTRIBUTIONS[self.distribution][1](p.clamp(self.EPS, 1 - self.EPS))


class Standardise(nn.Module):
    """Numbers spread evenly over (0, 1), shifted and scaled to mean 0 and deviation 1."""

    def forward(self, p: Tensor) -> Tensor:
        return (p - 0.5) / UNIT_DEVIATION


class Rescale(nn.Module):
    """Moves an interval linearly to [-limit, limit]. `back()` is the module that undoes it.

    Args:
        low: lower end of the interval.
        high: upper end.
        limit: what the ends become.
    """

    def __init__(self, low: float, high: float, limit: float) -> None:
        super().__init__()
        if not low < high or limit <= 0:
            raise ConfigError(f"an interval needs low < high and a positive limit, got {low}, {high}, {limit}")
        self.low, self.high, self.limit = low, high, limit

    def forward(self, z: Tensor) -> Tensor:
        return (z - self.low) / (self.high - self.low) * (2 * self.limit) - self.limit

    def back(self) -> nn.Module:
        return _RescaleBack(self)


class _RescaleBack(nn.Module):
    def __init__(self, forth: Rescale) -> None:
        super().__init__()
        self.low, self.high, self.limit = forth.low, forth.high, forth.limit

    def forward(self, z: Tensor) -> Tensor:
        return (z + self.limit) / (2 * self.limit) * (self.high - self.low) + self.low


class UnitSphere(nn.Module):
    """Latents at a fixed length, each group on its own.

    Args:
        groups: equal parts of the last dimension.
        radius: the length.
    """

    def __init__(self, groups: int = 1, radius: float = 1.0) -> None:
        super().__init__()
        self.groups, self.radius = groups, radius

    def forward(self, z: Tensor) -> Tensor:
        return (F.normalize(z.unflatten(-1, (self.groups, -1)), dim=-1) * self.radius).flatten(-2)


class Turn(nn.Module):
    """Each group of dimensions times one fixed orthogonal matrix. `back()` is the module that undoes it.

    Args:
        matrix: (dim, dim), orthogonal; latents are rows: z @ matrix.
        groups: equal parts of the last dimension, all turned alike.
    """

    def __init__(self, matrix: Tensor, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.matrix: Tensor
        self.register_buffer("matrix", matrix.detach().float().clone())

    def forward(self, z: Tensor) -> Tensor:
        return (z.unflatten(-1, (self.groups, -1)) @ self.matrix).flatten(-2)

    def back(self) -> Turn:
        return Turn(self.matrix.t(), self.groups)


def random_rotation(dim: int) -> Tensor:
    """A random orthogonal matrix (dim, dim)."""
    return nn.init.orthogonal_(torch.empty(dim, dim, dtype=torch.float32))
