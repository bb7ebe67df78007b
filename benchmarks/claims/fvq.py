"""FVQ's bridge uses nearly every code of a codebook of which plain vector quantization uses few, and rebuilds better.

Source: "Scalable Training for Vector-Quantized Networks with 100% Codebook Utilization" (2025), check 5 of its sheet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.claims import Claim
from benchmarks.claims._autoencoder import cifar, outcome
from smalti.quantize import create

CODES, DIM, PATCH, HEAD_DIM = 1024, 16, 4, 16  # the bridge S/4
USED, COLLAPSED, GAIN = 0.95, 0.30, 0.05


def claims(data: Path, seed: int) -> Iterator[Claim]:
    """Usage and test error of both, at 1024 codes."""
    train, test = cifar(data, "train"), cifar(data, "test")
    torch.manual_seed(seed)
    ours = outcome(create("fvq", dim=DIM, codes=CODES, patch=PATCH, head_dim=HEAD_DIM), train, test, seed)
    torch.manual_seed(seed)
    plain = outcome(create("vq", dim=DIM, codes=CODES), train, test, seed)
    seconds = ours.seconds + plain.seconds
    yield Claim(
        system="fvq",
        claim=f"FVQ's bridge uses more than {USED:.0%} of {CODES} codes, plain VQ less than {COLLAPSED:.0%}",
        metric="share of codes used on test pictures",
        better="higher",
        baseline=plain.usage,
        ours=ours.usage,
        holds=ours.usage > USED and plain.usage < COLLAPSED,
        seconds=seconds,
    )
    yield Claim(
        system="fvq",
        claim=f"FVQ's error on test pictures is at least {GAIN:.0%} below that of plain VQ",
        metric="MSE of pixels in [-1,1]",
        better="lower",
        baseline=plain.mse,
        ours=ours.mse,
        holds=ours.mse <= (1 - GAIN) * plain.mse,
        seconds=seconds,
    )
