"""How a latent chooses its code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.errors import InputError
from smalti.quantize.base import Alphabet, Noise, refuse_nan, without_gradient

LOGITS = 2**22  # held at once


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
class Assigned:
    """What latents were assigned.

    Args:
        codes: (rows, slots).
        vectors: (rows, dim), those of the codes.
        logits: (rows, codes), where the method has them.
        rows: where the rows come from; set by Quantize for the terms of the loss.
    """

    codes: Tensor
    vectors: Tensor
    logits: Tensor | None = None
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
        logits = self.logits(x)
        if not self.training:
            codes = self.decide(x, alphabet)
            return Assigned(codes, alphabet.lookup(codes), logits)
        gumbel = noise.get("gumbel")
        if gumbel is None:
            gumbel = -torch.empty_like(logits).exponential_().log()
        soft = F.softmax((logits + gumbel) / self.temperature, dim=1)
        codes = soft.argmax(1, keepdim=True)
        hard = torch.zeros_like(soft).scatter_(1, codes, 1.0)
        return Assigned(codes, (hard + soft - soft.detach()) @ alphabet.codebooks()[0], logits)

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
        if not 1 <= k <= alphabet.vocab[0]:
            raise InputError(f"k must be in 1..{alphabet.vocab[0]}, the number of codes, got {k}")
        codes = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
        costs = torch.empty(len(x), k, device=x.device)
        for span, logits in self._chunks(x, alphabet):
            found = logits.sort(dim=1, descending=True, stable=True)  # the lowest index first, as in `decide`
            codes[span], costs[span] = found.indices[:, :k], -found.values[:, :k]
        return codes[..., None], costs

    def _chunks(self, x: Tensor, alphabet: Alphabet) -> Iterator[tuple[slice, Tensor]]:
        """Logits of some of the rows at a time, so that those of all rows are never held."""
        size = max(1, LOGITS // alphabet.vocab[0])
        for start in range(0, len(x), size):
            span = slice(start, start + size)
            logits = self.logits(x[span])
            refuse_nan(logits)
            yield span, logits
