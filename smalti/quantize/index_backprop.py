"""Index back-propagation: every code learns from every latent, through the softmax that chooses.

    logits = z E'     p = softmax(logits)     code = argmax      z_q = (one_hot + p - sg p) E

In value z_q is the chosen row; its gradient reaches all rows and the latents through p. Rows of z are taken in chunks
whose softmax is computed again in the backward pass, so that 2^18 codes train in ordinary memory.

Source: "Scalable Image Tokenization with Index Backpropagation Quantization" (IBQ, 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from smalti.quantize.assign import Assign, Assigned
from smalti.quantize.base import Alphabet, Noise, check_candidates, refuse_nan, without_gradient
from smalti.quantize.neighbours import CROWD, TRACED_PARTS, TRACED_WIDTH, prepare
from smalti.quantize.sums import folded_sum
from smalti.quantize.terms import Term

BUFFER = 2**22  # floats of one chunk of logits, which all chunks share: freed and asked for again, they pile up

# Float32 numbers multiply exactly in float64. A sum of D products of x and e is off by at most D roundings of |x||e|,
# one in a fixed order by log2 D; and so is the one that it is compared with.
ROUNDING, IN_ORDER = 2 * 2.0**-53, 32


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

    @without_gradient
    def candidates(self, x: Tensor, alphabet: Alphabet, k: int) -> tuple[Tensor, Tensor]:
        """The codes of the k largest products; costs are the products' negatives."""
        refuse_nan(x)
        numbers, products = largest_k(x, alphabet.codebooks()[0], k)
        return numbers[..., None], -products


def largest_products(x: Tensor, table: Tensor) -> Tensor:
    """Number of the row of table (codes, dim) with the largest inner product with each of x (rows, dim).

    The products are float64, added in a fixed order where rounding could decide, and the lowest number wins where two
    are equal. So a code depends on its row and the table alone.
    """
    if torch.compiler.is_compiling():
        return _largest_traced(x, table)
    best = torch.empty(len(x), dtype=torch.int64, device=x.device)
    first: Tensor | None = None
    for span, products, reach in _chunks(x, table, len(table)):
        index, close = _largest_two(products, reach)
        index[reach == 0] = 0  # every product is zero
        for row in (close & (reach > 0)).nonzero()[:, 0].tolist():
            near = products[row] >= products[row, index[row]] - reach[row]
            if int(near.sum()) > CROWD:
                first = prepare(table).first if first is None else first
                near &= first  # codes that repeat an earlier one can't win
            found = near.nonzero()[:, 0]
            exact = _exact_products(x[span][row], table, found)
            index[row] = found[exact == exact.amax()][0]
        best[span] = index
    return best


def _largest_two(products: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """The place of each row's largest number, and whether another one is within reach of it."""
    if products.device.type == "cpu":  # where numpy finds places many times faster than torch
        view, lines = products.numpy(), np.arange(len(products))
        index = view.argmax(1)
        top = view[lines, index]
        view[lines, index] = -np.inf
        second = view[lines, view.argmax(1)]
        view[lines, index] = top
        return torch.from_numpy(index), torch.from_numpy(second >= top - reach.numpy())
    best = products.topk(min(2, products.shape[1]), dim=1)
    close = best.values[:, -1] >= best.values[:, 0] - reach
    return best.indices[:, 0], close & (products.shape[1] > 1)


def largest_k(x: Tensor, table: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest products of each of x (rows, dim), the largest first (the lowest number first on ties).

    Returns:
        numbers (rows, k), products (rows, k), float64.

    Raises:
        InputError: if the table has fewer rows.
    """
    check_candidates(k, (len(table),))
    numbers = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    values = torch.empty(len(x), k, dtype=torch.float64, device=x.device)
    kept = min(2 * k + 8, len(table))
    for span, products, reach in _chunks(x, table, max(len(table), kept * x.shape[1])):
        top = products.topk(kept, dim=1)
        found = top.indices.sort(dim=1).values  # ascending, so that a stable sort keeps the lowest number first
        exact = _exact_products(x[span, None], table, found).sort(dim=1, descending=True, stable=True)
        numbers[span], values[span] = found.gather(1, exact.indices[:, :k]), exact.values[:, :k]
        # Rows whose last kept product is within reach of the k-th could miss one: they look at all codes.
        short = (top.values[:, -1] >= top.values[:, k - 1] - reach) & (kept < len(table))
        for row in (short.nonzero()[:, 0] + span.start).tolist():
            every = _exact_products(x[row], table, torch.arange(len(table), device=x.device))
            best = every.sort(descending=True, stable=True)
            numbers[row], values[row] = best.indices[:k], best.values[:k]
    return numbers, values


def _chunks(x: Tensor, table: Tensor, width: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some rows at a time: which, their float64 products, and twice what rounding can move one of each row's by.

    Args:
        width: numbers that are held for a row.
    """
    wide = table.double().t().contiguous()
    rows = max(1, BUFFER // 2 // width)  # a float64 counts twice
    buffer = wide.new_empty(min(rows, len(x)), len(table))
    longest = wide.square().sum(0).amax().sqrt()
    for start in range(0, len(x), rows):
        part = x[start : start + rows].double()
        reach = ROUNDING * (x.shape[1] + IN_ORDER) * longest * part.square().sum(1).sqrt()
        yield slice(start, start + len(part)), torch.mm(part, wide, out=buffer[: len(part)]), reach


def _exact_products(x: Tensor, table: Tensor, numbers: Tensor) -> Tensor:
    """Products of x (..., dim) with rows (..., n) of the table, float64, the same bits in every batch."""
    return folded_sum(x.double() * table[numbers].double())


def _largest_traced(x: Tensor, table: Tensor) -> Tensor:
    """The same where the number of rows may be unknown: the table is taken in parts instead.

    Each part keeps its largest product and the lowest number that rounding can't tell from it, which is the answer
    where rows of the table repeat; those of all parts are multiplied again in a fixed order.
    """
    wide, width = x.double(), max(TRACED_WIDTH, -(-len(table) // TRACED_PARTS))
    rows = table.double()
    reach = ROUNDING * (x.shape[1] + IN_ORDER) * rows.square().sum(1).amax().sqrt() * wide.square().sum(1).sqrt()
    found = []
    for start in range(0, len(table), width):
        products = wide @ rows[start : start + width].t()
        value, index = products.max(1)
        first = (products >= (value - reach)[:, None]).to(torch.uint8).argmax(1)
        found += [index + start, first + start]
    chosen = torch.stack(found, 1)
    exact = _exact_products(x[:, None], table, chosen)
    return torch.where(exact == exact.amax(1, keepdim=True), chosen, len(table)).amin(1)


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
