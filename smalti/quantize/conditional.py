"""Conditional: a codebook that depends on a context, as the levels of QINCo depend on the sum so far.

    context c ──┐
    code e_k  ──┴─► network ──► f(e_k, c)           nearest of  f(e_1, c) ... f(e_K, c)

Every latent has a table of its own. The search makes the tables for a few latents at a time and keeps none; gradients
pass the chosen codes alone, whose vectors are computed again.

Source: "Residual Quantization with Implicit Neural Codebooks" (QINCo, 2024).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from smalti.errors import InputError
from smalti.quantize.base import Alphabet, check_candidates, refuse_nan, without_gradient
from smalti.quantize.sums import folded_sum
from smalti.quantize.vectors import Trained

HELD = 2**21  # numbers of the rows' own tables made at once
MEASURED_AGAIN = 8  # codes per row beyond those asked for whose vectors are computed again in float64


class ResidualMLP(nn.Module):
    """QINCo's network: a projection of [context, code], then residual blocks.

    Args:
        dim: of codes and context.
        hidden: inside the blocks; dim if None.
        depth: number of blocks.
    """

    def __init__(self, dim: int, hidden: int | None = None, depth: int = 4) -> None:
        super().__init__()
        width = dim if hidden is None else hidden
        self.proj_in = nn.Linear(2 * dim, dim)
        blocks = [nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, dim)) for _ in range(depth)]
        self.layers = nn.ModuleList(blocks)

    def forward(self, codes: Tensor, context: Tensor) -> Tensor:
        """Codes (..., dim) under their contexts (..., dim), which broadcast."""
        own, given = self.proj_in.weight.split(codes.shape[-1], 1)[::-1]
        # The two halves of the projection are taken apart, so that each is computed once and not per pair.
        x = F.linear(codes, own, self.proj_in.bias) + F.linear(context, given)
        for block in self.layers:
            x = x + block(x)
        return x


class Conditional(Alphabet):
    """Trained codes seen through a network that also sees a context.

    Outside of a context `lookup` and `codebooks` mean the codes themselves.

    Args:
        codes: the codes e, learned by gradient.
        network: called with codes (..., dim) and contexts (..., dim) that broadcast; gives vectors (..., dim).
    """

    conditional = True

    def __init__(self, codes: Trained, network: nn.Module) -> None:
        super().__init__()
        self.vectors, self.network = codes, network
        self.dim, self.vocab = codes.dim, (codes.codes,)

    def given(self, context: Tensor | None) -> Alphabet:
        if context is None:
            raise InputError("this codebook is conditional: give a context (batch, *positions, dim)")
        return InContext(self, context)

    def nearest(self, x: Tensor) -> Tensor:
        return self.given(None).nearest(x)

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return self.given(None).candidates(x, k)

    def lookup(self, codes: Tensor) -> Tensor:
        found = F.embedding(codes[..., 0].clamp(min=0), self.vectors())
        return found.masked_fill(codes < 0, 0)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        return self.lookup(codes)[..., None, :]

    def codebooks(self) -> list[Tensor]:
        return [self.vectors()]


class InContext(Alphabet):
    """A Conditional alphabet under the contexts of some rows.

    Args:
        alphabet: the codes and the network.
        context: (rows, dim).
    """

    def __init__(self, alphabet: Conditional, context: Tensor) -> None:
        super().__init__()
        self._alphabet = [alphabet]  # in a list, so that it is no second owner of the parameters
        self.context = context
        self.dim, self.vocab = alphabet.dim, alphabet.vocab

    def nearest(self, x: Tensor) -> Tensor:
        return _search(self._alphabet[0], x, self.context, 1)[0]

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        codes, costs = _search(self._alphabet[0], x, self.context, k)
        return codes[..., None], costs

    def chosen(self, codes: Tensor) -> Tensor:
        alphabet = self._alphabet[0]
        own, context = F.embedding(codes[..., 0], alphabet.vectors()), self.context
        for _ in range(own.ndim - context.ndim):
            context = context.unsqueeze(1)
        return alphabet.network(own, context)

    def lookup(self, codes: Tensor) -> Tensor:
        return self.chosen(codes.clamp(min=0)).masked_fill(codes < 0, 0)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        return self.lookup(codes)[..., None, :]

    def codebooks(self) -> list[Tensor]:
        raise InputError("every row has a codebook of its own: ask for candidates or look codes up")


@without_gradient
def _search(alphabet: Conditional, x: Tensor, context: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest codes of rows under their contexts, nearest first: (rows, k), and squared distances, float64."""
    (size,) = alphabet.vocab
    check_candidates(k, alphabet.vocab)
    if torch.compiler.is_compiling():  # a compiled program knows no number of rows, so none of parts
        return _nearest_k(alphabet, x, context, k)
    refuse_nan(x)
    step = max(1, HELD // (size * alphabet.dim))
    parts = zip(x.split(step), context.split(step), strict=True)
    codes, costs = zip(*[_nearest_k(alphabet, *part, k) for part in parts], strict=True)
    return torch.cat(codes), torch.cat(costs)


def _nearest_k(alphabet: Conditional, x: Tensor, context: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Codes found in float32, whose last bits depend on the batch, and decided in float64, where they do not."""
    table, context = alphabet.vectors(), context[:, None]
    rough = (x[:, None] - alphabet.network(table, context)).square().sum(-1)
    likely = rough.topk(min(k + MEASURED_AGAIN, len(table)), dim=1, largest=False).indices.sort(dim=1).values
    state = {name: tensor.double() for name, tensor in alphabet.network.state_dict(keep_vars=True).items()}
    vectors = functional_call(alphabet.network, state, (table.double()[likely], context.double()))
    costs = folded_sum((x.double()[:, None] - vectors).square())
    order = costs.argsort(dim=1, stable=True)[:, :k]
    return likely.gather(1, order), costs.gather(1, order)
