"""How a latent chooses its code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.quantize.base import Alphabet, Noise, refuse_nan


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
            codes = logits.argmax(1, keepdim=True)
            return Assigned(codes, alphabet.lookup(codes), logits)
        gumbel = noise.get("gumbel")
        if gumbel is None:
            gumbel = -torch.empty_like(logits).exponential_().log()
        soft = F.softmax((logits + gumbel) / self.temperature, dim=1)
        codes = soft.argmax(1, keepdim=True)
        hard = torch.zeros_like(soft).scatter_(1, codes, 1.0)
        return Assigned(codes, (hard + soft - soft.detach()) @ alphabet.codebooks()[0], logits)

    def decide(self, x: Tensor, alphabet: Alphabet) -> Tensor:
        logits = self.logits(x)
        refuse_nan(logits)
        return logits.argmax(1, keepdim=True)
