"""Halves: a codebook whose first codes are for known latents, and whose other codes are for the rest.

    known latent ──► nearest of rows [0, split)            others ──► nearest of rows [split, K)

A hole in a picture thus never shares a code with what is seen. The context says which latents are known; learning rules
of the table see all codes together.

Source: "Reduce Information Loss in Transformers for Pluralistic Image Inpainting" (PUT, 2022; P-VQVAE's dual codebook).
"""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.quantize.base import Alphabet, Noise
from smalti.quantize.neighbours import nearest, nearest_k
from smalti.quantize.table import Table


class Halves(Alphabet):
    """A table in two parts.

    Args:
        table: all rows.
        split: the first row of the part for latents that are not known.

    Context:
        (batch, *positions, 1): positive where a latent is known.
    """

    conditional = True

    def __init__(self, table: Table, split: int) -> None:
        super().__init__()
        if not 0 < split < table.vocab[0]:
            raise ConfigError(f"the split must leave rows to both parts of {table.vocab[0]}, got {split}")
        self.table, self.split = table, split
        self.dim, self.vocab = table.dim, table.vocab

    def given(self, context: Tensor | None) -> Alphabet:
        if context is None:
            raise InputError("say which latents are known: give a context (batch, *positions, 1)")
        return _Sides(self, context[..., 0] > 0)

    def project(self, x: Tensor) -> Tensor:
        return self.table.project(x)

    def nearest(self, x: Tensor) -> Tensor:
        return self.given(None).nearest(x)

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return self.given(None).candidates(x, k)

    def lookup(self, codes: Tensor) -> Tensor:
        return self.table.lookup(codes)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        return self.table.slot_vectors(codes)

    def codebooks(self) -> list[Tensor]:
        return self.table.codebooks()

    def update(self) -> None:
        self.table.update()


class _Sides(Alphabet):
    """The two parts for rows of which some are known, (rows,)."""

    def __init__(self, halves: Halves, known: Tensor) -> None:
        super().__init__()
        self._halves = [halves]  # in a list, so that it is no second owner of the parameters
        self.known = known
        self.dim, self.vocab = halves.dim, halves.vocab

    def _parts(self) -> tuple[Tensor, Tensor]:
        halves = self._halves[0]
        rows = halves.table.rows().detach()
        return rows[: halves.split], rows[halves.split :]

    def project(self, x: Tensor) -> Tensor:
        return self._halves[0].project(x)

    def nearest(self, x: Tensor) -> Tensor:
        first, second = self._parts()
        codes = torch.where(self.known, nearest(x, first), nearest(x, second) + len(first))
        return codes[:, None]

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        first, second = self._parts()
        codes, costs = nearest_k(x, first, k)
        others, other_costs = nearest_k(x, second, k)
        known = self.known[:, None]
        return torch.where(known, codes, others + len(first))[..., None], torch.where(known, costs, other_costs)

    def lookup(self, codes: Tensor) -> Tensor:
        return self._halves[0].lookup(codes)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        return self._halves[0].slot_vectors(codes)

    def codebooks(self) -> list[Tensor]:
        return self._halves[0].codebooks()

    def start(self, x: Tensor, noise: Noise) -> None:
        self._halves[0].table.start(x, noise)

    def observe(self, x: Tensor, codes: Tensor, noise: Noise) -> None:
        self._halves[0].table.observe(x, codes, noise)
