"""IBQ, the quantizer of ETT's tokenizer, uses nearly all codes of a codebook of which plain VQ uses less than half.

Source: "Scalable Image Tokenization with Index Backpropagation Quantization" (2024), check 3 of ETT's sheet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.claims import Claim
from benchmarks.claims._autoencoder import cifar, outcome
from smalti.quantize import Codebook, Commitment, Quantize, Quantizer, Table, Trained, create

CODES, DIM, STEPS = 4096, 64, 500
USED, COLLAPSED = 0.90, 0.50


def claims(data: Path, seed: int) -> Iterator[Claim]:
    """Usage of both, at 4096 codes after 500 steps."""
    train, test = cifar(data, "train"), cifar(data, "test")
    torch.manual_seed(seed)
    ours = outcome(create("ibq", dim=DIM, codes=CODES), train, test, seed, steps=STEPS)
    torch.manual_seed(seed)
    baseline = outcome(plain(), train, test, seed, steps=STEPS)
    yield Claim(
        system="ett",
        claim=f"IBQ uses more than {USED:.0%} of {CODES} codes, plain VQ less than {COLLAPSED:.0%}",
        metric="share of codes used on test pictures",
        better="higher",
        baseline=baseline.usage,
        ours=ours.usage,
        holds=ours.usage > USED and baseline.usage < COLLAPSED,
        seconds=ours.seconds + baseline.seconds,
    )


def plain() -> Quantizer:
    """Plain VQ with the settings of IBQ: the same start of the rows, and the same weight of the commitment."""
    return Quantize(Table(Trained(CODES, DIM, nn.init.normal_)), terms=[Codebook(), Commitment(0.25)])
