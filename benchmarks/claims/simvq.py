"""SimVQ uses every code of a codebook of which plain vector quantization uses a few, and reconstructs better.

Source: "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer" (2024), check 5 of its
sheet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.claims import Claim
from benchmarks.claims._autoencoder import cifar, outcome
from smalti.quantize import Codebook, Commitment, Mapped, Quantize, Table, Trained, Vectors

CODES, DIM = 1024, 16
USED, COLLAPSED, GAIN, SECONDS = 0.99, 0.30, 0.05, 120.0


def claims(data: Path, seed: int) -> Iterator[Claim]:
    """Usage, test error and time of both, at 1024 codes."""
    train, test = cifar(data, "train"), cifar(data, "test")
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(CODES, DIM, generator=draw) * DIM**-0.5
    torch.manual_seed(seed)
    ours = outcome(quantizer(Mapped(base, nn.Linear(DIM, DIM), DIM)), train, test, seed)
    plain = outcome(quantizer(Trained(CODES, DIM)), train, test, seed)
    seconds = ours.seconds + plain.seconds
    yield Claim(
        system="simvq",
        claim=f"SimVQ uses at least {USED:.0%} of {CODES} codes, plain VQ less than {COLLAPSED:.0%}",
        metric="share of codes used on test pictures",
        better="higher",
        baseline=plain.usage,
        ours=ours.usage,
        holds=ours.usage >= USED and plain.usage < COLLAPSED,
        seconds=seconds,
    )
    yield Claim(
        system="simvq",
        claim=f"SimVQ's error on test pictures is at least {GAIN:.0%} below that of plain VQ",
        metric="MSE of pixels in [-1,1]",
        better="lower",
        baseline=plain.mse,
        ours=ours.mse,
        holds=ours.mse <= (1 - GAIN) * plain.mse,
        seconds=seconds,
    )


def quantizer(vectors: Vectors) -> Quantize:
    """Both methods' quantizer: they differ in where the codebook comes from alone."""
    return Quantize(Table(vectors), terms=[Codebook(1.0), Commitment(0.25)])
