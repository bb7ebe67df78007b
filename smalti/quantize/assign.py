"""How a latent chooses its code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smalti.quantize.base import Alphabet, Noise, check_candidates, refuse_nan, without_gradient

# Held at once: 32 MiB, because memory from that size on goes back to the system where it is freed. Smaller pieces are
# kept, cut up by what is asked for between two of them, and pile up.
LOGITS = 2**23
R = TypeVar("R")


@dataclass(frozen=True)
class Rows:
    """Where the rows of a batch come from.

    Args:
        latents: (rows, dim), as they were given to the quantizer.
        shape: (batch, *positions).
        real: (batch * positions,), bool, which positions are among the rows; None: all.
    """

    latents: Tensor
    shape: tuple[int, ...]
    real: Tensor | None

    def positions(self) -> Tensor:
        """The number of each row's position within its sample: (rows,)."""
        count = prod(self.shape[1:])
        every = torch.arange(count, device=self.latents.device).repeat(self.shape[0])
        return every if self.real is None else every[self.real]


@dataclass(frozen=True)
class Logits:
    """What a network says of every code for every row, computed a few rows at a time, whenever it is asked for.

    Args:
        network: maps latents (rows, dim) to (rows, codes).
        x: (rows, dim).
        codes: how many the network knows.
    """

    network: nn.Module
    x: Tensor
    codes: int

    def spans(self) -> Iterator[slice]:
        """Rows whose logits fill the buffer."""
        size = -(-LOGITS // self.codes)
        for start in range(0, len(self.x), size):
            yield slice(start, start + size)

    def mean(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean over rows of a function of their logits, (n, codes) -> (n,), computed again in the backward pass."""

        def total(x: Tensor) -> Tensor:
            return function(self.network(x)).sum()

        return torch.stack([recomputed(total, self.x[span]) for span in self.spans()]).sum() / len(self.x)


def recomputed(function: Callable[..., R], *arguments: object) -> R:
    """A function whose intermediate values are computed again in the backward pass instead of kept."""
    result: R = checkpoint(function, *arguments, use_reentrant=False)
    return result


@dataclass(frozen=True)
class Assigned:
    """What latents were assigned.

    Args:
        codes: (rows, slots).
        vectors: (rows, dim), those of the codes.
        logits: where the method has them.
        rows: where the rows come from; set by Quantize for the terms of the loss.
    """

    codes: Tensor
    vectors: Tensor
    logits: Logits | None = None
    rows: Rows | None = None


class Assign(nn.Module, ABC):
    """The choice of codes for projected latents x (rows, dim).

    Attributes:
        estimated: whether vectors still need an estimator to carry a gradient to x.
    """

    estimated: bool = True

    @abstractmethod
    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        """The choice in training and evaluation, with the gradient that the method defines."""

    @abstractmethod
    def decide(self, x: Tensor, alphabet: Alphabet) -> Tensor:
        """The choice without randomness, for encoding."""

    def candidates(self, x: Tensor, alphabet: Alphabet, k: int) -> tuple[Tensor, Tensor]:
        """The k best, best first, of which `decide` takes the first: codes (rows, k, slots) and costs (rows, k).

        Costs are squared distances, unless codes are chosen by something else.
        """
        return alphabet.candidates(x, k)


class Nearest(Assign):
    """The nearest vector."""

    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        codes, vectors = alphabet.choose(x.detach())
        return Assigned(codes, vectors)

    def decide(self, x: Tensor, alphabet: Alphabet) -> Tensor:
        return alphabet.nearest(x.detach())


class Given(Assign):
    """Codes that a search has found already.

    Args:
        codes: (rows, slots).
    """

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes = codes

    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        return Assigned(self.codes, alphabet.chosen(self.codes))

    def decide(self, x: Tensor, alphabet: Alphabet) -> Tensor:
        return self.codes


class Sampled(Assign):
    """Gumbel-softmax over logits that a network gives ("Categorical Reparameterization with Gumbel-Softmax").

    In training a code is drawn and the gradient is that of the softmax, which reaches all rows of the table. Otherwise
    the most likely code is taken: the published implementation draws in evaluation too, which makes codes random.

    Args:
        logits: maps latents (rows, dim) to (rows, codes).
        temperature: of the softmax; a schedule may lower it.

    Noise:
        gumbel: (rows, codes), replaces the drawn Gumbel noise.
    """

    estimated = False

    def __init__(self, logits: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.logits, self.temperature = logits, temperature

    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        logits = self._all(x, alphabet)
        if not self.training:
            codes = self.decide(x, alphabet)
            return Assigned(codes, alphabet.lookup(codes), logits)
        table, gumbel = alphabet.codebooks()[0], noise.get("gumbel")
        codes = torch.empty(len(x), 1, dtype=torch.int64, device=x.device)
        vectors = [x.new_zeros(0, table.shape[1])]
        for span in logits.spans():
            found, mean = recomputed(self._draw, x[span], table, None if gumbel is None else gumbel[span])
            codes[span] = found
            vectors.append(mean)
        return Assigned(codes, torch.cat(vectors), logits)

    def _draw(self, x: Tensor, table: Tensor, gumbel: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)
        if gumbel is None:
            gumbel = -torch.empty_like(logits).exponential_().log()
        soft = F.softmax((logits + gumbel) / self.temperature, dim=1)
        codes = soft.argmax(1, keepdim=True)
        hard = torch.zeros_like(soft).scatter_(1, codes, 1.0)
        return codes, (hard + soft - soft.detach()) @ table

    def _all(self, x: Tensor, alphabet: Alphabet) -> Logits:
        return Logits(self.logits, x, alphabet.vocab[0])

    @without_gradient
    def decide(self, x: Tensor, alphabet: Alphabet) -> Tensor:
        if torch.compiler.is_compiling():  # a compiled program knows no number of rows, so none of parts
            return self.logits(x).argmax(1, keepdim=True)
        codes = torch.empty(len(x), 1, dtype=torch.int64, device=x.device)
        for span, logits in self._chunks(x, alphabet):
            torch.argmax(logits, 1, keepdim=True, out=codes[span])
        return codes

    @without_gradient
    def candidates(self, x: Tensor, alphabet: Alphabet, k: int) -> tuple[Tensor, Tensor]:
        """The codes of the k largest logits; costs are the logits' negatives."""
        check_candidates(k, alphabet.vocab)
        codes = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
        costs = torch.empty(len(x), k, device=x.device)
        for span, logits in self._chunks(x, alphabet):
            found = logits.sort(dim=1, descending=True, stable=True)  # the lowest index first, as in `decide`
            codes[span], costs[span] = found.indices[:, :k], -found.values[:, :k]
        return codes[..., None], costs

    def _chunks(self, x: Tensor, alphabet: Alphabet) -> Iterator[tuple[slice, Tensor]]:
        for span in self._all(x, alphabet).spans():
            logits = self.logits(x[span])
            refuse_nan(logits)
            yield span, logits
