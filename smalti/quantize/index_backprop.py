"""Index back-propagation: every code learns from every latent, through the softmax that chooses.

    logits = z E'     p = softmax(logits)     code = argmax      z_q = (one_hot + p - sg p) E

In value z_q is the chosen row; its gradient reaches all rows and the latents through p. Rows of z are taken in chunks
whose softmax is computed again in the backward pass, so that 2^18 codes train in ordinary memory.

Source: "Scalable Image Tokenization with Index Backpropagation Quantization" (IBQ, 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from smalti.quantize.assign import Assign, Assigned
from smalti.quantize.base import Alphabet, Noise, refuse_nan, without_gradient
from smalti.quantize.neighbours import TRACED_PARTS, TRACED_WIDTH
from smalti.quantize.terms import Term

BUFFER = 2**22  # floats of one chunk of logits, which all chunks share: freed and asked for again, they pile up


class IndexBackprop(Assign):
    """The row with the largest inner product, with the gradient of the softmax over all rows."""

    estimated = False

    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        table = alphabet.codebooks()[0]
        codes = self.decide(x, alphabet)
        return Assigned(codes, _SoftRows.apply(x, table, codes[:, 0]))

    @without_gradient
    def decide(self, x: Tensor, alphabet: Alphabet) -> Tensor:
        refuse_nan(x)
        return largest_products(x, alphabet.codebooks()[0])[:, None]


def largest_products(x: Tensor, table: Tensor) -> Tensor:
    """Number of the row of table (codes, dim) with the largest inner product with each of x (rows, dim).

    The products are float64, and the lowest number wins where two are equal.
    """
    if torch.compiler.is_compiling():
        return _largest_traced(x, table)
    wide = table.double().t().contiguous()
    rows = max(1, BUFFER // 2 // len(table))  # a float64 counts twice
    best = torch.empty(len(x), dtype=torch.int64, device=x.device)
    buffer = wide.new_empty(min(rows, len(x)), len(table))
    for start in range(0, len(x), rows):
        part = x[start : start + rows].double()
        torch.argmax(torch.mm(part, wide, out=buffer[: len(part)]), 1, out=best[start : start + rows])
    return best


def _largest_traced(x: Tensor, table: Tensor) -> Tensor:
    """The same where the number of rows may be unknown: the table is taken in parts instead."""
    wide, width = x.double(), max(TRACED_WIDTH, -(-len(table) // TRACED_PARTS))
    parts = [(wide @ part.double().t()).max(1) for part in table.split(width)]
    values, codes = (torch.stack(each, 1) for each in zip(*parts, strict=True))
    part = values.argmax(1, keepdim=True)
    return (codes.gather(1, part) + part * width)[:, 0]


class _SoftRows(torch.autograd.Function):
    """Forward: chosen rows. Backward: that of (one_hot + p - sg p) table with p = softmax(x table'), chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(x, table, index)
        return F.embedding(index, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, table, index = ctx.saved_tensors
        to_x, to_table = torch.empty_like(x), torch.zeros_like(table)
        to_table.index_add_(0, index, gradient)
        rows = max(1, BUFFER // len(table))
        # Every chunk writes the same three buffers.
        buffers = [x.new_empty(min(rows, len(x)), len(table)) for _ in range(3)]
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, len(x), rows):
                part, upstream = x[start : start + rows], gradient[start : start + rows]
                logits, p, reached = (buffer[: len(part)] for buffer in buffers)
                torch.softmax(torch.mm(part, table.t(), out=logits), 1, out=p)
                # d softmax: p (a - <p, a>), where a is the gradient that reaches p.
                slope = torch.mm(upstream, table.t(), out=reached).mul_(p)
                slope.sub_(p.mul_(slope.sum(1, keepdim=True)))
                torch.mm(slope, table, out=to_x[start : start + rows])
                to_table.addmm_(slope.t(), part)
        return to_x, to_table, None


@dataclass
class DoubleQuantization(Term):
    """IBQ's loss: mean (z_q - z)² + mean (sg q - z)² + commitment * mean (q - sg z)².

    z_q carries the gradient of the softmax, q is the chosen row alone.

    Args:
        weight: of the whole term.
        commitment: weight of the last part.
    """

    name: ClassVar[str] = "codebook"
    weight: float = 1.0
    commitment: float = 0.25

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        hard = alphabet.lookup(assigned.codes)
        return (
            F.mse_loss(assigned.vectors, x)
            + F.mse_loss(x, hard.detach())
            + self.commitment * F.mse_loss(hard, x.detach())
        )
