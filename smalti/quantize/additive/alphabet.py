"""The additive alphabet of a quantizer, and how its codebooks learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize.additive.encoders import Encoder, Ordered
from smalti.quantize.additive.energy import add_up
from smalti.quantize.additive.fitting import least_squares, normal_equations, residual_kmeans
from smalti.quantize.assign import Assigned
from smalti.quantize.base import Alphabet, Noise
from smalti.quantize.distributed import from_first_rank, gather_rows, sum_over_ranks
from smalti.quantize.terms import Term


@dataclass(frozen=True)
class LeastSquares:
    """Codebooks are set, in every update, to the least squares over moving averages of what was seen.

    Args:
        decay: weight of the past in the averages of B'B and B'X.
        damping: towards the present codewords, so that words that nothing chose stay.
        kmeans_iterations: start from residual k-means of the first training batch (0: keep the random start).
    """

    decay: float = 0.99
    damping: float = 1e-4
    kmeans_iterations: int = 10


class Additive(Alphabet):
    """Sums of one codeword from each of M codebooks of full width; a slot per codebook.

    Args:
        dim: d.
        levels: M.
        codes: K, of each codebook.
        encoder: how codes are found; the best four partial sums in the order of the codebooks if None.
        learn: None for codebooks that learn by gradient, or LeastSquares.
        init: fills the (M, K, d) codebooks; a normal law whose sums have variance 1 if None.

    State:
        weight (M, K, d); with LeastSquares also gram (MK, MK), moments (MK, d) and started.
    """

    statistics: ClassVar[tuple[str, ...]] = ("gram", "moments", "started")

    def __init__(
        self,
        dim: int,
        levels: int,
        codes: int,
        *,
        encoder: Encoder | None = None,
        learn: LeastSquares | None = None,
        init: Callable[[Tensor], object] | None = None,
    ) -> None:
        super().__init__()
        if min(dim, levels, codes) < 1:
            raise ConfigError(f"dim, levels and codes must be positive, got {dim}, {levels}, {codes}")
        self.dim, self.vocab = dim, (codes,) * levels
        self.encoder, self.learn = encoder or Ordered(), learn
        self.weight = nn.Parameter(torch.empty(levels, codes, dim, dtype=torch.float32), requires_grad=learn is None)
        with torch.no_grad():
            (init or (lambda weight: nn.init.normal_(weight, std=levels**-0.5)))(self.weight)
        if learn is not None:
            self._register(learn, levels * codes)

    def _register(self, learn: LeastSquares, words: int) -> None:
        self.gram: Tensor
        self.moments: Tensor
        self.started: Tensor
        self._pending_gram: Tensor
        self._pending_moments: Tensor
        for name, shape in (("gram", (words, words)), ("moments", (words, self.dim))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float32))
            self.register_buffer(f"_pending_{name}", torch.zeros(shape, dtype=torch.float32), persistent=False)
        self.register_buffer("started", torch.tensor(not learn.kmeans_iterations))
        self._has_started = self._observed = False

    def nearest(self, x: Tensor) -> Tensor:
        return self.encoder.encode(x, self.weight.detach().float())

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return self.encoder.best(x, self.weight.detach().float(), k)

    def lookup(self, codes: Tensor) -> Tensor:
        """Sums of codewords; levels whose code is -1 add nothing."""
        if torch.compiler.is_compiling() or bool((codes < 0).any()):
            return self.slot_vectors(codes).sum(-2)
        return add_up(codes, self.weight)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        levels = torch.arange(len(self.vocab), device=codes.device)
        return self.weight[levels, codes.clamp(min=0)].masked_fill((codes < 0)[..., None], 0)

    def codebooks(self) -> list[Tensor]:
        return list(self.weight.unbind())

    # --- least squares -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, x: Tensor, noise: Noise) -> None:
        if self.learn is None or self._has_started:
            return
        self._has_started = bool(self.started)
        everything = gather_rows(x)
        if self._has_started or len(everything) == 0:
            return
        levels, codes, _ = self.weight.shape
        seed = int(from_first_rank(torch.randint(2**31, (), device=x.device)))
        books, _ = residual_kmeans(everything, levels, codes, iterations=self.learn.kmeans_iterations, seed=seed)
        self.weight.copy_(from_first_rank(books))
        self.started.fill_(True)
        self._has_started = True

    @torch.no_grad()
    def observe(self, x: Tensor, codes: Tensor, noise: Noise) -> None:
        if self.learn is None:
            return
        gram, moments = normal_equations(x, codes, self.weight.shape[1])
        self._pending_gram += gram
        self._pending_moments += moments
        self._observed = True

    @torch.no_grad()
    def update(self) -> None:
        if self.learn is None or not self._observed:
            return
        share = 1 - self.learn.decay
        self.gram.lerp_(sum_over_ranks(self._pending_gram), share)
        self.moments.lerp_(sum_over_ranks(self._pending_moments), share)
        words = least_squares(self.gram, self.moments, damping=self.learn.damping, towards=self.weight.flatten(0, 1))
        # Every rank computed the same, but only the same bits keep codebooks equal for ever.
        self.weight.copy_(from_first_rank(words.float().view_as(self.weight)))
        self._pending_gram.zero_()
        self._pending_moments.zero_()
        self._observed = False


@dataclass
class ConstantProducts(Term):
    """Composite quantization: mean (s - mean s)², s = sum over m != n of C_m[i_m].C_n[i_n], for an Additive alphabet.

    With s constant, sums of distances to single codewords rank vectors as the distance to their sum does.
    """

    name: ClassVar[str] = "products"
    weight: float = 1.0

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        if not isinstance(alphabet, Additive):
            raise ConfigError(f"ConstantProducts needs an Additive alphabet, got {type(alphabet).__name__}")
        words = alphabet.slot_vectors(assigned.codes)
        products = words.sum(-2).square().sum(-1) - words.square().sum((-2, -1))
        return (products - products.mean()).square().mean()
