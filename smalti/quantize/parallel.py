"""Parallel: quantizers side by side.

    "cat"    z = [z_0 | z_1 ...], each part has its own dimensions          slots: those of all parts
    "sum"    every part sees z, and their vectors add up

Sources: "Product Quantization for Nearest Neighbor Search"; "HiFi-Codec" (groups of residual levels); "Moshi" (parts
that add up).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize.base import Noise, Quantized, Quantizer, as_rows, check_candidates, check_codes, without_gradient
from smalti.quantize.compose import join_terms, take
from smalti.quantize.disentanglement import Disentanglement
from smalti.quantize.dropout import LevelDropout


class Parallel(Quantizer):
    """Quantizers side by side.

    Args:
        parts: the quantizers.
        join: "cat" gives each part its own dimensions of z (product quantization), "sum" gives all of z to every part
            and adds their vectors.
        dropout: draws one number of residual levels for all parts (whose own dropout rounds it alike); None: each part
            draws its own.
        terms: of the loss, over the vectors of all parts, which then share one dimension.
    """

    def __init__(
        self,
        parts: Sequence[Quantizer],
        *,
        join: Literal["cat", "sum"] = "cat",
        dropout: LevelDropout | None = None,
        terms: Sequence[Disentanglement] = (),
    ) -> None:
        super().__init__()
        dims = [part.dim for part in parts]
        if not parts or join not in ("cat", "sum") or (join == "sum" and len(set(dims)) != 1):
            raise ConfigError(f"parts must exist and, to be added, share one dimension; got {dims}, join={join!r}")
        self.parts: Sequence[Quantizer] = nn.ModuleList(parts)  # type: ignore[assignment]
        if terms and (len(parts) < 2 or len(set(dims)) != 1):
            raise ConfigError(f"terms compare two parts or more of one dimension, got {dims}")
        self.join, self.dropout, self.terms = join, dropout, tuple(terms)
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
        if self.training and self.dropout is not None:
            levels = min(len(part.vocab) for part in self.parts)
            noise = {**(noise or {}), "levels": self.dropout.used(levels, len(z), z.device, noise or {})}
        outs = [
            part(piece, mask=mask, context=context, noise=noise)
            for part, piece in zip(self.parts, self._inputs(z), strict=True)
        ]
        joint = self._joint_terms([out.z for out in outs], mask)
        loss = torch.stack([*(out.loss for out in outs), *joint.values()]).sum()
        codes = torch.cat([out.codes for out in outs], -1)
        terms = {**join_terms([out.terms for out in outs]), **joint}
        return Quantized(self._join([out.z for out in outs]), codes, loss, terms)

    def _joint_terms(self, vectors: Sequence[Tensor], mask: Tensor | None) -> dict[str, Tensor]:
        rows = [each.flatten(0, -2) if mask is None else each[mask] for each in vectors]
        if not self.terms or not len(rows[0]):
            return {term.name: rows[0].sum() * 0.0 for term in self.terms}
        return {term.name: term.weight * term(rows) for term in self.terms}

    def encode(self, z: Tensor, *, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        as_rows(z, self.dim, mask)
        pieces = zip(self.parts, self._inputs(z), strict=True)
        return torch.cat([part.encode(piece, mask=mask, context=context) for part, piece in pieces], -1)

    def decode(self, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        return self._join([part.decode(piece, context=context) for part, piece in self._split(codes)])

    def margin(self, z: Tensor, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        pieces = zip(self._split(codes), self._inputs(z), strict=True)
        return torch.cat([part.margin(piece, own, context=context) for (part, own), piece in pieces], -1)

    def members(self) -> Sequence[Quantizer]:
        return self.parts

    def lookup(self, codes: Tensor) -> Tensor:
        return torch.cat([part.lookup(piece) for part, piece in self._split(codes)], -2)

    def codebooks(self) -> list[Tensor]:
        return [table for part in self.parts for table in part.codebooks()]

    @without_gradient
    def candidates(self, z: Tensor, k: int, *, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The k best by the sum of the parts' costs; for parts that add up, each cost is that of all of z."""
        check_candidates(k, self.vocab)
        codes, values, costs = None, None, None
        for part, piece in zip(self.parts, self._inputs(z), strict=True):
            options = min(k, prod(part.vocab))
            found, vectors, cost = part.candidates(piece, options, context=context)
            if codes is None or values is None or costs is None:
                codes, values, costs = found, vectors, cost
                continue
            total = (costs[..., :, None] + cost[..., None, :]).flatten(-2)
            order = total.argsort(dim=-1, stable=True)[..., :k]
            first, second = order // options, order % options
            costs = total.gather(-1, order)
            codes = torch.cat([take(codes, first), take(found, second)], -1)
            values = self._join([take(values, first), take(vectors, second)])
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
