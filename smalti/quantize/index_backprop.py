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

from smalti.quantize.assign import Assign, Assigned
from smalti.quantize.base import Alphabet, Noise, refuse_nan
from smalti.quantize.terms import Term

BUFFER = 2**22  # floats of one chunk of logits


class IndexBackprop(Assign):
    """The row with the largest inner product, with the gradient of the softmax over all rows."""

    estimated = False

    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        table = alphabet.codebooks()[0]
        codes = self.decide(x, alphabet)
        return Assigned(codes, _SoftRows.apply(x, table, codes[:, 0]))

    @torch.no_grad()
    def decide(self, x: Tensor, alphabet: Alphabet) -> Tensor:
        refuse_nan(x)
        return largest_products(x, alphabet.codebooks()[0])[:, None]


@torch.no_grad()
def largest_products(x: Tensor, table: Tensor) -> Tensor:
    """Number of the row of table (codes, dim) with the largest inner product with each of x (rows, dim).

    The products are float64, and the lowest number wins where two are equal.
    """
    wide = table.double().t().contiguous()
    return torch.cat([(chunk.double() @ wide).argmax(1) for chunk in x.split(max(1, BUFFER // len(table)))])


class _SoftRows(torch.autograd.Function):
    """Forward: chosen rows. Backward: that of (one_hot + p - sg p) table with p = softmax(x table'), chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(x, table, index)
        return F.embedding(index, table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, table, index = ctx.saved_tensors
        to_x, to_table = torch.empty_like(x), torch.zeros_like(table)
        to_table.index_add_(0, index, gradient)
        rows = max(1, BUFFER // len(table))
        for start in range(0, len(x), rows):
            part, upstream = x[start : start + rows], gradient[start : start + rows]
            p = torch.softmax(part @ table.t(), dim=1)
            # d softmax: p (a - <p, a>), where a is the gradient that reaches p.
            reached = upstream @ table.t()
            slope = p * (reached - (p * reached).sum(1, keepdim=True))
            to_x[start : start + rows] = slope @ table
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
