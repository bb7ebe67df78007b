"""Warped: an alphabet seen through a map, so that loss terms see the latents as they are.

    Quantize(grid, before=bound)             x = bound(z)  ──► grid          terms see bound(z)
    Quantize(Warped(grid, bound), ...)       x = z  ──► bound ──► grid       terms see z: as in VidTok, FSP

With `Through(bound)` as estimator the gradient is the same in both forms; with the map's inverse as `back`, codes mean
vectors of the latents' own space, and a plain straight-through estimator fits.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from smalti.quantize.base import Alphabet
from smalti.quantize.estimators import Estimator


class Warped(Alphabet):
    """The alphabet's nearest code to bound(x).

    Args:
        alphabet: the set of vectors.
        bound: maps latents (..., dim) into the alphabet's space.
        back: maps the alphabet's vectors; None leaves them where they are.
    """

    def __init__(self, alphabet: Alphabet, bound: nn.Module, back: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.alphabet, self.bound, self.back = alphabet, bound, back or nn.Identity()
        self.dim, self.vocab, self.bit_order = alphabet.dim, alphabet.vocab, alphabet.bit_order

    def nearest(self, x: Tensor) -> Tensor:
        return self.alphabet.nearest(self.bound(x))

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest by squared distance in the alphabet's space."""
        return self.alphabet.candidates(self.bound(x), k)

    def lookup(self, codes: Tensor) -> Tensor:
        return self.slot_vectors(codes).flatten(-2)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        return self.back(self.alphabet.slot_vectors(codes)).masked_fill((codes < 0)[..., None], 0)

    def codebooks(self) -> list[Tensor]:
        return [self.back(table) for table in self.alphabet.codebooks()]


class Through(Estimator):
    """The value is the chosen vector, the gradient that of bound(x): rounding counts as the identity, the bound not.

    Args:
        bound: that of the Warped alphabet.
    """

    def __init__(self, bound: Callable[[Tensor], Tensor]) -> None:
        self.bound = bound

    def __call__(self, x: Tensor, q: Tensor) -> Tensor:
        bounded = self.bound(x)
        return q.detach() + (bounded - bounded.detach())
