"""Quantize: one alphabet, with what stands around it. `Residual` and `Parallel` put several together.

z ─before─► ─project─► x ─assign─► codes ─lookup─► q ─estimator─► ─after─► z_q
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from smalti.errors import InputError
from smalti.quantize.assign import Assign, Assigned, Given, Nearest, Rows
from smalti.quantize.base import (
    DROPPED,
    Alphabet,
    Noise,
    Quantized,
    Quantizer,
    as_rows,
    check_codes,
    count_codes,
    full_precision,
    refuse_nan,
    without_gradient,
)
from smalti.quantize.distributed import active, sum_over_ranks
from smalti.quantize.estimators import Estimator, StraightThrough
from smalti.quantize.terms import Term
from smalti.quantize.usage import Usage

COUNTED_VOCAB = 2**20  # above this a batch's histogram costs more than it says


class Quantize(Quantizer):
    """One alphabet, with projections, a way to choose, an estimator and loss terms around it.

    Args:
        alphabet: the set of vectors.
        before: maps latents (..., dim) to what the alphabet compares; None for nothing.
        after: maps vectors back to (..., dim); None for nothing.
        dim: dimension of the latents; the alphabet's if None.
        assign: how codes are chosen; the nearest if None.
        estimator: how gradients pass the choice; straight-through if None.
        terms: the parts of the loss.

    Shape:
        z: (batch, *positions, dim) -> codes: (batch, *positions, slots of the alphabet), int64
    """

    def __init__(
        self,
        alphabet: Alphabet,
        *,
        before: nn.Module | None = None,
        after: nn.Module | None = None,
        dim: int | None = None,
        assign: Assign | None = None,
        estimator: Estimator | None = None,
        terms: Sequence[Term] = (),
    ) -> None:
        super().__init__()
        self.alphabet = alphabet
        self.before, self.after = before or nn.Identity(), after or nn.Identity()
        self.assign = assign or Nearest()
        self.estimator = estimator or StraightThrough()
        self.terms = tuple(terms)
        self.dim = alphabet.dim if dim is None else dim
        self.vocab, self.bit_order = alphabet.vocab, alphabet.bit_order
        self._usage = Usage(self.vocab if max(self.vocab) <= COUNTED_VOCAB else (0,) * len(self.vocab))

    @property
    def conditional(self) -> bool:  # type: ignore[override]
        """Whether it needs a context."""
        return self.alphabet.conditional

    def forward(
        self,
        z: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        noise: Noise | None = None,
    ) -> Quantized:
        return self._quantize(z, self.assign, mask, context, noise or {})

    def follow(
        self,
        z: Tensor,
        codes: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        noise: Noise | None = None,
    ) -> Quantized:
        """`forward` with codes (batch, *positions, slots) that a search found; masked ones are ignored."""
        check_codes(codes, self.vocab)
        rows = codes.reshape(-1, codes.shape[-1])
        assign = Given(rows if mask is None else rows[mask.reshape(-1)])
        return self._quantize(z, assign, mask, context, noise or {})

    def _quantize(
        self, z: Tensor, assign: Assign, mask: Tensor | None, context: Tensor | None, noise: Noise
    ) -> Quantized:
        with full_precision(z.device):
            rows, real = as_rows(z, self.dim, mask)
            latents = rows if real is None else rows[real]
            refuse_nan(latents)
            alphabet = self._given(context, real)
            moved = self.before(latents)
            x = alphabet.project(moved)
            # Recomputation under activation checkpointing must see what the forward pass saw, and counts once.
            learning = self.training and not _in_backward()
            if learning:
                alphabet.start(x.detach(), noise)
            assigned = replace(assign(x, alphabet, noise), rows=Rows(latents, z.shape[:-1], real))
            out = self._estimate(moved if self.estimator.raw else x, assigned.vectors, assign, noise)
            terms = {term.name: term.weight * self._value(term, x, assigned, alphabet) for term in self.terms}
            loss = sum(terms.values(), start=z.new_zeros((), dtype=torch.float32))
            if learning:
                alphabet.observe(x.detach(), assigned.codes, noise)
            vectors = _spread(self.after(out), real, 0.0).to(z.dtype)
            codes = _spread(assigned.codes, real, DROPPED)
            counts = batch_counts(assigned.codes, self.vocab, over_ranks=learning)
            terms.update(statistics(counts))
            if learning and counts:
                self._usage.add(counts, len(latents))
        shape = z.shape[:-1]
        return Quantized(unfold(vectors, shape), unfold(codes, shape), loss, terms)

    def usage(self) -> Tensor:
        return self._usage.share()

    @without_gradient
    def margin(self, z: Tensor, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        if prod(self.vocab) < 2:
            return torch.full(codes.shape, math.inf, device=codes.device)
        *_, costs = self.candidates(z, 2, context=context)
        return (costs[..., 1:] - costs[..., :1]).float().expand(codes.shape).clone()

    def _given(self, context: Tensor | None, real: Tensor | None) -> Alphabet:
        if not self.conditional:
            return self.alphabet
        if context is None:
            raise InputError("this quantizer is conditional: give a context (batch, *positions, dim)")
        rows = context.float().reshape(-1, context.shape[-1])
        return self.alphabet.given(rows if real is None else rows[real])

    def _estimate(self, x: Tensor, q: Tensor, assign: Assign, noise: Noise) -> Tensor:
        if not assign.estimated:
            return q
        if (parts := self.alphabet.parts) > 1:
            x, q = x.unflatten(-1, (parts, -1)), q.unflatten(-1, (parts, -1))
        out = self.estimator.draw(x, q, noise) if self.training else self.estimator(x, q)
        return out.flatten(1)

    def _value(self, term: Term, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        # The mean over no rows would be NaN; a masked batch must cost nothing, and still have a gradient everywhere,
        # because other ranks wait for it.
        if len(x) or (term.over_ranks and active()):
            return term(x, assigned, alphabet)
        return x.sum() + assigned.vectors.sum()

    @without_gradient
    def encode(self, z: Tensor, *, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        with full_precision(z.device):
            rows, real = as_rows(z, self.dim, mask)
            latents = rows if real is None else rows[real]
            refuse_nan(latents)
            alphabet = self._given(context, real)
            codes = self.assign.decide(alphabet.project(self.before(latents)), alphabet)
        return unfold(_spread(codes, real, DROPPED), z.shape[:-1])

    def decode(self, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        check_codes(codes, self.vocab)
        with full_precision(codes.device):
            if self.conditional:
                vectors = self._given(context, None).lookup(codes.reshape(-1, codes.shape[-1]))
                vectors = unfold(vectors, codes.shape[:-1])
            else:
                vectors = self.alphabet.lookup(codes)
            if isinstance(self.after, nn.Identity):
                return vectors  # those of codes -1 are zero already
            return self.after(vectors).masked_fill((codes < 0).all(-1, keepdim=True), 0)

    def lookup(self, codes: Tensor) -> Tensor:
        check_codes(codes, self.vocab)
        with full_precision(codes.device):
            return self.alphabet.slot_vectors(codes)

    def codebooks(self) -> list[Tensor]:
        return self.alphabet.codebooks()

    @without_gradient
    def candidates(self, z: Tensor, k: int, *, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        with full_precision(z.device):
            rows, _ = as_rows(z, self.dim, None)
            refuse_nan(rows)
            alphabet = self._given(context, None)
            codes, costs = self.assign.candidates(alphabet.project(self.before(rows)), alphabet, k)
            vectors = self._candidate_vectors(codes, context)
        shape = z.shape[:-1]
        return unfold(codes, shape), unfold(vectors, shape), unfold(costs, shape)

    def _candidate_vectors(self, codes: Tensor, context: Tensor | None) -> Tensor:
        if context is None or not self.conditional:
            return self.after(self.alphabet.lookup(codes))
        rows = context.float().reshape(-1, 1, context.shape[-1]).expand(-1, codes.shape[1], -1)
        return self.decode(codes, context=rows)


@without_gradient
def batch_counts(codes: Tensor, vocab: tuple[int, ...], *, over_ranks: bool) -> list[Tensor]:
    """How often each code of each slot occurs in a batch, without waiting for a GPU: (codes,) per slot.

    Args:
        codes: (rows, slots), real ones.
        vocab: per slot.
        over_ranks: count the codes of all ranks, each of which must call this.

    Returns:
        [] where nothing is counted: without codes, and with vocabularies over 2^20.
    """
    over_ranks = over_ranks and active()
    if max(vocab) > COUNTED_VOCAB or (codes.numel() == 0 and not over_ranks):
        return []
    counts = [count_codes(codes[:, slot], size) for slot, size in enumerate(vocab)]
    return [sum_over_ranks(each) for each in counts] if over_ranks else counts


@without_gradient
def statistics(counts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Perplexity and utilisation (share of codes used) of each slot's counts; 1 and 0 where nothing was counted."""
    if not counts:
        return {}
    shares = [each / each.sum().clamp(min=1) for each in counts]
    return {
        "perplexity": torch.stack([torch.exp(-torch.special.xlogy(p, p).sum()) for p in shares]),
        "utilisation": torch.stack([(each > 0).float().mean() for each in counts]),
    }


def no_statistics(vocab: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    """What `statistics` says of a batch without codes, over whatever ranks."""
    if max(vocab) > COUNTED_VOCAB:
        return {}
    slots = len(vocab)
    return {"perplexity": torch.ones(slots, device=device), "utilisation": torch.zeros(slots, device=device)}


def join_terms(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Loss terms add up; statistics, which have a value per slot, are put side by side."""
    names = list(dict.fromkeys(name for part in parts for name in part))
    joined = {}
    for name in names:
        values = [part[name] for part in parts if name in part]
        joined[name] = torch.cat(values) if values[0].ndim else torch.stack(values).sum()
    return joined


def _spread(values: Tensor, real: Tensor | None, fill: float) -> Tensor:
    """Rows of real positions back among the masked ones, which hold `fill`."""
    if real is None:
        return values
    spread = torch.full((len(real), values.shape[-1]), fill, dtype=values.dtype, device=values.device)
    return spread.index_put((real.nonzero()[:, 0],), values)


def unfold(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Rows (rows, ...) as (*shape, ...), also where there are none."""
    return rows.reshape(*shape, *rows.shape[1:])


def take(values: Tensor, order: Tensor) -> Tensor:
    """values (..., n, d) at order (..., k): (..., k, d)."""
    return values.gather(-2, order[..., None].expand(*order.shape, values.shape[-1]))


def led_by(own: Tensor, others: Tensor) -> Tensor:
    """Codes others (..., k), nearest first, with own (..., 1) at the front: moved there, or in place of the last."""
    return torch.cat([own, others.gather(-1, (others == own).byte().argsort(dim=-1, stable=True))[..., :-1]], -1)


def _in_backward() -> bool:
    """Whether autograd's backward pass runs, in which a forward pass can only be a recomputation."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
