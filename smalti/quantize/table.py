"""Table: an explicit codebook, whatever holds its vectors and however they learn.

    vectors   Trained | Frozen | Mapped(network over a frozen base)       what the rows are
    space     Euclidean | Unit                                            where distances are measured
    learn     Gradient | EMA                                              how the rows follow the data
    revive    None | Expire                                               what happens to codes that nothing chooses

Sources: "Neural Discrete Representation Learning" (VQ-VAE; gradient and EMA), "Vector-quantized Image Modeling with
Improved VQGAN" (unit vectors), "SoundStream" (k-means start, replacement of dead codes), "Addressing Representation
Collapse in Vector Quantized Models with One Linear Layer" (mapped tables).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize.base import Alphabet, Noise, count_codes
from smalti.quantize.clustering import kmeans
from smalti.quantize.distributed import from_first_rank, gather_rows, random_rows, sum_over_ranks
from smalti.quantize.neighbours import Prepared, nearest, nearest_k, prepare

Init = Callable[[Tensor], object]
Space = Literal["euclidean", "unit"]
Version = tuple[tuple[int, int], ...]  # where each tensor lies and how often autograd saw it written
COMPARED_WHOLE = 2**13  # up to so many 64-bit words, comparing all of them costs less than summing them


class Vectors(nn.Module):
    """The rows of a table: (codes, dim)."""

    codes: int
    dim: int
    weight: Tensor

    def forward(self) -> Tensor:
        """The effective rows, differentiable in what is trained."""
        return self.weight


def uniform(scale: float) -> Init:
    """Initialisation U(-scale, scale); VQ-VAE uses scale 1/K."""
    return lambda weight: nn.init.uniform_(weight, -scale, scale)


class Trained(Vectors):
    """Rows that are parameters (learned by gradient) or are set by EMA.

    Args:
        codes: number of rows K.
        dim: their dimension D.
        init: fills a (K, D) tensor; U(-1/K, 1/K) if None.
    """

    def __init__(self, codes: int, dim: int, init: Init | None = None) -> None:
        super().__init__()
        if codes < 1 or dim < 1:
            raise ConfigError(f"a table needs at least one code and one dimension, got {codes} x {dim}")
        self.codes, self.dim = codes, dim
        self.weight = nn.Parameter(torch.empty(codes, dim))
        with torch.no_grad():
            (init or uniform(1 / codes))(self.weight)


class Frozen(Vectors):
    """Rows that never change.

    Args:
        rows: (codes, dim).
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.codes, self.dim = rows.shape
        self.register_buffer("weight", rows.float().clone())


class Mapped(Vectors):
    """Rows that move together: a trained network over a frozen base (SimVQ with one linear layer).

    Args:
        base: (codes, base dim), frozen.
        network: maps rows to (codes, dim).
        dim: what the network gives.
    """

    def __init__(self, base: Tensor, network: nn.Module, dim: int) -> None:
        super().__init__()
        self.codes, self.dim = len(base), dim
        self.register_buffer("weight", base.float().clone())
        self.network = network

    def forward(self) -> Tensor:
        return self.network(self.weight)


@dataclass(frozen=True)
class EMA:
    """Rows follow the mean of what chose them, as an exponential moving average.

    Args:
        decay: weight of the past.
        eps: Laplace smoothing of the counts.
        kmeans_iterations: start from k-means of the first training batch (0: keep the random start).
    """

    decay: float = 0.99
    eps: float = 1e-5
    kmeans_iterations: int = 0


@dataclass(frozen=True)
class Expire:
    """Codes chosen less often than `threshold` (moving average of counts per step) become random latents of the batch.

    Their moving averages are set too, so that the next step does not undo the replacement.
    """

    threshold: float = 2.0


class Table(Alphabet):
    """An explicit codebook with one slot.

    Args:
        vectors: what the rows are.
        space: "euclidean", or "unit" (rows and latents are compared at length 1; codes mean the unit rows).
        learn: None for rows that learn by gradient (or not at all), or EMA, which needs Trained vectors.
        revive: what happens to dead codes, or None.

    State:
        vectors.*: the rows.
        ema_count (K,), ema_sum (K, D), started: the statistics of EMA and of `revive`.
    """

    statistics: ClassVar[tuple[str, ...]] = ("ema_count", "ema_sum", "started")

    def __init__(
        self,
        vectors: Vectors,
        *,
        space: Space = "euclidean",
        learn: EMA | None = None,
        revive: Expire | None = None,
    ) -> None:
        super().__init__()
        if learn is not None and not isinstance(vectors, Trained):
            raise ConfigError(f"EMA sets rows itself, so it needs Trained vectors, got {type(vectors).__name__}")
        if revive is not None and not isinstance(vectors, Trained):
            raise ConfigError(f"revive replaces rows, so it needs Trained vectors, got {type(vectors).__name__}")
        if space not in ("euclidean", "unit"):
            raise ConfigError(f"space must be 'euclidean' or 'unit', got {space!r}")
        self.vectors, self.space, self.learn, self.revive = vectors, space, learn, revive
        self.dim, self.vocab = vectors.dim, (vectors.codes,)
        self._kept: tuple[Version, Tensor, Prepared] | None = None
        if learn is not None:
            vectors.weight.requires_grad_(False)
        if self.counting:
            self._register_statistics()

    def _register_statistics(self) -> None:
        codes, rows = self.vectors.codes, self.vectors.weight.detach()
        self.ema_count: Tensor
        self.ema_sum: Tensor
        self.started: Tensor
        self.register_buffer("ema_count", torch.ones(codes))
        self.register_buffer("ema_sum", self._spaced(rows).clone())
        self.register_buffer("started", torch.tensor(not (self.learn and self.learn.kmeans_iterations)))
        # What forward gathered since the last update; it never outlives a step, so it is not saved.
        self._pending_count: Tensor
        self._pending_sum: Tensor
        self.register_buffer("_pending_count", torch.zeros(codes), persistent=False)
        self.register_buffer("_pending_sum", torch.zeros(codes, self.dim), persistent=False)
        self._batch: tuple[Tensor, Noise] | None = None
        self._has_started = False

    @property
    def counting(self) -> bool:
        """Whether training keeps statistics."""
        return self.learn is not None or self.revive is not None

    def rows(self) -> Tensor:
        """The effective codebook in its space: (codes, dim)."""
        if torch.is_grad_enabled() or self.training or torch.compiler.is_compiling():
            return self._spaced(self.vectors())
        return self._prepared().table

    @torch.no_grad()
    def _prepared(self) -> Prepared:
        """The codebook ready for searching, kept until a tensor that makes it changes."""
        tensors = [*self.vectors.parameters(), *self.vectors.buffers()]
        # Tensors of inference mode count no writes.
        if self.training or any(tensor.is_inference() for tensor in tensors):
            return prepare(self._spaced(self.vectors()))
        version = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        # Writes through `.data`, as broadcasts of weights do, count nowhere: only the content shows them.
        content = torch.cat([_fingerprint(tensor) for tensor in tensors])
        if self._kept is None or self._kept[0] != version or not torch.equal(self._kept[1], content):
            self._kept = (version, content, prepare(self._spaced(self.vectors())))
        return self._kept[2]

    def _searchable(self) -> Prepared | Tensor:
        # A compiled search prepares nothing: its table is an input like any other.
        return self._spaced(self.vectors()) if torch.compiler.is_compiling() else self._prepared()

    def project(self, x: Tensor) -> Tensor:
        return self._spaced(x)

    def _spaced(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.space == "unit" else x

    def nearest(self, x: Tensor) -> Tensor:
        return nearest(x, self._searchable())[:, None]

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        codes, costs = nearest_k(x, self._searchable(), k)
        return codes[..., None], costs

    def lookup(self, codes: Tensor) -> Tensor:
        index = codes[..., 0]
        found = F.embedding(index.clamp(min=0), self.rows())
        return found.masked_fill((index < 0)[..., None], 0)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        return self.lookup(codes)[..., None, :]

    def codebooks(self) -> list[Tensor]:
        return [self.rows()]

    # --- learning without gradients ----------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, x: Tensor, noise: Noise) -> None:
        # The flag is read from the device once only: asking it in every step would make the step wait.
        if self.learn is None or not self.learn.kmeans_iterations or self._has_started:
            return
        self._has_started = bool(self.started)
        everything = gather_rows(x)
        if self._has_started or len(everything) == 0:
            return
        means, counts = kmeans(
            everything,
            self.vectors.codes,
            self.learn.kmeans_iterations,
            start=noise.get("start_rows"),
            unit=self.space == "unit",
        )
        # Every rank computed the same, but only the same bits keep codebooks equal for ever.
        self._set_rows(from_first_rank(means), from_first_rank(counts).float())
        self.started.fill_(True)
        self._has_started = True

    def _set_rows(self, means: Tensor, counts: Tensor) -> None:
        # A count of at least one lets an empty cluster keep its mean until `revive` finds it.
        counts = counts.clamp(min=1)
        self.vectors.weight.copy_(means)
        self.ema_count.copy_(counts)
        self.ema_sum.copy_(means * counts[:, None])

    @torch.no_grad()
    def observe(self, x: Tensor, codes: Tensor, noise: Noise) -> None:
        if not self.counting:
            return
        index = codes[:, 0]
        self._pending_count += count_codes(index, self.vectors.codes)
        if self.learn is not None:
            self._pending_sum.index_add_(0, index, x)
        self._batch = (x, noise)

    @torch.no_grad()
    def update(self) -> None:
        """Applies the statistics of all `forward` calls since the last update, over all ranks."""
        if not self.counting or self._batch is None:
            return  # nothing to learn from
        decay = self.learn.decay if self.learn is not None else EMA().decay
        counts, sums = sum_over_ranks(self._pending_count), sum_over_ranks(self._pending_sum)
        self.ema_count.mul_(decay).add_(counts, alpha=1 - decay)
        if self.learn is not None:
            self.ema_sum.mul_(decay).add_(sums, alpha=1 - decay)
            total = self.ema_count.sum()
            smoothed = (self.ema_count + self.learn.eps) / (total + self.vectors.codes * self.learn.eps) * total
            self.vectors.weight.copy_(self._spaced(self.ema_sum / smoothed[:, None]))
        if self.revive is not None:
            self._replace_expired(self.revive, *self._batch)
        self._pending_count.zero_()
        self._pending_sum.zero_()
        self._batch = None

    @torch.no_grad()
    def adopt_rows(self) -> None:
        """Makes the moving averages those of the present rows, after something else has set them."""
        if self.learn is not None:
            self.ema_sum.copy_(self.vectors.weight * self.ema_count[:, None])

    def expired(self) -> Tensor:
        """Which codes the rule of `revive` calls dead now: (codes,), bool."""
        return self.ema_count < (self.revive or Expire()).threshold

    def _replace_expired(self, rule: Expire, x: Tensor, noise: Noise) -> None:
        everything = gather_rows(x)
        if len(everything) == 0:
            return
        chosen = noise.get("replacement_rows")
        if chosen is None:
            chosen = random_rows(len(everything), self.vectors.codes, x.device)
        expired = self.expired()
        fresh = from_first_rank(everything[chosen])
        self.vectors.weight.copy_(torch.where(expired[:, None], fresh, self.vectors.weight))
        self.ema_count.copy_(torch.where(expired, rule.threshold, self.ema_count))
        self.ema_sum.copy_(torch.where(expired[:, None], fresh * rule.threshold, self.ema_sum))


def _fingerprint(tensor: Tensor) -> Tensor:
    """Integers that change with a tensor's content: its 64-bit words, or sums of many along both sides of a square.

    Whole numbers, so that no precision setting or thread count matters; both sides, so that order counts too.
    """
    flat = tensor.detach().flatten()
    size = flat.element_size()
    if missing := -flat.numel() * size % 8:
        flat = F.pad(flat, (0, missing // size))
    elif flat.storage_offset() * size % 8:
        flat = flat.clone()
    words = flat.view(torch.int64)
    if len(words) <= COMPARED_WHOLE:
        return words
    side = max(1, math.isqrt(len(words)))
    square = words[: len(words) // side * side].view(-1, side)
    return torch.cat([square.sum(0), square.sum(1), words[square.numel() :]])
