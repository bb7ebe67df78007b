"""Binary mapper: bits to a one-hot vector over all their sequences.

    logits (bits) ──Bernoulli──► bits ──► index ──► one-hot (2^bits)
                                          gradient: that of the product distribution of the bits, over all 2^bits

Source: "The Free Transformer" (arXiv 2510.17558).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.assign import Assigned
from smalti.quantize.base import Alphabet, BitOrder, Noise
from smalti.quantize.scalar_noise import Bernoulli
from smalti.quantize.scalars import Scalars, spelled_out

MOST_BITS = 16  # one-hot vectors of more bits fit in no memory


class OneHot(Alphabet):
    """Sequences of bits; latents are compared as signs, and vectors are one-hot: dim is bits, vectors have 2^bits.

    Args:
        bits: at most 16.
        order: which end of the index the first bit takes.
    """

    def __init__(self, bits: int, *, order: BitOrder = "little") -> None:
        super().__init__()
        if not 1 <= bits <= MOST_BITS:
            raise ConfigError(f"one-hot vectors need 1 to {MOST_BITS} bits, got {bits}")
        self.signs = Scalars((2,) * bits, order=order)
        self.dim, self.vocab, self.bit_order = bits, (2**bits,), order

    def nearest(self, x: Tensor) -> Tensor:
        return self.signs.nearest(x)

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return self.signs.candidates(x, k)

    def lookup(self, codes: Tensor) -> Tensor:
        index = codes[..., 0]
        vectors = F.one_hot(index.clamp(min=0), self.vocab[0]).float()
        return vectors.masked_fill((index < 0)[..., None], 0)

    def slot_vectors(self, codes: Tensor) -> Tensor:
        return self.lookup(codes)[..., None, :]

    def codebooks(self) -> list[Tensor]:
        return [self.lookup(spelled_out(self.vocab[0], self.signs._basis.device)[:, None])]

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Of every sequence of bits that are 1 with probability sigmoid(logits): (..., bits) -> (..., 2^bits)."""
        table = logits.new_zeros(*logits.shape[:-1], 1)
        # The first bit is the fastest digit of a little-endian index, the slowest of a big-endian one.
        bits = logits.unbind(-1) if self.bit_order == "little" else logits.unbind(-1)[::-1]
        for bit in bits:
            table = torch.cat([table + F.logsigmoid(-bit)[..., None], table + F.logsigmoid(bit)[..., None]], -1)
        return table


class BinaryMapping(Bernoulli):
    """Bernoulli bits as one-hot vectors, with the gradient of the product distribution."""

    estimated = False

    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        if not isinstance(alphabet, OneHot):
            raise ConfigError(f"BinaryMapping needs OneHot, got {type(alphabet).__name__}")
        codes = self.draw(x, alphabet, noise) if self.training else self.decide(x, alphabet)
        soft = alphabet.log_probabilities(x).exp()
        return Assigned(codes, alphabet.lookup(codes) + (soft - soft.detach()))
