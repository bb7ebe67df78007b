"""Scalars: codebooks that no one stores, because they are grids. Each dimension of a latent is rounded on its own.

    levels (8, 5, 5, 5)   finite scalar quantization: one slot of 8*5*5*5 codes
    levels (2,) * 18      lookup-free (sign) quantization: one slot of 2^18 codes
    groups = 4            group-wise: four slots, each with its own dimensions

Sources: "Finite Scalar Quantization: VQ-VAE Made Simple"; "Language Model Beats Diffusion: Tokenizer is Key to Visual
Generation" (lookup-free); "WeTok: Powerful Discrete Tokenization for High-Fidelity Visual Reconstruction" (groups).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from smalti.errors import ConfigError, InputError
from smalti.quantize.base import Alphabet, BitOrder
from smalti.tokens import MAX_VOCAB

Grid = Literal["symmetric", "fsq"]
MAX_SPELLED_OUT = 2**20


class Scalars(Alphabet):
    """A product of small sets of numbers.

    Args:
        levels: how many values each dimension of a group takes.
        groups: slots; each has its own len(levels) dimensions.
        order: "little" if a group's first dimension is the fastest digit of the code (FSQ, WeTok), "big" if it is the
            slowest (BSQ, LFQ as widely used).
        grid: "symmetric" spaces L values evenly over [-scale, scale], both ends included (±scale for L = 2);
            "fsq" gives (k - L//2) / (L//2), which has no upper end for even L, as FSQ was published.
        scale: largest value of a symmetric grid.

    A value halfway between two levels goes to the lower one, so zero is -1 where levels are ±1.
    """

    def __init__(
        self,
        levels: Sequence[int],
        *,
        groups: int = 1,
        order: BitOrder = "little",
        grid: Grid = "symmetric",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.levels = tuple(int(level) for level in levels)
        if not self.levels or min(self.levels) < 2 or groups < 1 or scale <= 0:
            raise ConfigError(
                f"levels must be at least 2 each, groups at least 1 and scale positive, got {levels}, {groups}, {scale}"
            )
        if order not in ("little", "big") or grid not in ("symmetric", "fsq"):
            raise ConfigError(f"order must be little or big and grid symmetric or fsq, got {order!r}, {grid!r}")
        size = prod(self.levels)
        if size > MAX_VOCAB:
            raise ConfigError(f"a slot holds at most 63 bits, {self.levels} has {size} codes: use groups")
        self.groups, self.bit_order, self.grid, self.scale = groups, order, grid, scale
        self.dim, self.vocab = len(self.levels) * groups, (size,) * groups
        steps = self.levels if order == "little" else self.levels[::-1]
        basis = [prod(steps[:i]) for i in range(len(steps))]
        self._count: Tensor
        self._basis: Tensor
        self.register_buffer("_count", torch.tensor(self.levels), persistent=False)
        self.register_buffer("_basis", torch.tensor(basis if order == "little" else basis[::-1]), persistent=False)

    def values(self, digits: Tensor) -> Tensor:
        """Numbers of levels k: (..., len(levels)) int -> float32."""
        half = self._count // 2
        if self.grid == "fsq":
            return (digits - half).float() / half
        return (digits * (2 * self.scale) / (self._count - 1) - self.scale).float()

    def digits(self, codes: Tensor) -> Tensor:
        """Levels of codes: (..., groups) -> (..., groups, len(levels))."""
        return (codes[..., None] // self._basis) % self._count

    def codes(self, digits: Tensor) -> Tensor:
        """Codes of levels: (..., groups, len(levels)) -> (..., groups)."""
        return (digits * self._basis).sum(-1)

    def nearest(self, x: Tensor) -> Tensor:
        if not bool(torch.isfinite(x).all()):
            raise InputError("latents hold NaN or infinity")
        grouped = x.double().unflatten(-1, (self.groups, len(self.levels)))
        # Each level begins above the midpoint to the one below. Adding what is zero for two levels last keeps the sign
        # of the smallest number.
        if self.grid == "fsq":
            half = self._count // 2
            digits = (grouped * half + (half - 0.5)).ceil()
        else:
            digits = (grouped * (self._count - 1) / (2 * self.scale) + (self._count / 2 - 1)).ceil()
        return self.codes(digits.clamp(min=0).minimum(self._count - 1).long())

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Costs add up over dimensions, so keeping the k cheapest prefixes at every dimension loses nothing."""
        if k > prod(self.vocab):
            raise InputError(f"k must be at most the number of codes {prod(self.vocab)}, got {k}")
        costs = x.new_zeros(len(x), 1, dtype=torch.float64)
        chosen = torch.zeros(len(x), 1, 0, dtype=torch.int64, device=x.device)
        for dimension in range(self.dim):
            slot = dimension % len(self.levels)
            options = torch.arange(self.levels[slot], device=x.device)
            row = torch.zeros(len(options), len(self.levels), dtype=torch.int64, device=x.device)
            row[:, slot] = options
            value = self.values(row)[:, slot].double()
            step = (x[:, dimension, None].double() - value).square()
            total = (costs[:, :, None] + step[:, None, :]).flatten(1)
            order = total.argsort(dim=1, stable=True)[:, :k]
            costs = total.gather(1, order)
            before = chosen.gather(1, (order // len(options))[..., None].expand(-1, -1, chosen.shape[2]))
            chosen = torch.cat([before, options[order % len(options)][..., None]], dim=2)
        return self.codes(chosen.unflatten(-1, (self.groups, len(self.levels)))), costs

    def lookup(self, codes: Tensor) -> Tensor:
        return self.slot_vectors(codes).flatten(-2)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        vectors = self.values(self.digits(codes.clamp(min=0)))
        return vectors.masked_fill((codes < 0)[..., None], 0)

    def codebooks(self) -> list[Tensor]:
        if self.vocab[0] > MAX_SPELLED_OUT:
            raise InputError(f"this codebook is implicit and has {self.vocab[0]} rows: look codes up instead")
        codes = torch.arange(self.vocab[0], device=self._basis.device)
        return [self.values(self.digits(codes[:, None])[:, 0])] * self.groups


class BoundFSQ(nn.Module):
    """Bounds latents so that rounding to an "fsq" or "symmetric" grid can't leave it: tanh, shifted for even levels.

    Args:
        levels: as in Scalars.
        groups: as in Scalars.
        grid: as in Scalars.
    """

    MARGIN = 1e-3  # published: the bound lies this share outside the outermost level, so that its gradient survives

    def __init__(self, levels: Sequence[int], groups: int = 1, grid: Grid = "fsq") -> None:
        super().__init__()
        count = torch.tensor(list(levels) * groups, dtype=torch.float64)
        half = (count - 1) * (1 + self.MARGIN) / 2
        offset = torch.where(count % 2 == 0, 0.5, 0.0).double()
        self.grid = grid
        self._half: Tensor
        self._offset: Tensor
        self._shift: Tensor
        self._unit: Tensor
        self.register_buffer("_half", half.float(), persistent=False)
        self.register_buffer("_offset", offset.float(), persistent=False)
        self.register_buffer("_shift", torch.atanh(offset / half).float(), persistent=False)
        self.register_buffer("_unit", torch.div(count, 2, rounding_mode="floor").float(), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        if self.grid == "symmetric":
            return torch.tanh(z)
        return (torch.tanh(z + self._shift) * self._half - self._offset) / self._unit
