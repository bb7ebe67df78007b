"""Residual: each level quantizes what the levels before it left.

    r_0 = before(z);  q_i = level_i(r_i);  r_{i+1} = r_i - q_i;  z_q = after(q_0 + q_1 + ...)       slots: one per level

Sources: "SoundStream: An End-to-End Neural Audio Codec"; "Autoregressive Image Generation using Residual Quantization"
(one codebook for all levels); "Residual Quantization with Implicit Neural Codebooks" (levels that depend on the sum so
far).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from smalti.errors import ConfigError, InputError
from smalti.quantize.base import (
    DROPPED,
    Noise,
    Quantized,
    Quantizer,
    as_rows,
    check_candidates,
    full_precision,
    refuse_nan,
    without_gradient,
)
from smalti.quantize.beam import Beam, search
from smalti.quantize.compose import Quantize, join_terms, no_statistics, unfold
from smalti.quantize.dropout import LevelDropout
from smalti.quantize.estimators import Estimator, StraightThrough
from smalti.quantize.multiscale import PartialSums
from smalti.quantize.sums import folded_sum


class Residual(Quantizer):
    """Quantizers one after the other.

    A level's table may be another's too (give the same quantizer several times): what all of its levels saw is
    gathered, and applied once. Conditional levels get the sum of the levels before them as context.

    Args:
        levels: quantizers of one dimension.
        before: maps latents (..., dim) into the levels' dimension; None for nothing.
        after: maps the sum of vectors back; None for nothing.
        dim: dimension of the latents; the levels' if None.
        estimator: how gradients pass all levels together; straight-through if None. With "levels" every level's own
            estimator counts, which multiplies a straight-through gradient by the number of levels, as widely published.
        dropout: trains prefixes, or None.
        search: finds the codes; None takes them level by level.
        passed_gradient: the share of the gradient of the residual that passes the subtraction of a level's vector.
        loss: a term over the sums of the first levels, or None; the levels' own losses are added.

    Noise:
        levels: the number of levels to use, a scalar or one per sample; anything else goes to the levels.
    """

    def __init__(
        self,
        levels: Sequence[Quantizer],
        *,
        before: nn.Module | None = None,
        after: nn.Module | None = None,
        dim: int | None = None,
        estimator: Estimator | Literal["levels"] | None = None,
        dropout: LevelDropout | None = None,
        search: Beam | None = None,
        passed_gradient: float = 0.0,
        loss: PartialSums | None = None,
    ) -> None:
        super().__init__()
        if not levels or len({level.dim for level in levels}) != 1:
            raise ConfigError(f"residual levels must share one dimension, got {[level.dim for level in levels]}")
        if dropout is not None:
            dropout.check(len(levels))
        if search is not None:
            search.check(levels)
        self.levels: Sequence[Quantizer] = nn.ModuleList(levels)  # type: ignore[assignment]
        self.before, self.after = before or nn.Identity(), after or nn.Identity()
        self.estimator, self.dropout = estimator or StraightThrough(), dropout
        self.search, self.passed_gradient, self.loss = search, passed_gradient, loss
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
        with full_precision(z.device):
            as_rows(z, self.dim, mask)
            x, noise = self._inner(z, mask), noise or {}
            used = self._used(z, noise)
            path = self._path(x, mask, used)
            total, residual = torch.zeros_like(x), x
            outs: list[Quantized] = []
            sums: list[Tensor] = []
            for index, level in enumerate(self.levels):
                kept = _still_used(mask, used, index, z)
                if kept is False:
                    outs.append(_dropped(z, level))
                    continue
                seen = total if level.conditional else context
                if path is None:
                    out = level(residual, mask=kept, context=seen, noise=noise)
                else:
                    assert isinstance(level, Quantize)  # a search has no others
                    out = level.follow(residual, path[index], mask=kept, context=seen, noise=noise)
                total, residual = total + out.z, residual - self._subtracted(out.z)
                outs.append(out)
                sums.append(total)
            if isinstance(self.estimator, Estimator):
                total = self._estimated(self.estimator, x, total, mask, noise)
            vectors = self.after(total)
            if mask is not None:
                vectors = vectors.masked_fill(~mask[..., None], 0)
            losses = torch.stack([out.loss for out in outs])
            terms, loss = {**join_terms([out.terms for out in outs]), "level_loss": losses.detach()}, losses.sum()
            if self.loss is not None and (mask is None or bool(mask.any())):
                terms["partial_sums"] = self.loss.weight * self.loss(x, sums, mask)
                loss = loss + terms["partial_sums"]
        return Quantized(vectors.to(z.dtype), torch.cat([out.codes for out in outs], -1), loss, terms)

    def _path(self, x: Tensor, mask: Tensor | None, used: Tensor | None) -> list[Tensor] | None:
        """The codes of each level that the search finds.

        None where it keeps one path: each level then chooses for itself, by a draw if it learns so.

        Masked positions get codes that mean nothing.
        """
        if self.search is None or self.search.width_in(self.training) == 1:
            return None
        levels = self.levels if used is None or used.ndim else self.levels[: int(used)]
        rows = x.detach().reshape(-1, self.inner_dim)
        if mask is not None:
            rows = torch.where(mask.reshape(-1, 1), rows, 0)
        codes = unfold(self.search.path(levels, rows, self.training), x.shape[:-1])
        return list(codes.split([len(level.vocab) for level in levels], -1))

    def _inner(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """What the levels share out: (batch, *positions, dim of the levels)."""
        # Whatever stands at masked positions, no gradient may meet it.
        x = z.float() if mask is None else z.float().masked_fill(~mask[..., None], 0)
        if not isinstance(self.before, nn.Identity):
            refuse_nan(x)  # a bound before the levels would hide infinity from them
        return self.before(x)

    def _used(self, z: Tensor, noise: Noise) -> Tensor | None:
        if not self.training or self.dropout is None:
            return None
        return self.dropout.used(len(self.levels), len(z), z.device, noise)

    def _estimated(self, estimator: Estimator, x: Tensor, total: Tensor, mask: Tensor | None, noise: Noise) -> Tensor:
        """The sum of all levels with its gradient. What is drawn is drawn for real positions alone."""
        if not self.training:
            return estimator(x, total)
        if mask is None:
            return estimator.draw(x, total, noise)
        return torch.zeros_like(total).index_put((mask,), estimator.draw(x[mask], total[mask], noise))

    def _subtracted(self, vectors: Tensor) -> Tensor:
        share = self.passed_gradient
        return vectors.detach() if share == 0 else share * vectors + (1 - share) * vectors.detach()

    @without_gradient
    def encode(self, z: Tensor, *, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        with full_precision(z.device):
            as_rows(z, self.dim, mask)
            x = self._inner(z, mask)
            path = self._path(x, mask, None)
            if path is None:
                return self._level_by_level(x, mask, context)[0]
            codes = torch.cat(path, -1)
            return codes if mask is None else codes.masked_fill(~mask[..., None], DROPPED)

    def _level_by_level(self, x: Tensor, mask: Tensor | None, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each level's own choice: codes (..., slots), and the sum of their vectors."""
        total, residual, found = torch.zeros_like(x), x, []
        for level in self.levels:
            seen = total if level.conditional else context
            found.append(level.encode(residual, mask=mask, context=seen))
            vectors = level.decode(found[-1], context=seen)
            total, residual = total + vectors, residual - vectors
        return torch.cat(found, -1), total

    def decode(self, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Vectors of codes; fewer slots than levels decode the first levels alone."""
        with full_precision(codes.device):
            total = torch.stack(list(self.level_vectors(codes, context=context))).cumsum(0)[-1]
            return self.after(total).masked_fill((codes < 0).all(-1, keepdim=True), 0)

    def level_vectors(self, codes: Tensor, *, context: Tensor | None = None) -> Iterator[Tensor]:
        """What each level adds: (batch, *positions, dim of the levels), a level at a time."""
        total: Tensor | None = None
        for level, part in zip(self.levels, self._split(codes), strict=False):
            if total is None:
                total = torch.zeros(*codes.shape[:-1], self.inner_dim, device=codes.device)
            vectors = level.decode(part, context=total if level.conditional else context)
            total = total + vectors
            yield vectors

    @without_gradient
    def margin(self, z: Tensor, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        with full_precision(z.device):
            residual, margins = self.before(z.float()), []
            total = torch.zeros_like(residual)
            for level, own in zip(self.levels, self._split(codes), strict=True):
                seen = total if level.conditional else context
                margins.append(level.margin(residual, own, context=seen))
                vectors = level.decode(own, context=seen)
                total, residual = total + vectors, residual - vectors
            return torch.cat(margins, -1)

    def members(self) -> Sequence[Quantizer]:
        return self.levels

    def lookup(self, codes: Tensor) -> Tensor:
        return torch.cat([level.lookup(part) for level, part in zip(self.levels, self._split(codes), strict=False)], -2)

    def codebooks(self) -> list[Tensor]:
        return [table for level in self.levels for table in level.codebooks()]

    @without_gradient
    def candidates(self, z: Tensor, k: int, *, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The k cheapest ends of a beam search over the levels, which is at least as wide as that of `encode`.

        One candidate is the code of `encode`; so is the first of several where `encode` has a beam of that width.
        """
        check_candidates(k, self.vocab)
        with full_precision(z.device):
            as_rows(z, self.dim, None)
            x = self._inner(z, None)
            if k == 1 and (self.search is None or self.search.width_in(training=False) == 1):
                codes, total = (each[..., None, :] for each in self._level_by_level(x, None, context))
                costs = folded_sum((x[..., None, :].double() - total.double()).square())
                return codes, self.after(total), costs
            beam = self.search or Beam(k)
            width = max(k, beam.width_in(training=False))
            found = search(self.levels, x.reshape(-1, self.inner_dim), width, beam.level_weights, paths=k)
            codes, total, costs = (unfold(each, z.shape[:-1]) for each in found)
            return codes, self.after(total), costs

    def _split(self, codes: Tensor) -> list[Tensor]:
        ends = list(accumulate(len(level.vocab) for level in self.levels))
        if codes.shape[-1] not in ends:
            raise InputError(f"codes have {codes.shape[-1]} slots, levels end at {ends}")
        sizes = [len(level.vocab) for level in self.levels[: ends.index(codes.shape[-1]) + 1]]
        return list(codes.split(sizes, -1))


def _still_used(mask: Tensor | None, used: Tensor | None, index: int, z: Tensor) -> Tensor | Literal[False] | None:
    """The mask of positions that use the level of this number; None if all do, False if the batch drops the level."""
    if used is None:
        return mask
    if used.ndim == 0:
        return mask if index < int(used) else False
    own = (index < used).view(-1, *[1] * (z.ndim - 2)).expand(z.shape[:-1])
    return own if mask is None else own & mask


def _dropped(z: Tensor, level: Quantizer) -> Quantized:
    """What a level gives that the batch drops."""
    codes = torch.full((*z.shape[:-1], len(level.vocab)), DROPPED, device=z.device)
    return Quantized(torch.zeros(0), codes, z.new_zeros((), dtype=torch.float32), no_statistics(level.vocab, z.device))
