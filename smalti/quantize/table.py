"""Table: an explicit codebook, whatever holds its vectors and however they learn.

    vectors   Trained | Frozen | Mapped | Bridged | Affine      what the rows are                          (vectors.py)
    space     Euclidean | Unit                                  where distances are measured
    learn     None (by gradient) | EMA | InPlace                how the rows follow the data               (learning.py)
    revive    None | Expire                                     what happens to codes that nothing chooses  (revival.py)

Sources: "Neural Discrete Representation Learning" (VQ-VAE; gradient and EMA), "Vector-quantized Image Modeling with
Improved VQGAN" (unit vectors), "SoundStream" (k-means start, replacement of dead codes).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from smalti.errors import ConfigError
from smalti.quantize.affine import Affine
from smalti.quantize.base import Alphabet, Noise, count_codes
from smalti.quantize.distributed import from_first_rank, gather_rows, sum_over_ranks
from smalti.quantize.learning import Learning
from smalti.quantize.neighbours import Prepared, nearest, nearest_k, prepare
from smalti.quantize.revival import Revive
from smalti.quantize.vectors import Trained, Vectors

Space = Literal["euclidean", "unit"]
Version = tuple[tuple[int, int], ...]  # where each tensor lies and how often autograd saw it written
COMPARED_WHOLE = 2**13  # up to so many 64-bit words, comparing all of them costs less than summing them


class Table(Alphabet):
    """An explicit codebook with one slot.

    Args:
        vectors: what the rows are.
        space: "euclidean", or "unit" (rows and latents are compared at length 1; codes mean the unit rows).
        learn: None for rows that learn by gradient (or not at all), or a rule, which needs Trained or Affine vectors.
        revive: what happens to dead codes, or None.

    State:
        vectors.*: the rows.
        ema_count (K,), started: the statistics of `learn` and `revive`; ema_sum (K, D): of EMA; revival_steps,
            revival_memory (K,): of dead-code rules that look back further.
    """

    statistics: ClassVar[tuple[str, ...]] = ("ema_count", "ema_sum", "started", "revival_steps", "revival_memory")

    ema_count: Tensor
    ema_sum: Tensor
    started: Tensor
    revival_steps: Tensor
    revival_memory: Tensor
    _pending_count: Tensor
    _pending_sum: Tensor

    def __init__(
        self,
        vectors: Vectors,
        *,
        space: Space = "euclidean",
        learn: Learning | None = None,
        revive: Revive | None = None,
    ) -> None:
        super().__init__()
        self.sets_rows = learn is not None and learn.sets_rows
        if self.sets_rows and not isinstance(vectors, Trained | Affine):
            raise ConfigError(
                f"{type(learn).__name__} sets rows itself, so it needs Trained vectors, got {type(vectors).__name__}"
            )
        if (learn or revive) is not None and vectors.stored() is None:
            raise ConfigError(f"rules set rows, so they need Trained vectors, got {type(vectors).__name__}")
        if space not in ("euclidean", "unit"):
            raise ConfigError(f"space must be 'euclidean' or 'unit', got {space!r}")
        self.vectors, self.space, self.learn, self.revive = vectors, space, learn, revive
        self.dim, self.vocab = vectors.dim, (vectors.codes,)
        self.optimizer: Optimizer | None = None  # of learning rules that have one; their state is not saved
        self._kept: tuple[Version, Tensor, Prepared] | None = None
        # What forward gathered since the last update; it never outlives a step, so it is not saved.
        self.observations = 0
        self._seen: list[Tensor] = []
        self._noise: Noise = {}
        self._has_started = False
        if self.sets_rows:
            self.stored_rows().requires_grad_(False)
        if self.counting:
            codes = vectors.codes
            self.register_buffer("ema_count", torch.ones(codes, dtype=torch.float32))
            self.register_buffer("started", torch.tensor(not (learn and learn.starts_from_data)))
            self.register_buffer("_pending_count", torch.zeros(codes, dtype=torch.float32), persistent=False)
        if learn is not None:
            summed = vectors.codes if self.sets_rows else 0
            self.register_buffer("_pending_sum", torch.zeros(summed, self.dim, dtype=torch.float32), persistent=False)
            learn.register(self)
        if revive is not None:
            revive.register(self)

    @property
    def counts(self) -> Tensor:
        """How often each code was chosen since the last update, over all ranks while an update runs: (codes,)."""
        return self._pending_count

    @property
    def counting(self) -> bool:
        """Whether training keeps statistics."""
        return self.learn is not None or self.revive is not None

    def stored_rows(self) -> Tensor:
        """The rows that rules set: (codes, dim)."""
        rows = self.vectors.stored()
        if rows is None:
            raise ConfigError(f"{type(self.vectors).__name__} holds no rows that could be set")
        return rows.weight

    def rows(self) -> Tensor:
        """The effective codebook in its space: (codes, dim)."""
        if torch.is_grad_enabled() or self.training or torch.compiler.is_compiling():
            return self.spaced(self.vectors())
        return self._prepared().table

    @torch.no_grad()
    def _prepared(self) -> Prepared:
        """The codebook ready for searching, kept until a tensor that makes it changes."""
        tensors = [*self.vectors.parameters(), *self.vectors.buffers()]
        # Tensors of inference mode count no writes.
        if self.training or any(tensor.is_inference() for tensor in tensors):
            return prepare(self.spaced(self.vectors()))
        version = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        # Writes through `.data`, as broadcasts of weights do, count nowhere: only the content shows them.
        content = torch.cat([_fingerprint(tensor) for tensor in tensors])
        if self._kept is None or self._kept[0] != version or not torch.equal(self._kept[1], content):
            self._kept = (version, content, prepare(self.spaced(self.vectors())))
        return self._kept[2]

    def _searchable(self) -> Prepared | Tensor:
        # A compiled search prepares nothing: its table is an input like any other.
        return self.spaced(self.vectors()) if torch.compiler.is_compiling() else self._prepared()

    def project(self, x: Tensor) -> Tensor:
        return self.spaced(x)

    def spaced(self, x: Tensor) -> Tensor:
        """Vectors (..., dim) moved into the table's space."""
        return F.normalize(x, dim=-1) if self.space == "unit" else x

    def nearest(self, x: Tensor) -> Tensor:
        return nearest(x, self._searchable())[:, None]

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        codes, costs = nearest_k(x, self._searchable(), k)
        return codes[..., None], costs

    def chosen(self, codes: Tensor) -> Tensor:
        # Its gradient is one index_add, many times faster on a CPU than that of an embedding.
        return self.rows().index_select(0, codes.flatten()).unflatten(0, codes.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        return self.chosen(codes.clamp(min=0)).masked_fill(codes < 0, 0)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        return self.lookup(codes)[..., None, :]

    def codebooks(self) -> list[Tensor]:
        return [self.rows()]

    # --- learning without gradients ----------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, x: Tensor, noise: Noise) -> None:
        self._start_rows(x, noise)
        self.vectors.start(x)

    def _start_rows(self, x: Tensor, noise: Noise) -> None:
        # The flag is read from the device once only: asking it in every step would make the step wait.
        if self.learn is None or not self.learn.starts_from_data or self._has_started:
            return
        self._has_started = bool(self.started)
        everything = gather_rows(x)
        if self._has_started or len(everything) == 0:
            return
        rows, counts = self.learn.first_rows(self, everything, noise)
        # Every rank computed the same, but only the same bits keep codebooks equal for ever.
        self.stored_rows().copy_(from_first_rank(rows))
        # A count of at least one lets an empty cluster keep its mean until `revive` finds it.
        self.ema_count.copy_(from_first_rank(counts).float().clamp(min=1))
        self.adopt_rows()
        self.started.fill_(True)
        self._has_started = True

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        # What was gathered belongs to the state before.
        self._has_started = False
        self.observations, self._seen, self._noise = 0, [], {}
        for name in ("_pending_count", "_pending_sum"):
            if hasattr(self, name):
                getattr(self, name).zero_()

    @torch.no_grad()
    def observe(self, x: Tensor, codes: Tensor, noise: Noise) -> None:
        if not self.counting:
            return
        if self.learn is not None and self.learn.keeps != 1:
            self._pending_count *= self.learn.keeps
            self._pending_sum *= self.learn.keeps
        index = codes[:, 0]
        self._pending_count += count_codes(index, self.vectors.codes)
        if self.sets_rows:
            self._pending_sum.index_add_(0, index, self.vectors.to_stored(x))
        if self.revive is not None:
            self._seen.append(x)
        self.observations += 1
        self._noise = noise

    @torch.no_grad()
    def update(self) -> None:
        """Applies the statistics of all `forward` calls since the last update, over all ranks."""
        self.vectors.update()
        if not self.observations:
            return  # nothing to learn from
        counts = sum_over_ranks(self._pending_count)
        if self.learn is not None:
            self.learn.step(self, counts, sum_over_ranks(self._pending_sum))
            self._pending_sum.zero_()
        elif self.revive is not None:
            self.average_counts(counts, 1 - self.revive.decay)
        if self.revive is not None:
            self.revive.apply(self, self._seen, self._noise)
        self._pending_count.zero_()
        self.observations, self._seen, self._noise = 0, [], {}

    def average_counts(self, counts: Tensor, share: float | Tensor) -> None:
        """Moves the moving average of counts a share of the way to new ones, (codes,)."""
        if isinstance(share, Tensor):
            self.ema_count.lerp_(counts, share)
        else:
            self.ema_count.mul_(1 - share).add_(counts, alpha=share)

    @torch.no_grad()
    def adopt_rows(self) -> None:
        """Makes the moving averages those of the present rows, after something else has set them."""
        if self.learn is not None:
            self.learn.adopt(self)

    @torch.no_grad()
    def replace(self, dead: Tensor, fresh: Tensor, count: float) -> None:
        """Sets dead codes, and every statistic of theirs.

        Args:
            dead: (codes,), bool.
            fresh: (codes, dim), the latents that they become; other rows are ignored.
            count: how often they count as chosen.
        """
        rows, fresh = self.stored_rows(), self.vectors.to_stored(fresh)
        rows.copy_(torch.where(dead[:, None], fresh, rows))
        self.ema_count.copy_(torch.where(dead, count, self.ema_count))
        if self.learn is not None:
            self.learn.replaced(self, dead, fresh, count)


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
