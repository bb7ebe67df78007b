"""MultiScale: coarse to fine, each scale codes what the coarser ones left.

    rest = z                                    z (batch, *full, dim)
    scale k:   down(rest) ─level k─► q_k (batch, *extent k, dim)       codes of scale k
               rest -= smooth_k(up(q_k));   partial k = smooth_0(up(q_0)) + ... + smooth_k(up(q_k))
    z_q = the last partial

Scales lie on other positions than z, so codes are (batch, positions of all scales, slots): the scales' positions one
after another, coarse to fine, each flattened row by row. `extents` says how many positions each scale has, `split`
takes codes apart, and the first scales alone decode too.

    VAR      sizes 1, 2, 3 ... 16; area down, bicubic up, smoothing convolutions; one codebook for all scales
    SNAC     strides 4, 2, 1 in time; mean down, repeat up; a codebook with projections per scale

Sources: "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction" (2024); "SNAC:
Multi-Scale Neural Audio Codec" (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from smalti.errors import ConfigError, InputError
from smalti.quantize.base import (
    DROPPED,
    Noise,
    Quantized,
    Quantizer,
    as_rows,
    check_codes,
    full_precision,
    without_gradient,
)
from smalti.quantize.distributed import from_first_rank
from smalti.quantize.estimators import Estimator, StraightThrough
from smalti.quantize.scales import Extent, Resize, Scales

EMPTY = 1e-6  # a position of a scale that covers less real positions than this share has no code


@dataclass
class PartialSums:
    """VAR's loss: mean over scales of mean (partial - sg z)² + commitment * mean (z - sg partial)².

    It trains the codebook through the partial sums, so levels need `CodebookOnly` as their estimator.

    Args:
        weight: of the whole term.
        commitment: weight of what draws latents to codes.
    """

    weight: float = 1.0
    commitment: float = 0.25

    def __call__(self, z: Tensor, partials: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        def distance(x: Tensor, y: Tensor) -> Tensor:
            error = x - y if mask is None else (x - y)[mask]
            return error.square().sum() / max(1, error.numel())  # a batch without positions costs nothing

        costs = [distance(p, z.detach()) + self.commitment * distance(p.detach(), z) for p in partials]
        return torch.stack(costs).mean()


@dataclass(frozen=True)
class Prefixes:
    """Trains prefixes: with some probability, a batch uses only its first n scales, n drawn evenly below all.

    Args:
        at_least: smallest n.
        probability: of leaving out any.
    """

    at_least: int = 1
    probability: float = 1.0


class MultiScale(Quantizer):
    """A residual quantizer whose levels lie on grids of different extents.

    Args:
        levels: a quantizer per scale, coarse to fine; the same object for several scales shares its codebook.
        scales: the extents (`Sizes`, `Strides`).
        down: brings channel-first latents to a scale's extent.
        up: brings them back.
        smooth: a module per scale for vectors that came back up (channel first); None for nothing.
        estimator: how gradients pass all scales together; straight-through if None. With "levels" every level's own
            estimator counts.
        detach: whether the residual forgets the gradient of what was subtracted. SNAC keeps it.
        loss: a term over the partial sums, or None; the levels' own losses are added.
        prefixes: trains prefixes, or None.

    Shape:
        z: (batch, *full, dim) -> codes: (batch, sum of the scales' positions, slots), int64

    Noise:
        scales: scalar, the number of scales to use; anything else goes to the levels.
    """

    def __init__(
        self,
        levels: Sequence[Quantizer],
        scales: Scales,
        *,
        down: Resize,
        up: Resize,
        smooth: Sequence[nn.Module] | None = None,
        estimator: Estimator | Literal["levels"] | None = None,
        detach: bool = True,
        loss: PartialSums | None = None,
        prefixes: Prefixes | None = None,
    ) -> None:
        super().__init__()
        if len(levels) != len(scales) or (smooth is not None and len(smooth) != len(scales)):
            raise ConfigError(f"{len(scales)} scales need as many levels and smoothings, got {len(levels)} levels")
        if len({(level.dim, level.vocab) for level in levels}) != 1:
            raise ConfigError(f"scales share dimension and vocabulary, got {[(lv.dim, lv.vocab) for lv in levels]}")
        if prefixes is not None and not 1 <= prefixes.at_least <= len(levels):
            raise ConfigError(f"prefixes keep at least {prefixes.at_least} of {len(levels)} scales")
        self.levels: Sequence[Quantizer] = nn.ModuleList(levels)  # type: ignore[assignment]
        self.smooth = nn.ModuleList(smooth if smooth is not None else [nn.Identity() for _ in levels])
        self.scales, self.down, self.up = scales, down, up
        self.estimator, self.detach = estimator or StraightThrough(), detach
        self.loss, self.prefixes = loss, prefixes
        self.dim, self.vocab, self.bit_order = levels[0].dim, levels[0].vocab, levels[0].bit_order

    # --- the contract ------------------------------------------------------------------------------------------------

    def forward(
        self,
        z: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        noise: Noise | None = None,
    ) -> Quantized:
        full = self._full(z, mask)
        used = self._scales_used(noise or {}, z.device)
        with full_precision(z.device):
            wide = z.float() if mask is None else z.float().masked_fill(~mask[..., None], 0)
            rest, total = wide, torch.zeros_like(wide)
            codes, losses, terms, partials = [], [], [], []
            for index, extent in enumerate(self.extents(full)):
                if index >= used:
                    codes.append(torch.full((len(z), prod(extent), len(self.vocab)), DROPPED, device=z.device))
                    continue
                part, real = self._shrink(rest, extent, mask)
                out = self.levels[index](part, mask=real, context=None, noise=noise)
                step = self._grow(index, out.z, full, mask)
                total, rest = total + step, rest - (step.detach() if self.detach else step)
                codes.append(out.codes.flatten(1, -2))
                losses.append(out.loss)
                terms.append(out.terms)
                partials.append(total)
            if isinstance(self.estimator, Estimator):
                total = self.estimator(wide, total)
                total = total if mask is None else total.masked_fill(~mask[..., None], 0)
            joined = _join(terms)
            if self.loss is not None and (mask is None or bool(mask.any())):
                joined["partial_sums"] = self.loss.weight * self.loss(wide, partials, mask)
                losses.append(joined["partial_sums"])
        return Quantized(total.to(z.dtype), torch.cat(codes, 1), torch.stack(losses).sum(), joined)

    def _scales_used(self, noise: Noise, device: torch.device) -> int:
        count = len(self.levels)
        if not self.training or self.prefixes is None:
            return count
        if "scales" in noise:
            return int(noise["scales"])
        least = self.prefixes.at_least
        drawn = torch.randint(least, max(least + 1, count), (), device=device)
        kept = torch.rand((), device=device) < self.prefixes.probability
        return int(from_first_rank(torch.where(kept, drawn, count)))

    @without_gradient
    def encode(self, z: Tensor, *, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        full, codes = self._full(z, mask), []
        with full_precision(z.device):
            rest = z.float() if mask is None else z.float().masked_fill(~mask[..., None], 0)
            for index, extent in enumerate(self.extents(full)):
                part, real = self._shrink(rest, extent, mask)
                found = self.levels[index].encode(part, mask=real)
                rest = rest - self._grow(index, self.levels[index].decode(found), full, mask)
                codes.append(found.flatten(1, -2))
        return torch.cat(codes, 1)

    def decode(self, codes: Tensor, *, context: Tensor | None = None, extent: Extent | None = None) -> Tensor:
        """Vectors of codes; those of the first scales decode the first scales alone.

        Args:
            codes: (batch, positions of the scales, slots).
            context: not used.
            extent: of z, where the number of codes leaves it open; see `Scales.full`.
        """
        with full_precision(codes.device):
            return self._accumulate(codes, extent)[-1]

    @without_gradient
    def margin(self, z: Tensor, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        full, margins = self._full(z, None), []
        maps = self.split(codes, full)
        mask = _real_positions(maps, full)
        with full_precision(z.device):
            rest = z.float() if mask is None else z.float().masked_fill(~mask[..., None], 0)
            for index, own in enumerate(maps):
                part, _ = self._shrink(rest, tuple(own.shape[1:-1]), mask)
                margins.append(self.levels[index].margin(part, own).flatten(1, -2))
                rest = rest - self._grow(index, self.levels[index].decode(own), full, mask)
        return torch.cat(margins, 1)

    def members(self) -> Sequence[Quantizer]:
        return self.levels

    def lookup(self, codes: Tensor) -> Tensor:
        """Each slot's own vector: (batch, positions of the scales, slots, code dim)."""
        maps = self.split(codes)
        return torch.cat([level.lookup(part.flatten(1, -2)) for level, part in zip(self.levels, maps, strict=False)], 1)

    def codebooks(self) -> list[Tensor]:
        """The table of each slot; for each scale, one after another, unless scales share them."""
        own = list(dict.fromkeys(self.levels))
        return [table for level in own for table in level.codebooks()]

    @without_gradient
    def candidates(self, z: Tensor, k: int, *, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """At each position of each scale the k best codes for what the best ones of the coarser scales left.

        Returns:
            codes (batch, positions of the scales, k, slots); values (batch, positions of the scales, k, dim), at the
            scale's own extent; costs (batch, positions of the scales, k).
        """
        full, found = self._full(z, None), []
        with full_precision(z.device):
            rest = z.float()
            for index, (level, extent) in enumerate(zip(self.levels, self.extents(full), strict=True)):
                part, _ = self._shrink(rest, extent, None)
                best = level.candidates(part, k)
                rest = rest - self._grow(index, level.decode(best[0].select(-2, 0)), full, None)
                found.append([each.flatten(1, len(extent)) for each in best])
        codes, values, costs = (torch.cat(each, 1) for each in zip(*found, strict=True))
        return codes, values, costs

    # --- scales ------------------------------------------------------------------------------------------------------

    def extents(self, full: Extent) -> list[Extent]:
        """The extent of each scale, coarse to fine, for latents of extent `full`."""
        return self.scales.extents(full)

    def split(self, codes: Tensor, extent: Extent | None = None) -> list[Tensor]:
        """Codes of each scale: (batch, positions of the scales, slots) -> maps (batch, *extent of the scale, slots).

        Args:
            codes: of all scales, or of the first ones.
            extent: of z, where the number of codes leaves it open.

        Raises:
            InputError: if the codes don't end with a scale.
        """
        check_codes(codes, self.vocab)
        if codes.ndim != 3:
            raise InputError(f"codes must be (batch, positions, slots), got {tuple(codes.shape)}")
        extents = self.extents(extent or self.scales.full(codes.shape[1]))
        maps, start = [], 0
        for each in extents:
            if start == codes.shape[1]:
                break
            end = start + prod(each)
            if end > codes.shape[1]:
                raise InputError(f"{codes.shape[1]} codes don't end with a scale: the scales have {extents}")
            maps.append(codes[:, start:end].unflatten(1, each))
            start = end
        if start != codes.shape[1] or not maps:
            raise InputError(f"{codes.shape[1]} codes don't fit the scales, which have {extents}")
        return maps

    def join(self, maps: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return torch.cat([part.flatten(1, -2) for part in maps], 1)

    def partials(self, codes: Tensor, extent: Extent | None = None) -> Tensor:
        """What each prefix of scales decodes to: (scales, batch, *full, dim)."""
        return torch.stack(self._accumulate(codes, extent))

    def next_inputs(self, codes: Tensor, extent: Extent | None = None) -> Tensor:
        """What a next-scale model reads, for all scales but the first: (batch, positions of those scales, dim).

        For each scale, the partial sum of the scales before it, brought down to its extent.
        """
        sums = self._accumulate(codes, extent)
        full = tuple(sums[0].shape[1:-1])
        coming = zip(sums, self.extents(full)[1:], strict=False)
        inputs = [self._shrink(total, each, None)[0].flatten(1, -2) for total, each in coming]
        return torch.cat(inputs, 1) if inputs else sums[0].new_zeros(len(codes), 0, self.dim)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _full(self, z: Tensor, mask: Tensor | None) -> Extent:
        as_rows(z, self.dim, mask)
        if z.ndim != self.scales.axes + 2:
            raise InputError(f"these scales have {self.scales.axes} axes of positions, latents are {tuple(z.shape)}")
        return tuple(z.shape[1:-1])

    def _shrink(self, rest: Tensor, extent: Extent, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Latents at a scale's extent, and which of its positions are real; means count real positions alone."""
        if mask is None:
            return _channel_last(self.down(_channel_first(rest), extent)), None
        share = self.down(mask[:, None].float(), extent)
        small = self.down(_channel_first(rest), extent) / share.clamp(min=EMPTY)
        return _channel_last(small), share[:, 0] > EMPTY

    def _grow(self, index: int, vectors: Tensor, full: Extent, mask: Tensor | None) -> Tensor:
        step = _channel_last(self.smooth[index](self.up(_channel_first(vectors), full)))
        return step if mask is None else step.masked_fill(~mask[..., None], 0)

    def _accumulate(self, codes: Tensor, extent: Extent | None) -> list[Tensor]:
        full = extent or self.scales.full(codes.shape[1])
        total: Tensor | None = None
        sums = []
        maps = self.split(codes, full)
        real = _real_positions(maps, full)
        for index, part in enumerate(maps):
            step = self._grow(index, self.levels[index].decode(part), full, real)
            # A dropped scale adds nothing, though smoothing has a bias.
            dropped = (part < 0).flatten(1).all(1).view(-1, *[1] * (step.ndim - 1))
            step = step.masked_fill(dropped, 0)
            total = step if total is None else total + step
            sums.append(total)
        return sums


def _real_positions(maps: Sequence[Tensor], full: Extent) -> Tensor | None:
    """Where the finest codes are not masked, if they lie on all positions; a scale dropped as a whole says nothing."""
    finest = maps[-1]
    if tuple(finest.shape[1:-1]) != tuple(full):
        return None
    masked = (finest < 0).all(-1)
    return ~(masked & ~masked.flatten(1).all(1).view(-1, *[1] * len(full)))


def _channel_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1)


def _channel_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


def _join(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Loss terms add up over scales; statistics have a value for each scale and slot."""
    joined: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            joined.setdefault(name, []).append(value)
    return {name: torch.cat(v) if v[0].ndim else torch.stack(v).sum() for name, v in joined.items()}
