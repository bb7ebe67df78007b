"""How logits become codes: temperature, then top-k, then top-p, after guidance; and draws that belong to one sample.

Each rule is one number, or one per slot, or one per step. A draw is a single uniform number per sample and step,
looked up in the cumulative distribution, so that a sample's codes depend on its seed and not on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

import smalti.config
from smalti.errors import ConfigError, InputError
from smalti.quantize.base import Noise

Seed = int | Sequence[int] | None

Temperature = Annotated[float, Field(ge=0)]
TopK = Annotated[int, Field(ge=0)]
TopP = Annotated[float, Field(ge=0, le=1)]


class Sampling(smalti.config.Config):
    """The rules of drawing; each is one number, or one per slot, or one per step.

    Args:
        steps: sampler steps, for generators that leave a choice; None for their default.
        temperature: divides the logits; 0 takes the most likely code.
        top_k: keep the k most likely codes (and what ties with the last of them); 0 keeps all.
        top_p: keep the most likely codes until their probabilities reach p; 0 and 1 keep all.
        guidance: s in u + s (c - u), from the logits c with the conditions and u without; 1 is off.
    """

    steps: int | None = Field(None, ge=1)
    temperature: Temperature | tuple[Temperature, ...] = 1.0
    top_k: TopK | tuple[TopK, ...] = 0
    top_p: TopP | tuple[TopP, ...] = 1.0
    guidance: float | tuple[float, ...] = 1.0

    def rules(self, slots: Sequence[int]) -> list[Rule]:
        """The rule of every step.

        Args:
            slots: the slot that each step draws.

        Raises:
            ConfigError: if the number of values fits neither the slots nor the steps.
        """
        columns = [_spread(name, getattr(self, name), slots) for name in ("temperature", "top_k", "top_p", "guidance")]
        return [Rule(float(t), int(k), float(p), float(g)) for t, k, p, g in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Rule:
    """What `Sampling` says about one step."""

    temperature: float
    top_k: int
    top_p: float
    guidance: float

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Codes from logits.

        Args:
            logits: (batch, vocabulary), guided; -inf where a code is not allowed.
            uniform: (batch,), in [0, 1).

        Returns:
            (batch,), int64.
        """
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        kept = keep_likely(logits / self.temperature, self.top_k, self.top_p)
        # In float64, because the rounding of a long float32 sum would make rare codes impossible.
        cumulative = torch.softmax(kept.double(), dim=-1).cumsum(dim=-1)
        points = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, points, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def keep_likely(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits with -inf in place of the codes that top-k, and then top-p among what is left, leave out.

    Args:
        logits: (..., vocabulary).
        top_k: see `Sampling`.
        top_p: see `Sampling`.
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if 0 < top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        p = torch.softmax(ordered.double(), dim=-1)
        # A code stays while those before it have not reached p; so the one that crosses it stays too.
        beyond = p.cumsum(dim=-1) - p >= top_p
        beyond[..., 0] = False
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    return logits


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: u + s (c - u); exactly c at s = 1."""
    return conditional if scale == 1 else unconditional + scale * (conditional - unconditional)


def uniform_draws(batch: int, steps: int, seed: Seed = None, noise: Noise | None = None) -> Tensor:
    """Uniform numbers (batch, steps), float64: a row per sample.

    Args:
        batch: number of samples.
        steps: numbers per sample.
        seed: one integer gives every sample the same row, a sequence each its own; None draws from torch's generator.
        noise: its entry "uniform", where given, is taken instead.

    Raises:
        InputError: if there are not as many seeds, or numbers in noise, as needed.
    """
    given = (noise or {}).get("uniform")
    if given is not None:
        if given.shape != (batch, steps):
            raise InputError(f"noise 'uniform' must be of shape ({batch}, {steps}), got {tuple(given.shape)}")
        return given.double()
    if seed is None:
        return torch.rand(batch, steps, dtype=torch.float64)
    seeds = [seed] * batch if isinstance(seed, int) else list(seed)
    if len(seeds) != batch:
        raise InputError(f"{len(seeds)} seeds for {batch} samples")
    rows = [torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(each)) for each in seeds]
    return torch.stack(rows)


def _spread(name: str, value: float | tuple[float, ...], slots: Sequence[int]) -> list[float]:
    """A value for every step, from one number, one per slot, or one per step."""
    if not isinstance(value, tuple):
        return [value] * len(slots)
    if len(value) == len(slots):
        return list(value)
    if len(value) == max(slots, default=-1) + 1:
        return [value[slot] for slot in slots]
    raise ConfigError(
        f"{name} has {len(value)} values: give one, one per slot ({max(slots, default=-1) + 1}) "
        f"or one per step ({len(slots)})"
    )
