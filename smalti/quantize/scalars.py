"""Scalars: codebooks that no one stores, because they are grids. Each dimension of a latent is rounded on its own.

    levels (8, 5, 5, 5)   finite scalar quantization: one slot of 8*5*5*5 codes
    levels (2,) * 18      lookup-free (sign) quantization: one slot of 2^18 codes
    groups = 4            group-wise: four slots, each with its own dimensions

Sources: "Finite Scalar Quantization: VQ-VAE Made Simple"; "Language Model Beats Diffusion: Tokenizer is Key to Visual
Generation" (lookup-free); "WeTok: Powerful Discrete Tokenization for High-Fidelity Visual Reconstruction" (groups);
"Image and Video Tokenization with Binary Spherical Quantization" (signs / sqrt(d)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.quantize.base import Alphabet, BitOrder, check_candidates, refuse_nan
from smalti.quantize.constants import in_long_runs, keep, keep_runs, kept
from smalti.quantize.indices import strides

Grid = Literal["symmetric", "fsq", "centres"]
MAX_SPELLED_OUT = 2**20
EXACT_DOUBLES = 2**53  # whole numbers up to this are exact, whatever the order in which they are added

# Level k of L is the number scale * (step k + start) / unit; here are step, start and unit for each grid.
GRIDS: Mapping[Grid, Callable[[int], tuple[int, int, int]]] = {
    "symmetric": lambda count: (2, 1 - count, count - 1),
    "fsq": lambda count: (1, -(count // 2), count // 2),
    "centres": lambda count: (2, 1, 2 * count),
}


class Scalars(Alphabet):
    """A product of small sets of evenly spaced numbers.

    Args:
        levels: how many values each dimension of a group takes.
        groups: slots; each has its own len(levels) dimensions.
        order: "little" if a group's first dimension is the fastest digit of the code (FSQ, WeTok), "big" if it is the
            slowest (BSQ, LFQ as widely used).
        grid: where L values lie, before scaling: "symmetric" over [-1, 1], both ends included (±1 for L = 2); "fsq" at
            (k - L//2) / (L//2), which has no upper end for even L, as FSQ was published; "centres" of L equal parts of
            [0, 1].
        scale: multiplies the grid; one number, or one per dimension of a group.

    A value halfway between two levels goes to the lower one, so zero is -1 where levels are ±1.
    """

    def __init__(
        self,
        levels: Sequence[int],
        *,
        groups: int = 1,
        order: BitOrder = "little",
        grid: Grid = "symmetric",
        scale: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        self.levels = tuple(int(level) for level in levels)
        self.scales = (float(scale),) * len(self.levels) if isinstance(scale, float | int) else tuple(scale)
        if not self.levels or min(self.levels) < 2 or groups < 1 or min(self.scales) <= 0:
            raise ConfigError(
                f"levels must be at least 2 each, groups at least 1 and scale positive, got {levels}, {groups}, {scale}"
            )
        if order not in ("little", "big") or grid not in GRIDS:
            raise ConfigError(f"order must be little or big and grid one of {sorted(GRIDS)}, got {order!r}, {grid!r}")
        if len(self.scales) != len(self.levels):
            raise ConfigError(f"{len(self.levels)} levels need one scale or as many, got {len(self.scales)}")
        self.groups, self.bit_order, self.grid = groups, order, grid
        self.dim, self.vocab = len(self.levels) * groups, (prod(self.levels),) * groups
        self._count: Tensor
        self._basis: Tensor
        self._to_values: Tensor
        self._to_digits: Tensor
        self._exact_basis: Tensor
        self.register_buffer("_count", torch.tensor(self.levels), persistent=False)
        self.register_buffer("_basis", torch.tensor(strides(self.levels, order)), persistent=False)
        step, start, unit = torch.tensor([GRIDS[grid](level) for level in self.levels], dtype=torch.float64).t()
        unit = unit / torch.tensor(self.scales, dtype=torch.float64)
        keep_runs(self, "_to_values", torch.stack([step, start, unit]))
        # Each level begins above the midpoint to the one below.
        keep_runs(self, "_to_digits", torch.stack([unit / step, -start / step - 0.5, self._count - 1.0]))
        keep(self, "_exact_basis", self._basis)

    @property
    def signs(self) -> bool:
        """Whether every dimension is one bit, ± its scale."""
        return set(self.levels) == {2} and self.grid == "symmetric"

    def values(self, digits: Tensor) -> Tensor:
        """Numbers of levels k: (..., len(levels)) -> float32."""
        runs, numbers = in_long_runs(digits.float(), self._to_values)
        step, start, unit = numbers.float()
        return (torch.addcmul(start, runs, step) / unit).view(digits.shape)

    def tables(self) -> list[Tensor]:
        """The numbers of each dimension of a group."""
        every = torch.arange(max(self.levels), device=self._count.device)[:, None].expand(-1, len(self.levels))
        return [column[:level] for column, level in zip(self.values(every).unbind(1), self.levels, strict=True)]

    def digits(self, codes: Tensor) -> Tensor:
        """Levels of codes: (..., groups) -> (..., groups, len(levels))."""
        return (codes[..., None] // self._basis) % self._count

    def codes(self, digits: Tensor) -> Tensor:
        """Codes of levels: (..., groups, len(levels)) -> (..., groups)."""
        return (digits * self._basis).sum(-1)

    def nearest(self, x: Tensor) -> Tensor:
        return self._codes_of(self._nearest_digits(x))

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        digits = self._nearest_digits(x)
        return self._codes_of(digits), self.values(digits).flatten(-2)

    def _nearest_digits(self, x: Tensor) -> Tensor:
        """The nearest level of every dimension: (rows, dim) -> (rows, groups, len(levels)), bool or float64."""
        grouped = x.unflatten(-1, (self.groups, len(self.levels)))
        if self.signs:
            refuse_nan(x)
            return grouped > 0
        runs, (rate, offset, last) = in_long_runs(grouped.double(), self._to_digits)
        digits = torch.addcmul(offset, runs, rate)
        refuse_nan(digits.sum())  # as cheap a question as can be; no sum of single numbers overflows a double
        return torch.clamp(digits.ceil_(), torch.zeros_like(last), last).view(grouped.shape)

    def _codes_of(self, digits: Tensor) -> Tensor:
        if self.vocab[0] > EXACT_DOUBLES:
            return self.codes(digits.long())
        return (digits.double() @ kept(self._exact_basis)).long()

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        digits, costs = cheapest_products(x, self.tables() * self.groups, k)
        return self.codes(digits.unflatten(-1, (self.groups, len(self.levels)))), costs

    def lookup(self, codes: Tensor) -> Tensor:
        return self.slot_vectors(codes).flatten(-2)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        vectors = self.values(self.digits(codes.clamp(min=0)))
        return vectors.masked_fill((codes < 0)[..., None], 0)

    def codebooks(self) -> list[Tensor]:
        codes = spelled_out(self.vocab[0], self._basis.device)
        return [self.values(self.digits(codes[:, None])[:, 0])] * self.groups


def spelled_out(codes: int, device: torch.device) -> Tensor:
    """All codes of an implicit codebook, if they are few enough to be listed."""
    if codes > MAX_SPELLED_OUT:
        raise InputError(f"this codebook is implicit and has {codes} rows: look codes up instead")
    return torch.arange(codes, device=device)


def cheapest_products(x: Tensor, tables: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k nearest points of a product of sets of numbers, one set per dimension.

    Costs add up over dimensions, so keeping the k cheapest prefixes at every dimension loses nothing.

    Args:
        x: (rows, dim).
        tables: the numbers of each dimension.
        k: how many, at most the size of the product.

    Returns:
        places in the tables (rows, k, dim) and squared distances (rows, k), float64, best first.

    Raises:
        InputError: if the product has no k points.
    """
    check_candidates(k, [len(table) for table in tables])
    costs = x.new_zeros(len(x), 1, dtype=torch.float64)
    chosen = torch.zeros(len(x), 1, 0, dtype=torch.int64, device=x.device)
    for dimension, table in enumerate(tables):
        step = (x[:, dimension, None].double() - table.double()).square()
        total = (costs[:, :, None] + step[:, None, :]).flatten(1)
        order = total.argsort(dim=1, stable=True)[:, :k]
        costs = total.gather(1, order)
        before = chosen.gather(1, (order // len(table))[..., None].expand(-1, -1, chosen.shape[2]))
        chosen = torch.cat([before, (order % len(table))[..., None]], dim=2)
    return chosen, costs
