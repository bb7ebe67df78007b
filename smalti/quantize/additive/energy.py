"""The squared error of additive codes as sums of table entries.

|x - sum_m C_m[i_m]|² = |x|² + sum_m u_m(i_m) + sum_{m<n} p_mn(i_m, i_n)
u_m(k) = |C_m[k]|² - 2 x.C_m[k]          p_mn(k, l) = 2 C_m[k].C_n[l]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FIXED_BITS = 20  # products of two such numbers add up exactly in float64 over 2^12 dimensions


@dataclass(frozen=True)
class Energy:
    """The tables of a set of codebooks.

    What the codebooks share is taken out (each is centred, and x loses the sum of their means), so that an offset costs
    no digits and a sum that lacks some codebooks is judged as if they were at their means. Factors are rounded to 20
    bits of the largest number around, so that products and sums are exact in whatever order a library takes them: codes
    depend on their row and the codebooks alone.

    Args:
        codebooks: (M, K, d), centred and rounded, float64.
        offset: (d,), the sum of the means, float64.
        squares: (M, K), |C|².
        pairs: (M, K, M, K), p. Entries of a codebook with itself mean nothing.
    """

    codebooks: Tensor
    offset: Tensor
    squares: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, codebooks: Tensor) -> Energy:
        """The tables of codebooks (M, K, d)."""
        exact = codebooks.detach().double()
        means = exact.mean(1, keepdim=True)
        centred = exact - means
        rounded = _rounded(centred, centred.abs().amax())
        flat = rounded.flatten(0, 1)
        pairs = (2 * flat @ flat.t()).view(*rounded.shape[:2], *rounded.shape[:2])
        return cls(rounded, means.sum((0, 1)), rounded.square().sum(-1), pairs)

    def moved(self, x: Tensor) -> Tensor:
        """Rows (n, d) without what the codebooks share, rounded: (n, d), float64."""
        centred = x.detach().double() - self.offset
        return _rounded(centred, centred.abs().amax(1, keepdim=True))

    def singles(self, x: Tensor) -> Tensor:
        """u for rows (n, d): (n, M, K), float64."""
        products = self.moved(x) @ self.codebooks.flatten(0, 1).t()
        return self.squares - 2 * products.view(x.shape[0], *self.squares.shape)

    def measured(self, x: Tensor, codes: Tensor) -> Tensor:
        """|x - sum|² of codes (n, M) through the tables: (n,), float64."""
        singles = self.singles(x).gather(2, codes[..., None])[..., 0].sum(1)
        total = self.moved(x).square().sum(1) + singles
        levels = range(codes.shape[1])
        return total + sum(self.pairs[m, codes[:, m], n, codes[:, n]] for m in levels for n in levels if m < n)


def _rounded(values: Tensor, largest: Tensor) -> Tensor:
    unit = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - FIXED_BITS)
    return (values / unit).round() * unit


def add_up(codes: Tensor, codebooks: Tensor) -> Tensor:
    """Sums of codewords in the order of the codebooks: (..., M) and (M, K, d) -> (..., d)."""
    total = codebooks[0][codes[..., 0]]
    for level in range(1, len(codebooks)):
        total = total + codebooks[level][codes[..., level]]
    return total
