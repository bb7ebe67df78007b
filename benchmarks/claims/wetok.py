"""Groups of bits make the entropy term cheap, and without it sign codes learn nothing.

Source: "WeTok: Powerful Discrete Tokenization for High-Fidelity Visual Reconstruction" (2025), check 6 of its sheet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.claims import Claim
from benchmarks.claims._autoencoder import cifar, outcome
from smalti.quantize import Alphabet, Assigned, BitEntropy, Commitment, Quantize, Scalars, Term

BITS, STEPS = 12, 1200
FASTER, GAIN = 4.0, 0.10


@dataclass
class SoftmaxEntropy(Term):
    """The term as lookup-free quantization spells it: a softmax of every latent over all codes of its group."""

    name: ClassVar[str] = "entropy"
    weight: float = 0.1
    temperature: float = 0.01

    def __call__(self, x: Tensor, assigned: Assigned, alphabet: Alphabet) -> Tensor:
        logits = 2 * x @ alphabet.codebooks()[0].t() / self.temperature
        p, logp = F.softmax(logits, dim=1), F.log_softmax(logits, dim=1)
        mean = p.mean(0)
        return -(p * logp).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()


def claims(data: Path, seed: int) -> Iterator[Claim]:
    """Time against one group's softmax, error against training without the entropy term."""
    train, test = cifar(data, "train"), cifar(data, "test")
    single = outcome(quantizer(1, SoftmaxEntropy()), train, test, seed, steps=STEPS)
    grouped = outcome(quantizer(2, BitEntropy(0.1, pooled=True)), train, test, seed, steps=STEPS)
    yield Claim(
        system="wetok",
        claim=f"2 groups of 6 bits train at least {FASTER:.0f} times faster than a softmax over one group of {BITS}",
        metric=f"seconds for {STEPS} steps",
        better="lower",
        baseline=single.seconds,
        ours=grouped.seconds,
        holds=FASTER * grouped.seconds <= single.seconds,
        seconds=single.seconds + grouped.seconds,
    )
    without = outcome(quantizer(2), train, test, seed, steps=STEPS)
    yield Claim(
        system="wetok",
        claim=f"the entropy term lowers the error on test pictures by more than {GAIN:.0%}",
        metric="MSE of pixels in [-1,1]",
        better="lower",
        baseline=without.mse,
        ours=grouped.mse,
        holds=grouped.mse < (1 - GAIN) * without.mse,
        seconds=without.seconds + grouped.seconds,
    )


def quantizer(groups: int, *entropy: Term) -> Quantize:
    """12 sign bits per position."""
    torch.manual_seed(0)
    scalars = Scalars((2,) * (BITS // groups), groups=groups)
    return Quantize(scalars, terms=[Commitment(0.25), *entropy])
