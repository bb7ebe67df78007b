"""Levels: scalars whose values are tables of numbers, one table per dimension; trained, or taken from data.

    LatentQuantize    evenly spaced to begin with, trained; one slot for all dimensions
    TokenBridge       after training: quantiles of a normal distribution or of the latents; a slot for each dimension

Sources: "Disentanglement via Latent Quantization" (2023); "Bridging Continuous and Discrete Tokens for Autoregressive
Visual Generation" (TokenBridge, 2025); "Least Squares Quantization in PCM" (Lloyd-Max).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn

from smalti.errors import ConfigError, InputError
from smalti.quantize.base import Alphabet, BitOrder, refuse_nan
from smalti.quantize.indices import strides
from smalti.quantize.scalars import cheapest_products, spelled_out

T = TypeVar("T")


class Levels(Alphabet):
    """A product of tables of numbers.

    Args:
        tables: the numbers of each dimension, (levels,) each; the same tensor for several dimensions is one parameter.
        slots: how many dimensions each code takes, in order; None puts all into one code, (1,) * dim gives each
            dimension its own.
        trained: whether the numbers are parameters.
        order: as in Scalars.

    The nearest number wins, the lowest level where two are as near.
    """

    def __init__(
        self,
        tables: Sequence[Tensor],
        *,
        slots: Sequence[int] | None = None,
        trained: bool = False,
        order: BitOrder = "little",
    ) -> None:
        super().__init__()
        if not tables or any(table.ndim != 1 or len(table) < 1 for table in tables):
            raise ConfigError(f"each dimension needs a table of numbers, got {[tuple(t.shape) for t in tables]}")
        self.slots = tuple(slots) if slots is not None else (len(tables),)
        if sum(self.slots) != len(tables) or min(self.slots) < 1:
            raise ConfigError(f"slots of {self.slots} dimensions do not make {len(tables)}")
        self.dim, self.bit_order = len(tables), order
        made = {id(table): nn.Parameter(table.detach().float().clone(), trained) for table in tables}
        self.tables = nn.ParameterList([made[id(table)] for table in tables])
        self.levels = tuple(len(table) for table in tables)
        parts = self._by_slot(self.levels)
        self.vocab = tuple(prod(part) for part in parts)
        self._basis: Tensor
        self._count: Tensor
        self.register_buffer("_basis", torch.tensor([s for part in parts for s in strides(part, order)]), False)
        self.register_buffer("_count", torch.tensor(self.levels), False)

    def _by_slot(self, values: Sequence[T]) -> list[Sequence[T]]:
        ends = [sum(self.slots[: i + 1]) for i in range(len(self.slots))]
        return [values[end - size : end] for end, size in zip(ends, self.slots, strict=True)]

    def digits(self, codes: Tensor) -> Tensor:
        """Levels of codes: (..., slots) -> (..., dim)."""
        spread = codes.repeat_interleave(torch.tensor(self.slots, device=codes.device), -1, output_size=self.dim)
        return spread // self._basis % self._count

    def codes(self, digits: Tensor) -> Tensor:
        """Codes of levels: (..., dim) -> (..., slots)."""
        return torch.stack([part.sum(-1) for part in (digits * self._basis).split(self.slots, -1)], -1)

    def nearest(self, x: Tensor) -> Tensor:
        refuse_nan(x)
        return self.codes(torch.stack([_nearest_level(x[:, i], table) for i, table in enumerate(self.tables)], -1))

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        digits, costs = cheapest_products(x, [table.detach() for table in self.tables], k)
        return self.codes(digits), costs

    def lookup(self, codes: Tensor) -> Tensor:
        digits = self.digits(codes.clamp(min=0))
        values = torch.stack([table[digits[..., i]] for i, table in enumerate(self.tables)], -1)
        dropped = (codes < 0).repeat_interleave(torch.tensor(self.slots, device=codes.device), -1, output_size=self.dim)
        return values.masked_fill(dropped, 0)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        if len(set(self.slots)) > 1:
            raise InputError(f"slots of {self.slots} dimensions have vectors of different lengths: decode them instead")
        return self.lookup(codes).unflatten(-1, (len(self.slots), -1))

    def codebooks(self) -> list[Tensor]:
        books = []
        for tables, size in zip(self._by_slot(list(self.tables)), self.vocab, strict=True):
            steps = strides([len(table) for table in tables], self.bit_order)
            codes = spelled_out(size, self._count.device)
            books.append(torch.stack([t[codes // s % len(t)] for t, s in zip(tables, steps, strict=True)], -1))
        return books


@torch.no_grad()
def _nearest_level(x: Tensor, table: Tensor) -> Tensor:
    """The level of the number nearest to each of x (rows,), the lowest of two as near; tables may be unsorted."""
    values, order = table.detach().double().sort(stable=True)
    above = torch.searchsorted(values, x.double().contiguous()).clamp(max=len(values) - 1)
    # Of equal numbers, the lowest level comes first.
    below = torch.searchsorted(values, values[(above - 1).clamp(min=0)])
    upper, lower = (values[above] - x).abs(), (x - values[below]).abs()
    first = torch.where(lower == upper, order[below] < order[above], lower < upper)
    return torch.where(first, order[below], order[above])


# --- tables from a distribution or from data -------------------------------------------------------------------------


def even_levels(count: int) -> Tensor:
    """Latent quantization's start: from -1/2 in equal steps, with a level at zero (so even counts end below 1/2)."""
    steps = count - 1 if count % 2 else count
    return (torch.arange(count, dtype=torch.float64) / steps - 0.5).float()


def normal_levels(bits: int, *, deviations: float = 3.0, arithmetic: torch.dtype = torch.float64) -> Tensor:
    """Means of 2^bits equally likely parts of a standard normal distribution, cut at ±deviations: (2^bits,).

    Source: TokenBridge.

    Args:
        bits: the number of levels is 2^bits.
        deviations: where the distribution is cut.
        arithmetic: official checkpoints need float32, which their tables were computed in; it moves rare levels.
    """
    even = torch.arange(2**bits + 1, dtype=torch.float64) / 2**bits
    bounds = (torch.erfinv(2 * even - 1) * math.sqrt(2)).to(arithmetic).clamp(-deviations, deviations)
    density = torch.exp(-bounds.square() / 2) / math.sqrt(2 * math.pi)
    below = (1 + torch.erf(bounds / math.sqrt(2))) / 2
    return ((density[:-1] - density[1:]) / below.diff().clamp(min=1e-10)).float()


def quantile_levels(samples: Tensor, count: int) -> Tensor:
    """Means of `count` equally filled parts of samples (n,): TokenBridge's rule for any distribution."""
    ordered = samples.detach().double().sort().values
    if len(ordered) < count:
        raise InputError(f"{count} levels need at least as many samples, got {len(ordered)}")
    return torch.stack([part.mean() for part in ordered.tensor_split(count)]).float()


def lloyd_max_levels(samples: Tensor, count: int, iterations: int = 100) -> Tensor:
    """Levels of least squared error for samples (n,): means of the samples nearest to each, repeated."""
    levels, ordered = quantile_levels(samples, count).double(), samples.detach().double().sort().values
    total = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    for _ in range(iterations):
        ends = torch.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        edges = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([len(ordered)])])
        filled = edges.diff()
        # A level that nothing is nearest to stays where it is.
        levels = torch.where(filled > 0, total[edges].diff() / filled.clamp(min=1), levels).sort().values
    return levels.float()
