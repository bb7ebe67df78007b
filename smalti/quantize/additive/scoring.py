"""Distances from queries to additive codes through look-up tables, without decoding.

|q - x̂|² = |q|² - 2 sum_m q.C_m[i_m] + |x̂|²          one table of q.C_m per query; |x̂|² is stored, a byte each
CQ:  sum_m |q - C_m[i_m]|² = |q - x̂|² + constant, where products of codewords are constant: nothing is stored
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smalti.quantize.additive.energy import add_up
from smalti.quantize.additive.fitting import least_squares, normal_equations
from smalti.quantize.clustering import kmeans
from smalti.quantize.neighbours import nearest

HELD = 2**24  # distances held at once


@dataclass(frozen=True)
class Scores:
    """Codes made ready for queries.

    Args:
        codebooks: (M, K, d).
        codes: (n, M).
        shares: (M, K), what each codeword adds to |x̂|².
        rests: (n,), what is missing from |x̂|² then, as it is stored; None if nothing is.
    """

    codebooks: Tensor
    codes: Tensor
    shares: Tensor
    rests: Tensor | None

    @classmethod
    def of(cls, codebooks: Tensor, codes: Tensor, *, norm_levels: int | None = 256) -> Scores:
        """Stores |x̂|² at `norm_levels` levels (256 take a byte), or exactly if None.

        What sums of shares explain of |x̂|² costs nothing to store, so that the levels cover the rest alone.
        """
        norms = add_up(codes, codebooks).double().square().sum(1)
        if norm_levels is None:
            return cls(codebooks, codes, torch.zeros_like(codebooks[..., 0]), norms.float())
        levels, size, _ = codebooks.shape
        gram, moments = normal_equations(norms[:, None], codes, size)
        shares = least_squares(gram, moments).view(levels, size)
        rests = (norms - shares[torch.arange(levels, device=codes.device), codes].sum(1)).float()
        if len(rests) > norm_levels:
            # Started at quantiles, because most rests lie close together.
            start = rests.argsort()[torch.linspace(0, len(rests) - 1, norm_levels, device=rests.device).long()]
            table, _ = kmeans(rests[:, None], norm_levels, 25, start=start)
            rests = table[nearest(rests[:, None], table), 0]
        return cls(codebooks, codes, shares.float(), rests)

    @classmethod
    def composite(cls, codebooks: Tensor, codes: Tensor) -> Scores:
        """Stores nothing: right, up to a constant, as far as products of codewords are constant."""
        return cls(codebooks, codes, codebooks.square().sum(-1), None)

    def distances(self, queries: Tensor) -> Tensor:
        """Squared distances (q, n) of queries (q, d)."""
        tables = self.shares - 2 * torch.einsum("qd,mkd->qmk", queries.float(), self.codebooks)
        total = queries.float().square().sum(1, keepdim=True).expand(-1, len(self.codes)).clone()
        for level in range(self.codes.shape[1]):
            total += tables[:, level, self.codes[:, level]]
        return total if self.rests is None else total + self.rests

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest codes of each query: numbers (q, k) and what `distances` says of them."""
        found = [
            self.distances(part).topk(k, dim=1, largest=False)
            for part in queries.split(max(1, HELD // max(1, len(self.codes))))
        ]
        return torch.cat([each.indices for each in found]), torch.cat([each.values for each in found])
