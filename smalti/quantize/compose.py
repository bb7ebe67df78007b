"""Quantizers put together from parts: Quantize (one alphabet), Residual (levels), Parallel (side by side).

    Quantize    z ─before─► x ─assign─► codes ─lookup─► q ─estimator─► ─after─► z_q
    Residual    r_0 = z;  r_{i+1} = r_i - q_i;  z_q = q_0 + q_1 + ...                    slots: one per level
    Parallel    "cat": z = [z_0 | z_1 ...], each part has its own dimensions              slots: one per part
                "sum": every part sees z, and their vectors add up

Sources: "Neural Discrete Representation Learning"; "SoundStream: An End-to-End Neural Audio Codec" (residual, with
quantizer dropout); "Product Quantization for Nearest Neighbor Search"; "Moshi" (parts that add up).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from smalti.errors import ConfigError, InputError
from smalti.quantize.assign import Assign, Assigned, Nearest
from smalti.quantize.base import (
    DROPPED,
    Alphabet,
    Noise,
    Quantized,
    Quantizer,
    as_rows,
    check_codes,
    count_codes,
)
from smalti.quantize.distributed import active, from_first_rank, sum_over_ranks
from smalti.quantize.estimators import Estimator, StraightThrough
from smalti.quantize.terms import Term

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

    def forward(
        self,
        z: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        noise: Noise | None = None,
    ) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            rows, real = as_rows(z, self.dim, mask)
            chosen = self.alphabet.project(self.before(rows if real is None else rows[real]))
            if self.training:
                self.alphabet.start(chosen.detach(), noise or {})
            assigned = self.assign(chosen, self.alphabet, noise or {})
            out = self.estimator(chosen, assigned.vectors) if self.assign.estimated else assigned.vectors
            terms = {term.name: term.weight * self._value(term, chosen, assigned) for term in self.terms}
            loss = sum(terms.values(), start=z.new_zeros((), dtype=torch.float32))
            if self.training:
                self.alphabet.observe(chosen.detach(), assigned.codes, noise or {})
            vectors = _spread(self.after(out), real, 0.0).to(z.dtype)
            codes = _spread(assigned.codes, real, DROPPED)
            terms.update(batch_statistics(assigned.codes, self.vocab, over_ranks=self.training))
        shape = z.shape[:-1]
        return Quantized(vectors.reshape(*shape, -1), codes.reshape(*shape, -1), loss, terms)

    def _value(self, term: Term, x: Tensor, assigned: Assigned) -> Tensor:
        # The mean over no rows would be NaN; a masked batch must cost nothing, and still have a gradient everywhere,
        # because other ranks wait for it.
        return term(x, assigned, self.alphabet) if len(x) else x.sum() + assigned.vectors.sum()

    @torch.no_grad()
    def encode(self, z: Tensor, *, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            rows, real = as_rows(z, self.dim, mask)
            chosen = self.alphabet.project(self.before(rows if real is None else rows[real]))
            codes = self.assign.decide(chosen, self.alphabet)
        return _spread(codes, real, DROPPED).reshape(*z.shape[:-1], -1)

    def decode(self, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        check_codes(codes, self.vocab)
        vectors = self.after(self.alphabet.lookup(codes))
        return vectors.masked_fill((codes < 0).all(-1, keepdim=True), 0)

    def lookup(self, codes: Tensor) -> Tensor:
        check_codes(codes, self.vocab)
        return self.alphabet.slot_vectors(codes)

    def codebooks(self) -> list[Tensor]:
        return self.alphabet.codebooks()

    @torch.no_grad()
    def candidates(self, z: Tensor, k: int, *, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        rows, _ = as_rows(z, self.dim, None)
        codes, costs = self.alphabet.candidates(self.alphabet.project(self.before(rows)), k)
        shape = z.shape[:-1]
        return (
            codes.reshape(*shape, k, -1),
            self.after(self.alphabet.lookup(codes)).reshape(*shape, k, -1),
            costs.reshape(*shape, k),
        )


@dataclass(frozen=True)
class Dropout:
    """Trains prefixes: in each training batch only the first n levels are used, n drawn evenly.

    Args:
        at_least: smallest n.
        multiple_of: n is rounded up to a multiple of this.
    """

    at_least: int = 1
    multiple_of: int = 1


class Residual(Quantizer):
    """Each level quantizes what the levels before it left.

    Args:
        levels: quantizers of one dimension.
        before: maps latents (..., dim) into the levels' dimension; None for nothing.
        after: maps the sum of vectors back; None for nothing.
        dim: dimension of the latents; the levels' if None.
        estimator: how gradients pass all levels together; straight-through if None. With "levels" every level's own
            estimator counts, which multiplies a straight-through gradient by the number of levels, as widely published.
        dropout: trains prefixes, or None.

    Noise:
        levels: scalar, the number of levels to use; anything else goes to the levels.
    """

    def __init__(
        self,
        levels: Sequence[Quantizer],
        *,
        before: nn.Module | None = None,
        after: nn.Module | None = None,
        dim: int | None = None,
        estimator: Estimator | Literal["levels"] | None = None,
        dropout: Dropout | None = None,
    ) -> None:
        super().__init__()
        if not levels or len({level.dim for level in levels}) != 1:
            raise ConfigError(f"residual levels must share one dimension, got {[level.dim for level in levels]}")
        if dropout is not None and not 1 <= dropout.at_least <= len(levels):
            raise ConfigError(
                f"dropout keeps at least {dropout.at_least} of {len(levels)} levels: choose 1..{len(levels)}"
            )
        self.levels: Sequence[Quantizer] = nn.ModuleList(levels)  # type: ignore[assignment]
        self.before, self.after = before or nn.Identity(), after or nn.Identity()
        self.estimator, self.dropout = estimator or StraightThrough(), dropout
        self.dim = levels[0].dim if dim is None else dim
        self.inner_dim = levels[0].dim
        self.vocab = tuple(size for level in levels for size in level.vocab)
        self.bit_order = levels[0].bit_order

    def forward(
        self,
        z: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        noise: Noise | None = None,
    ) -> Quantized:
        as_rows(z, self.dim, mask)
        x = self.before(z.float())
        used = self._levels_used(noise or {}, z.device)
        residual, total = x, torch.zeros_like(x)
        codes, losses, terms = [], [], []
        for index, level in enumerate(self.levels):
            if index >= used:
                codes.append(torch.full((*z.shape[:-1], len(level.vocab)), DROPPED, device=z.device))
                continue
            out = level(residual, mask=mask, context=context, noise=noise)
            total, residual = total + out.z, residual - out.z.detach()
            codes.append(out.codes)
            losses.append(out.loss)
            terms.append(out.terms)
        if isinstance(self.estimator, Estimator):
            total = self.estimator(x, total)
        vectors = self.after(total)
        if mask is not None:
            vectors = vectors.masked_fill(~mask[..., None], 0)
        return Quantized(vectors.to(z.dtype), torch.cat(codes, -1), torch.stack(losses).sum(), _join_terms(terms))

    def _levels_used(self, noise: Noise, device: torch.device) -> int:
        count = len(self.levels)
        if not self.training or self.dropout is None:
            return count
        drawn = noise.get("levels")
        if drawn is None:
            drawn = from_first_rank(torch.randint(self.dropout.at_least, count + 1, (), device=device))
        multiple = self.dropout.multiple_of
        return min(count, -(-int(drawn) // multiple) * multiple)

    @torch.no_grad()
    def encode(self, z: Tensor, *, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        as_rows(z, self.dim, mask)
        residual = self.before(z.float())
        codes = []
        for level in self.levels:
            codes.append(level.encode(residual, mask=mask, context=context))
            residual = residual - level.decode(codes[-1], context=context)
        return torch.cat(codes, -1)

    def decode(self, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Vectors of codes; fewer slots than levels decode the first levels alone."""
        parts = self._split(codes)
        total = sum(level.decode(part, context=context) for level, part in zip(self.levels, parts, strict=False))
        return self.after(total).masked_fill((codes < 0).all(-1, keepdim=True), 0)

    def lookup(self, codes: Tensor) -> Tensor:
        return torch.cat([level.lookup(part) for level, part in zip(self.levels, self._split(codes), strict=False)], -2)

    def codebooks(self) -> list[Tensor]:
        return [table for level in self.levels for table in level.codebooks()]

    @torch.no_grad()
    def candidates(self, z: Tensor, k: int, *, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The k cheapest ends of a beam search of width k over the levels."""
        as_rows(z, self.dim, None)
        target = self.before(z.float())[..., None, :]
        total, codes, costs = torch.zeros_like(target), None, None
        for level in self.levels:
            options = min(k, level.vocab[0])
            found, values, _ = level.candidates(target - total, options, context=context)
            ends = total[..., :, None, :] + values
            costs = (target[..., None, :] - ends).double().square().sum(-1).flatten(-2)
            order = costs.argsort(dim=-1, stable=True)[..., :k]
            costs = costs.gather(-1, order)
            total = _take(ends.flatten(-3, -2), order)
            step = _take(found.flatten(-3, -2), order)
            codes = step if codes is None else torch.cat([_take(codes, order // options), step], -1)
        assert codes is not None and costs is not None  # there is at least one level
        return codes, self.after(total), costs

    def _split(self, codes: Tensor) -> list[Tensor]:
        ends = list(accumulate(len(level.vocab) for level in self.levels))
        if codes.shape[-1] not in ends:
            raise InputError(f"codes have {codes.shape[-1]} slots, levels end at {ends}")
        sizes = [len(level.vocab) for level in self.levels[: ends.index(codes.shape[-1]) + 1]]
        return list(codes.split(sizes, -1))


class Parallel(Quantizer):
    """Quantizers side by side.

    Args:
        parts: the quantizers.
        join: "cat" gives each part its own dimensions of z (product quantization), "sum" gives all of z to every part
            and adds their vectors.
    """

    def __init__(self, parts: Sequence[Quantizer], *, join: Literal["cat", "sum"] = "cat") -> None:
        super().__init__()
        dims = [part.dim for part in parts]
        if not parts or join not in ("cat", "sum") or (join == "sum" and len(set(dims)) != 1):
            raise ConfigError(f"parts must exist and, to be added, share one dimension; got {dims}, join={join!r}")
        self.parts: Sequence[Quantizer] = nn.ModuleList(parts)  # type: ignore[assignment]
        self.join = join
        self.dim = sum(dims) if join == "cat" else dims[0]
        self.vocab = tuple(size for part in parts for size in part.vocab)
        self.bit_order = parts[0].bit_order

    def forward(
        self,
        z: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        noise: Noise | None = None,
    ) -> Quantized:
        as_rows(z, self.dim, mask)
        outs = [
            part(piece, mask=mask, context=context, noise=noise)
            for part, piece in zip(self.parts, self._inputs(z), strict=True)
        ]
        loss = torch.stack([out.loss for out in outs]).sum()
        codes = torch.cat([out.codes for out in outs], -1)
        return Quantized(self._join([out.z for out in outs]), codes, loss, _join_terms([out.terms for out in outs]))

    def encode(self, z: Tensor, *, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        as_rows(z, self.dim, mask)
        pieces = zip(self.parts, self._inputs(z), strict=True)
        return torch.cat([part.encode(piece, mask=mask, context=context) for part, piece in pieces], -1)

    def decode(self, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        return self._join([part.decode(piece, context=context) for part, piece in self._split(codes)])

    def lookup(self, codes: Tensor) -> Tensor:
        return torch.cat([part.lookup(piece) for part, piece in self._split(codes)], -2)

    def codebooks(self) -> list[Tensor]:
        return [table for part in self.parts for table in part.codebooks()]

    @torch.no_grad()
    def candidates(self, z: Tensor, k: int, *, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if self.join == "sum":
            raise InputError("parts that add up have no separable costs: ask each part for its candidates")
        codes, values, costs = None, None, None
        for part, piece in zip(self.parts, self._inputs(z), strict=True):
            options = min(k, part.vocab[0])
            found, vectors, cost = part.candidates(piece, options, context=context)
            if codes is None or values is None or costs is None:
                codes, values, costs = found, vectors, cost
                continue
            total = (costs[..., :, None] + cost[..., None, :]).flatten(-2)
            order = total.argsort(dim=-1, stable=True)[..., :k]
            first, second = order // options, order % options
            costs = total.gather(-1, order)
            codes = torch.cat([_take(codes, first), _take(found, second)], -1)
            values = torch.cat([_take(values, first), _take(vectors, second)], -1)
        assert codes is not None and values is not None and costs is not None  # there is at least one part
        return codes, values, costs

    def _inputs(self, z: Tensor) -> Sequence[Tensor]:
        return z.split([part.dim for part in self.parts], -1) if self.join == "cat" else [z] * len(self.parts)

    def _join(self, vectors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(vectors), -1) if self.join == "cat" else torch.stack(list(vectors)).sum(0)

    def _split(self, codes: Tensor) -> list[tuple[Quantizer, Tensor]]:
        check_codes(codes, self.vocab)
        pieces = codes.split([len(part.vocab) for part in self.parts], -1)
        return list(zip(self.parts, pieces, strict=True))


@torch.no_grad()
def batch_statistics(codes: Tensor, vocab: tuple[int, ...], *, over_ranks: bool) -> dict[str, Tensor]:
    """Perplexity and utilisation (share of codes used) of a batch, a value per slot, without waiting for a GPU.

    Args:
        codes: (rows, slots), real ones.
        vocab: per slot; vocabularies over 2^20 are left out.
        over_ranks: count the codes of all ranks, each of which must call this.

    Returns:
        {} where nothing is counted; with ranks, of which only the others may have codes, perplexity 1 and utilisation 0
        where none has any.
    """
    over_ranks = over_ranks and active()
    if max(vocab) > COUNTED_VOCAB or (codes.numel() == 0 and not over_ranks):
        return {}
    perplexities, shares = [], []
    for slot, size in enumerate(vocab):
        counts = count_codes(codes[:, slot], size)
        if over_ranks:
            sum_over_ranks(counts)
        p = counts / counts.sum().clamp(min=1)
        perplexities.append(torch.exp(-torch.special.xlogy(p, p).sum()))
        shares.append((counts > 0).float().mean())
    return {"perplexity": torch.stack(perplexities), "utilisation": torch.stack(shares)}


def _join_terms(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
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


def _take(values: Tensor, order: Tensor) -> Tensor:
    """values (..., n, d) at order (..., k): (..., k, d)."""
    return values.gather(-2, order[..., None].expand(*order.shape, values.shape[-1]))
