"""Noise in the training of scalar codes. Codes themselves are never noisy; evaluation draws nothing.

    NoiseDropout    some scalars get noise of one level's width on top of their level (Stable Audio's FSQ)
    Perturbed       some scalars get noise instead of rounding (FSP)
    Bernoulli       bits are drawn with probability sigmoid(x)

Sources: "Scaling Transformers for Low-Bitrate High-Quality Speech Coding" (arXiv 2411.19842); "Finite Scalar
Perturbation" (arXiv 2602.17133); "The Free Transformer" (bits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize.assign import Assign, Assigned, Nearest
from smalti.quantize.base import Alphabet, Noise, refuse_nan
from smalti.quantize.scalars import Scalars


class NoiseDropout(Nearest):
    """The nearest code; in training its scalars get uniform noise with probability `rate`, cut at the outermost level.

    Args:
        rate: share of scalars that get noise.
        widths: of the noise, for each dimension; a level's own width keeps a noisy scalar nearest to its level.
        limits: the outermost level of each dimension; 1 if None.

    Noise:
        noise_dropout: (rows, dim) in [-1/2, 1/2), zero where there is none; replaces both draws.
    """

    def __init__(self, rate: float, widths: Sequence[float], limits: Sequence[float] | None = None) -> None:
        super().__init__()
        self.rate, self.widths = _share(rate), tuple(widths)
        self.limits = (1.0,) * len(self.widths) if limits is None else tuple(limits)

    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        codes = self.decide(x, alphabet)
        vectors = alphabet.lookup(codes)
        if not self.training:
            return Assigned(codes, vectors)
        drawn = noise.get("noise_dropout")
        if drawn is None:
            drawn = (torch.rand_like(vectors) - 0.5) * (torch.rand_like(vectors) < self.rate)
        widths, limits = torch.tensor([self.widths, self.limits], dtype=torch.float32, device=x.device)
        noisy = torch.clamp(vectors + drawn * widths, -limits, limits)
        return Assigned(codes, torch.where(drawn == 0, vectors, noisy))


class Perturbed(Nearest):
    """The nearest code; in training each scalar is rounded with probability `rate` only, else it gets noise.

    The noise is uniform over one level's width around the bounded scalar, and left out where it would leave (0, 1).

    Args:
        rate: share of scalars that are rounded.
        levels: of each dimension.
        bound: maps latents to (0, 1).
        back: maps scalars of (0, 1) to what codes mean; None leaves them.

    Noise:
        perturbation: (rows, dim) in (-1, 1), in units of half a level; rounded: (rows, dim), bool.
    """

    def __init__(
        self,
        rate: float,
        levels: Sequence[int],
        bound: nn.Module,
        back: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.rate, self.levels = _share(rate), tuple(levels)
        self.bound, self.back = bound, back or nn.Identity()

    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        codes = self.decide(x, alphabet)
        vectors = alphabet.lookup(codes)
        if not self.training or self.rate == 1:
            return Assigned(codes, vectors)
        p = self.bound(x.detach())
        drawn, rounded = noise.get("perturbation"), noise.get("rounded")
        drawn = torch.rand_like(p) * 2 - 1 if drawn is None else drawn
        rounded = torch.rand_like(p) < self.rate if rounded is None else rounded
        proposal = p + drawn / (2 * torch.tensor(self.levels, device=x.device))
        loose = torch.where((proposal > 0) & (proposal < 1), proposal, p)
        return Assigned(codes, torch.where(rounded, vectors, self.back(loose)))


class Bernoulli(Assign):
    """Bits drawn with probability sigmoid(x / temperature); without training, the more likely ones.

    Args:
        temperature: a schedule may lower it.

    Noise:
        uniform: (rows, bits) in [0, 1): a bit is 1 where it lies below the probability.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        codes = self.draw(x, alphabet, noise) if self.training else self.decide(x, alphabet)
        return Assigned(codes, alphabet.lookup(codes))

    def draw(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Tensor:
        refuse_nan(x)
        uniform = noise.get("uniform")
        uniform = torch.rand_like(x) if uniform is None else uniform
        return alphabet.nearest((torch.sigmoid(x.detach() / self.temperature) - uniform).sign())

    def decide(self, x: Tensor, alphabet: Alphabet) -> Tensor:
        return alphabet.nearest(x.detach())


def level_widths(alphabet: Scalars) -> list[float]:
    """The distance between neighbouring levels of every dimension."""
    return [float(table[1] - table[0]) for table in alphabet.tables()] * alphabet.groups


def _share(rate: float) -> float:
    if not 0 <= rate <= 1:
        raise ConfigError(f"rate must be in 0..1, got {rate}")
    return rate
