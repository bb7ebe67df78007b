"""The codebooks that VQGANs were published with, and codes renumbered to those that are in use."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import smalti.config
import smalti.quantize as q
from smalti.config import Training
from smalti.errors import ConfigError
from smalti.quantize import Noise, Quantize, Quantized, Quantizer, Table, Trained
from smalti.quantize.base import check_codes
from smalti.quantize.compose import led_by
from smalti.quantize.neighbours import squared_distances

Unknown = Literal["nearest", "extra"] | int


class GradientCodebook(smalti.config.Config):
    """Rows learn by gradient, as in VQ-VAE.

    Args:
        codes, dim: size of the codebook.
        commitment_weight: of the loss that draws latents to their codes; the other direction has weight 1.
        legacy_training: swap the two weights, as the published models were trained (the repository's issue 57).
    """

    type: Literal["gradient"] = "gradient"
    codes: int = Field(16384, ge=1)
    dim: int = Field(256, ge=1)
    commitment_weight: Training[float] = Field(0.25, ge=0)
    legacy_training: Training[bool] = False

    def build(self) -> Quantizer:
        codebook, commitment = 1.0, self.commitment_weight
        if self.legacy_training:
            codebook, commitment = commitment, codebook
        return Quantize(Table(Trained(self.codes, self.dim)), terms=[q.Codebook(codebook), q.Commitment(commitment)])


class EMACodebook(smalti.config.Config):
    """Rows follow the mean of what chose them.

    Args:
        codes, dim: size of the codebook.
        commitment_weight: of the loss that draws latents to their codes.
        decay, eps: of the moving averages.
    """

    type: Literal["ema"] = "ema"
    codes: int = Field(16384, ge=1)
    dim: int = Field(256, ge=1)
    commitment_weight: Training[float] = Field(0.25, ge=0)
    decay: Training[float] = Field(0.99, ge=0, lt=1)
    eps: Training[float] = Field(1e-5, gt=0)

    def build(self) -> Quantizer:
        vectors = Trained(self.codes, self.dim, init=nn.init.normal_)
        table = Table(vectors, learn=q.EMA(decay=self.decay, eps=self.eps))
        return Quantize(table, terms=[q.Commitment(self.commitment_weight)])


class GumbelCodebook(smalti.config.Config):
    """Codes are drawn from logits in training, and are the most likely ones otherwise.

    Args:
        codes, dim: size of the codebook.
        kl_weight: of the divergence of the logits from uniform.
        temperature: of the Gumbel-softmax; a schedule may lower it.
    """

    type: Literal["gumbel"] = "gumbel"
    codes: int = Field(8192, ge=1)
    dim: int = Field(256, ge=1)
    kl_weight: Training[float] = Field(1e-8, ge=0)
    temperature: Training[float] = Field(1.0, gt=0)

    def build(self) -> Quantizer:
        return Quantize(
            Table(Trained(self.codes, self.dim, init=nn.init.normal_)),
            assign=q.Sampled(nn.Linear(self.dim, self.codes), self.temperature),
            terms=[q.UniformPrior(self.kl_weight)],
        )


Codebook = Annotated[GradientCodebook | EMACodebook | GumbelCodebook, Field(discriminator="type")]


class Remap(smalti.config.Config):
    """Codes renumbered to those that are in use.

    Args:
        used: how many those are.
        unknown: what any other code becomes: the used one whose vector is nearest, a number of its own ("extra", which
            decodes as the first used one), or always the same number.
    """

    used: int = Field(ge=1)
    unknown: Unknown = "nearest"


class Remapped(Quantizer):
    """Another quantizer with its codes renumbered to those that are in use (what taming calls remap).

    Args:
        inner: the quantizer, of one slot.
        used: (codes in use,), int64: the inner code that each new one stands for.
        unknown: see `Remap`.
    """

    used: Tensor

    def __init__(self, inner: Quantizer, used: Tensor, unknown: Unknown = "nearest") -> None:
        super().__init__()
        size = len(used) + (unknown == "extra")
        if isinstance(unknown, int) and not 0 <= unknown < size:
            raise ConfigError(f"unknown codes can become 0..{size - 1}, not {unknown}")
        if len(inner.vocab) != 1 or not 1 <= len(used) <= inner.vocab[0]:
            raise ConfigError(f"{len(used)} codes in use do not fit the vocabulary {inner.vocab}")
        self.inner, self.unknown = inner, unknown
        self.dim, self.vocab = inner.dim, (size,)
        self.register_buffer("used", used)

    def forward(
        self,
        z: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        noise: Noise | None = None,
    ) -> Quantized:
        out = self.inner(z, mask=mask, context=context, noise=noise)
        codes = self._renumber(out.codes)
        # A code that is not in use takes the vector of what it becomes; the gradient stays the inner one.
        moved = (self.decode(codes).to(out.z.dtype) - out.z).detach()
        return dataclasses.replace(out, z=out.z + moved, codes=codes)

    def encode(self, z: Tensor, *, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        return self._renumber(self.inner.encode(z, mask=mask, context=context))

    def decode(self, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        return self.inner.decode(self._original(codes), context=context)

    def lookup(self, codes: Tensor) -> Tensor:
        return self.inner.lookup(self._original(codes))

    def codebooks(self) -> list[Tensor]:
        every = torch.arange(self.vocab[0], device=self.used.device)[:, None]
        return [self.inner.codebooks()[0][self._original(every)[:, 0]]]

    def margin(self, z: Tensor, codes: Tensor, *, context: Tensor | None = None) -> Tensor:
        return self.inner.margin(z, self.inner.encode(z, context=context), context=context)

    def members(self) -> Sequence[Quantizer]:
        return (self.inner,)

    @torch.no_grad()
    def candidates(self, z: Tensor, k: int, *, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The code of `encode`, then the nearest others in use, none of which counts as nearer than that."""
        found, _ = q.nearest_k(z.float().reshape(-1, self.dim), self.inner.codebooks()[0][self.used], k)
        codes = led_by(self.encode(z, context=context), found.reshape(*z.shape[:-1], k))[..., None]
        values = self.decode(codes)
        return codes, values, squared_distances(z.float()[..., None, :], values).cummax(-1).values

    def _original(self, codes: Tensor) -> Tensor:
        check_codes(codes, self.vocab)
        # The extra code, past the end of the list, stands for the first one, as published.
        index = torch.where(codes < len(self.used), codes, 0)
        return torch.where(index < 0, index, self.used[index.clamp(min=0)])

    @torch.no_grad()
    def _renumber(self, codes: Tensor) -> Tensor:
        table = self.inner.codebooks()[0]
        numbers = torch.full((len(table),), -1, dtype=torch.int64, device=codes.device)
        numbers[self.used] = torch.arange(len(self.used), device=codes.device)
        found = torch.where(codes < 0, codes, numbers[codes.clamp(min=0)])
        unknown = (codes >= 0) & (found < 0)
        if self.unknown == "nearest":
            found[unknown] = q.nearest(table[codes[unknown]], table[self.used])
            return found
        return torch.where(unknown, len(self.used) if self.unknown == "extra" else self.unknown, found)
