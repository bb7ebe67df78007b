"""Entropies of codes: certain for a latent, evenly used over a batch.

    mean H(p(code | x))  -  diversity * H(mean p(code | x)),     p(code | x) = softmax(2 x.code / temperature)

An implicit codebook is a product of small sets, so p(code | x) is a product over dimensions. The first entropy is then
a sum over dimensions, and the mean joint distribution of a group is one matrix product of two half-code distributions.
No softmax over all codes is formed:

    p(d0) p(d1) | p(d2) p(d3)                 rows x A, rows x B
          └─ A' B / rows ─┘  = mean p over all A * B codes

An explicit codebook needs soft assignments of rows to codes; they are made in chunks, and again in the backward pass.

Sources: "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation" (LFQ); "WeTok" (groups); "Image and
Video Tokenization with Binary Spherical Quantization" (factorised over groups of bits); "Scalable Image Tokenization
with Index Backpropagation Quantization"; "The Free Transformer" (free bits).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from smalti.errors import ConfigError
from smalti.quantize.assign import Assigned
from smalti.quantize.base import Alphabet
from smalti.quantize.distributed import active, sum_over_ranks
from smalti.quantize.scalars import Scalars
from smalti.quantize.terms import Term
from smalti.quantize.warped import Warped

JOINT_CODES = 2**20  # a joint distribution over more codes is taken in parts of at most so many
SOFT_BUFFER = 2**22  # floats of one chunk of distributions; chunks are computed again in the backward pass

Logarithm = Callable[[Tensor], Tensor]


def log(p: Tensor) -> Tensor:
    """The natural logarithm, finite at 0."""
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()


def log_added(eps: float) -> Logarithm:
    """log(p + eps), which lowers the entropy of large vocabularies; losses of WeTok, BSQ and LlamaGen use it."""
    return lambda p: (p + eps).log()


def log_clamped(eps: float) -> Logarithm:
    """log(max(p, eps)), without gradient below eps; losses of vector-quantize-pytorch and VidTok use it."""
    return lambda p: p.clamp(min=eps).log()


@dataclass
class ScalarEntropy(Term):
    """Both entropies of Scalars, whatever their levels: exact for vocabularies up to `joint`.

    Larger groups take the second entropy in equal parts, whose sum bounds the joint one from above. Both entropies are
    in nats and averaged over groups; the mean distribution is that of all ranks.

    Args:
        weight: of the whole term.
        temperature: of the distribution p over codes, softmax(2 x.c / temperature).
        diversity: weight of the second entropy.
        certainty: weight of the first.
        joint: the most codes whose joint distribution is formed; 2**g takes groups of g bits, as BSQ does.
        pooled: whether groups share one mean distribution, as WeTok was published.
        share: part of the rows, drawn at random, whose own entropy is measured.
        logarithm: of the mean distribution.
    """

    name: ClassVar[str] = "entropy"
    over_ranks: ClassVar[bool] = True
    weight: float = 0.1
    temperature: float = 0.01
    diversity: float = 1.0
    certainty: float = 1.0
    joint: int = JOINT_CODES
    pooled: bool = False
    share: float = 1.0
    logarithm: Logarithm = log

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        sample, batch = self.entropies(x, alphabet)
        return self.certainty * sample - self.diversity * batch

    def entropies(self, x: Tensor, alphabet: Alphabet) -> tuple[Tensor, Tensor]:
        """Mean entropy of a row's codes and entropy of the mean distribution, in nats, averaged over groups."""
        own, factors = self.factors(x, alphabet)
        if self.share < 1:
            own = own[torch.randperm(len(own), device=own.device)[: max(1, int(self.share * len(own)))]]
        means = [self._mean(part) for part in _parts(factors, self.joint)]
        batch = torch.stack([-(mean * self.logarithm(mean)).sum(-1).mean() for mean in means]).sum()
        return own.mean() if len(own) else own.sum(), batch

    def mean_distributions(self, x: Tensor, alphabet: Alphabet) -> list[Tensor]:
        """The mean distribution of each part of the dimensions: (groups or 1, codes of the part), big-endian."""
        return [self._mean(part) for part in _parts(self.factors(x, alphabet)[1], self.joint)]

    def _mean(self, factors: Sequence[Tensor]) -> Tensor:
        """Mean joint distribution of some dimensions, each (rows, groups, levels): (groups or 1, codes)."""
        if self.pooled:
            factors = [factor.flatten(0, 1)[:, None] for factor in factors]
        rows, groups = factors[0].shape[:2]
        sizes = [factor.shape[-1] for factor in factors]
        cut = min(range(len(sizes)), key=lambda i: abs(math.prod(sizes[:i]) - math.prod(sizes[i:])))
        widest = groups * max(math.prod(sizes[:cut]), math.prod(sizes[cut:]))
        chunk = max(1, SOFT_BUFFER // widest)
        # One matrix product per group: (A, rows) x (rows, B).
        whole = torch.cat([factor.transpose(0, 1) for factor in factors], -1)
        total = whole.new_zeros(groups, math.prod(sizes))
        for piece in whole.split(chunk, 1):
            once = rows <= chunk
            total = total + (_joint(piece, sizes, cut) if once else _recomputed(_joint, piece, sizes, cut))
        return _mean_over_ranks(total, rows)

    def factors(self, x: Tensor, alphabet: Alphabet) -> tuple[Tensor, list[Tensor]]:
        """Entropy of each row and group (rows, groups), and each dimension's distribution (rows, groups, levels)."""
        alphabet = _grid(alphabet)
        grouped = x.unflatten(-1, (alphabet.groups, len(alphabet.levels)))
        own, factors = x.new_zeros(grouped.shape[:-1]), []
        for column, table in zip(grouped.unbind(-1), alphabet.tables(), strict=True):
            logp = F.log_softmax(2 / self.temperature * column[..., None] * table, dim=-1)
            factors.append(logp.exp())
            own = own - (factors[-1] * logp).sum(-1)
        return own, factors


@dataclass
class BitEntropy(ScalarEntropy):
    """ScalarEntropy where every dimension is one bit, ± its scale (LFQ, BSQ): a sigmoid per bit, no softmax."""

    def factors(self, x: Tensor, alphabet: Alphabet) -> tuple[Tensor, list[Tensor]]:
        alphabet = _grid(alphabet)
        if not alphabet.signs:
            raise ConfigError("BitEntropy needs Scalars whose levels are all 2, on the symmetric grid")
        grouped = x.unflatten(-1, (alphabet.groups, len(alphabet.levels)))
        logits = grouped * (4 / self.temperature * torch.tensor(alphabet.scales, dtype=x.dtype, device=x.device))
        ones = torch.sigmoid(logits)
        # H(sigmoid(a)) = softplus(a) - a sigmoid(a): exact and stable where log p is not.
        own = (F.softplus(logits) - logits * ones).sum(-1)
        return own, list(torch.stack([1 - ones, ones], -1).unbind(-2))


def _grid(alphabet: Alphabet) -> Scalars:
    """The grid of codes, also where latents are bounded on the way to it: the distribution is that of the latents."""
    inner = alphabet.alphabet if isinstance(alphabet, Warped) else alphabet
    if not isinstance(inner, Scalars):
        raise ConfigError(f"this entropy needs Scalars, got {type(inner).__name__}")
    return inner


def _parts(factors: Sequence[Tensor], joint: int) -> list[Sequence[Tensor]]:
    """Dimensions in the fewest runs of about equal length that have at most `joint` codes each."""
    for count in range(1, len(factors) + 1):
        ends = [round(len(factors) * part / count) for part in range(count + 1)]
        runs = [factors[first:last] for first, last in pairwise(ends)]
        if max(math.prod(factor.shape[-1] for factor in run) for run in runs) <= joint:
            return runs
    return [[factor] for factor in factors]


def _joint(factors: Tensor, sizes: Sequence[int], cut: int) -> Tensor:
    """Sum over rows of the joint distribution: (groups, rows, sum of sizes) -> (groups, product of sizes)."""
    each = factors.split(list(sizes), -1)
    if not cut:
        return _products(each).sum(1)
    return (_products(each[:cut]).transpose(1, 2) @ _products(each[cut:])).flatten(1)


def _products(factors: Sequence[Tensor]) -> Tensor:
    """Outer product of distributions, row by row: (groups, rows, product of sizes)."""
    if len(factors) == 1:
        return factors[0]
    half = len(factors) // 2
    left, right = _products(factors[:half]), _products(factors[half:])
    return (left[..., :, None] * right[..., None, :]).flatten(-2)


def _mean_over_ranks(total: Tensor, rows: int) -> Tensor:
    """Sum over rows as the mean over the rows of all ranks; each rank's gradient is that of its own rows.

    DDP averages gradients, so the local part is scaled as if all ranks held as many rows.
    """
    if not (active() and total.requires_grad):
        return total / max(1, rows)
    everything = sum_over_ranks(total.detach().clone())
    count = sum_over_ranks(total.new_full((), rows)).clamp(min=1)
    local = total / (count / torch.distributed.get_world_size())
    return local + (everything / count - local).detach()


@dataclass
class SoftEntropy(Term):
    """The same two entropies for an explicit table, p = softmax(-|x - e|² / temperature) (LlamaGen, MaskGIT).

    Soft assignments of rows to codes are needed here; they are made and dropped in chunks. The mean distribution is
    that of all ranks.
    """

    name: ClassVar[str] = "entropy"
    over_ranks: ClassVar[bool] = True
    weight: float = 0.0
    temperature: float = 0.01

    # Published: added inside both logarithms. The first is a softmax's, which no constant changes.
    EPS: ClassVar[float] = 1e-5

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        if self.weight == 0:
            return x.new_zeros(())
        sample, batch = self.entropies(x, alphabet)
        return sample - batch

    def entropies(self, x: Tensor, alphabet: Alphabet) -> tuple[Tensor, Tensor]:
        """Mean entropy of a row's codes and entropy of the mean distribution, in nats."""
        total, own = _SoftTotals.apply(*self.products(x, alphabet.codebooks()[0]), self.temperature)
        mean = _mean_over_ranks(total, len(x))
        return own / max(1, len(x)), -(mean * torch.log(mean + self.EPS)).sum()

    def products(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Left (rows, dim), right (codes, dim), bias (codes,): p is the softmax of (left right' + bias) / temperature.

        -|x - e|² = 2 x.e - |e|² - |x|², and the last is the same for all codes.
        """
        return 2 * x, table, -table.square().sum(1)


@dataclass
class DotEntropy(SoftEntropy):
    """SoftEntropy where codes are chosen by the largest inner product: p = softmax(x.e / temperature) (IBQ)."""

    weight: float = 0.05

    def products(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, table, table.new_zeros(len(table))


class _SoftTotals(torch.autograd.Function):
    """Sums over rows of p = softmax((x table' + bias) / temperature), (codes,), and of its entropy, ().

    Only the arguments are kept; the backward pass makes the distributions again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, bias: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, table, bias)
        ctx.temperature = temperature
        total, entropy = torch.zeros_like(bias), bias.new_zeros(())
        for _, p, logp in _distributions(x, table, bias, temperature):
            total += p.sum(0)
            entropy -= logp.mul_(p).sum()
        return total, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_total: Tensor, to_entropy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, table, bias = ctx.saved_tensors
        to_x, to_table, to_bias = torch.empty_like(x), torch.zeros_like(table), torch.zeros_like(bias)
        with torch.autocast(x.device.type, enabled=False):
            for span, p, logp in _distributions(x, table, bias, ctx.temperature):
                # What reaches p is a = to_total - to_entropy log p; what passes the softmax is p (a - <p, a>).
                slope = logp.mul_(-to_entropy).add_(to_total).mul_(p)
                slope.sub_(p.mul_(slope.sum(1, keepdim=True))).div_(ctx.temperature)
                torch.mm(slope, table, out=to_x[span])
                to_table.addmm_(slope.t(), x[span])
                to_bias += slope.sum(0)
        return to_x, to_table, to_bias, None


def _distributions(
    x: Tensor, table: Tensor, bias: Tensor, temperature: float
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Which rows of x, their p and log p, (rows, codes), in buffers that every chunk writes anew."""
    size = max(1, SOFT_BUFFER // len(table))
    buffers = [x.new_empty(min(size, len(x)), len(table)) for _ in range(3)]
    for start in range(0, len(x), size):
        part = x[start : start + size]
        logits, p, logp = (buffer[: len(part)] for buffer in buffers)
        torch.addmm(bias, part, table.t(), out=logits).div_(temperature)
        # exp(logp) would do, but is ten times slower than a softmax where it underflows.
        yield slice(start, start + size), torch.softmax(logits, 1, out=p), torch.log_softmax(logits, 1, out=logp)


@dataclass
class Softplus(Term):
    """Another term kept positive: softplus(value + offset), as vector-quantize-pytorch offers for LFQ's entropy."""

    name: ClassVar[str] = "entropy"
    over_ranks: ClassVar[bool] = True
    term: Term
    offset: float = 5.0
    weight: float = 0.1

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        return F.softplus(self.term(x, assigned, alphabet) + self.offset)


@dataclass
class FreeBits(Term):
    """Draws the bits' probabilities, sigmoid(x), to 1/2, but for the first nats: mean relu(bits ln 2 - H - free)."""

    name: ClassVar[str] = "free_bits"
    weight: float = 1.0
    free: float = math.log(2)

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        entropy = (F.softplus(x) - x * torch.sigmoid(x)).sum(-1)
        return F.relu(x.shape[-1] * math.log(2) - entropy - self.free).mean()


def _recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    return checkpoint(function, *arguments, use_reentrant=False)
