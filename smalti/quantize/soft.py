"""Choices and terms that look at all codes softly: p(code | x) = softmax(score / temperature).

    score of a Euclidean table: -|x - e|          of a unit table: x.e

    Drawn       codes are drawn with probability p in training
    Soft        codes as another choice takes them, with the gradient of the mean vector under p

Soft assignments of rows to codes are needed here; they are made in chunks, and again in the backward pass.

Sources: "Categorical Reparameterization with Gumbel-Softmax" (straight-through form); "Autoregressive Image Generation
using Residual Quantization" (stochastic codes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from smalti.errors import ConfigError
from smalti.quantize.assign import LOGITS, Assign, Assigned, Nearest
from smalti.quantize.base import Alphabet, Noise
from smalti.quantize.heads import Heads
from smalti.quantize.table import Table

SOFT_BUFFER = LOGITS  # soft assignments held at once
LEAST = 1e-8  # squared distance; the root has no gradient at zero
CLAMPED = LEAST**0.5 * (1 + 1e-6)


@dataclass(frozen=True)
class Searched:
    """Latents beside the table that they are compared with; several slots that share a table are one below the other.

    Args:
        x: (rows * slots, dim).
        table: (codes, dim).
        unit: whether both have length 1.
        slots: which slots these are.
    """

    x: Tensor
    table: Tensor
    unit: bool
    slots: range

    def of(self, values: Tensor) -> Tensor:
        """Values per row and slot, (rows, all slots), in the order of `x`: (rows * slots,)."""
        return values[:, self.slots.start : self.slots.stop].flatten()

    def scores(self, x: Tensor) -> Tensor:
        """Scores of some of the latents, (n, dim): (n, codes). The largest is the nearest."""
        if self.unit:
            return x @ self.table.t()
        squares = x.square().sum(1, keepdim=True) + self.table.square().sum(1) - 2 * x @ self.table.t()
        return -squares.clamp(min=LEAST).sqrt()

    def spans(self) -> Iterator[slice]:
        """Chunks of `x` whose scores fill the buffer."""
        size = -(-SOFT_BUFFER // len(self.table))
        for start in range(0, len(self.x), size):
            yield slice(start, start + size)


def searched(x: Tensor, alphabet: Alphabet) -> list[Searched]:
    """Projected latents (rows, dim) beside the tables of an alphabet.

    Raises:
        ConfigError: if it is neither a Table nor Heads of them.
    """
    if isinstance(alphabet, Table):
        return [Searched(x, alphabet.rows(), alphabet.space == "unit", range(1))]
    if not isinstance(alphabet, Heads):
        raise ConfigError(f"soft assignments need a Table or Heads of Tables, got {type(alphabet).__name__}")
    parts, first = [], 0
    for table, heads in alphabet.runs():
        width = table.dim * heads
        piece = x[:, first * table.dim : first * table.dim + width]
        rows, unit = table.rows(), table.space == "unit"
        parts.append(Searched(piece.reshape(-1, table.dim), rows, unit, range(first, first + heads)))
        first += heads
    return parts


class Drawn(Nearest):
    """In training a code is drawn with probability softmax(score / temperature); otherwise the nearest.

    Args:
        temperature: 0 takes the nearest; a schedule may change it.

    Noise:
        gumbel: (rows, slots, codes), replaces the drawn Gumbel noise.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature < 0:
            raise ConfigError(f"temperature must not be negative, got {temperature}")
        self.temperature = temperature

    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        if not self.training or self.temperature == 0:
            return super().forward(x, alphabet, noise)
        codes = self.draw(x.detach(), alphabet, noise)
        return Assigned(codes, alphabet.chosen(codes))

    @torch.no_grad()
    def draw(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Tensor:
        """Random codes of projected latents: (rows, slots)."""
        given, columns = noise.get("gumbel"), []
        for part in searched(x, alphabet):
            own = None if given is None else given[:, part.slots.start : part.slots.stop].flatten(0, 1)
            drawn = []
            for span in part.spans():
                scores = part.scores(part.x[span]) / self.temperature
                gumbel = -torch.empty_like(scores).exponential_().log() if own is None else own[span]
                drawn.append((scores + gumbel).argmax(1))
            columns.append(torch.cat([x.new_zeros(0, dtype=torch.int64), *drawn]).view(len(x), len(part.slots)))
        return torch.cat(columns, 1)


class Soft(Assign):
    """Codes of another choice; the gradient is that of sum_k p_k e_k, which reaches x and all rows of the table.

    Args:
        choice: takes the codes; the nearest if None.
        temperature: of p; a schedule may lower it.
    """

    estimated = False

    def __init__(self, choice: Assign | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"temperature must be positive, got {temperature}")
        self.choice, self.temperature = choice or Nearest(), temperature

    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        assigned = self.choice(x, alphabet, noise)
        columns = []
        for part in searched(x, alphabet):
            nothing = _SoftMean.apply(part.x, part.table, part.unit, self.temperature)
            columns.append(nothing.view(len(x), len(part.slots) * part.x.shape[1]))
        return Assigned(assigned.codes, assigned.vectors.detach() + torch.cat(columns, 1))

    def decide(self, x: Tensor, alphabet: Alphabet) -> Tensor:
        return self.choice.decide(x, alphabet)

    def candidates(self, x: Tensor, alphabet: Alphabet, k: int) -> tuple[Tensor, Tensor]:
        return self.choice.candidates(x, alphabet, k)


class _SoftMean(torch.autograd.Function):
    """Forward: zeros. Backward: that of softmax(scores / temperature) table, a chunk of rows at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, unit: bool, temperature: float) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.unit, ctx.temperature = unit, temperature
        return torch.zeros_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, table = ctx.saved_tensors
        part = Searched(x, table, ctx.unit, range(1))
        to_x, to_table = torch.empty_like(x), torch.zeros_like(table)
        squares = table.square().sum(1)
        weights = torch.zeros_like(squares)
        # Every chunk writes the same buffers: freed and asked for again, they pile up.
        longest = max((len(x[span]) for span in part.spans()), default=0)
        buffers = [x.new_empty(longest, len(table)) for _ in range(3)]
        with torch.autocast(x.device.type, enabled=False):
            for span in part.spans():
                rows, upstream = x[span], gradient[span]
                scores, p, slope = (buffer[: len(rows)] for buffer in buffers)
                torch.mm(rows, table.t(), out=scores)
                if not part.unit:  # -|x - e|, as in `Searched.scores`
                    scores.mul_(-2).add_(rows.square().sum(1, keepdim=True)).add_(squares)
                    scores.clamp_(min=LEAST).sqrt_().neg_()
                torch.softmax(torch.div(scores, ctx.temperature, out=slope), 1, out=p)
                to_table.addmm_(p.t(), upstream)
                # d softmax: p (a - <p, a>), where a is the gradient that reaches p.
                torch.mm(upstream, table.t(), out=slope).mul_(p)
                slope.sub_(p.mul_(slope.sum(1, keepdim=True))).div_(ctx.temperature)
                if part.unit:
                    torch.mm(slope, table, out=to_x[span])
                    to_table.addmm_(slope.t(), rows)
                    continue
                # d -|x - e| = (e - x) / |x - e|, nothing where the distance was clamped.
                distances = scores.neg_()
                slope.div_(distances.masked_fill_(distances <= CLAMPED, torch.inf))
                torch.mm(slope, table, out=to_x[span]).sub_(rows * slope.sum(1, keepdim=True))
                to_table.addmm_(slope.t(), rows)
                weights += slope.sum(0)
        return to_x, to_table.sub_(table * weights[:, None]), None, None
