"""Two small codebooks beat one large one, and a term keeps what they say apart.

Source: "Factorized Visual Tokenization and Generation" (2024), checks 3 and 4 of its sheet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.claims import Claim
from benchmarks.claims._autoencoder import cifar, outcome
from smalti.quantize import Disentanglement, Parallel, Quantizer, create

CODES, DIM, STEPS = 256, 8, 1200
RATIO, APART = 0.1, 5.0


def claims(data: Path, seed: int) -> Iterator[Claim]:
    """Cosines between the two codes of a position with and without the term; errors of one and of two codebooks."""
    train, test = cifar(data, "train"), cifar(data, "test")

    def trained(quantizer: Quantizer) -> tuple[float, float, float]:
        result = outcome(quantizer, train, test, seed, steps=STEPS)
        return result.mse, squared_cosine(quantizer, result.codes), result.seconds

    plain_mse, plain_cosine, plain_seconds = trained(dual(seed, 0.0))
    _, cosine, seconds = trained(dual(seed, RATIO))
    yield Claim(
        system="fqgan",
        claim=f"the disentangling term lowers squared cosines between the codebooks at least {APART:.0f} times",
        metric="mean squared cosine of a position's two codes, test pictures",
        better="lower",
        baseline=plain_cosine,
        ours=cosine,
        holds=APART * cosine <= plain_cosine,
        seconds=plain_seconds + seconds,
    )
    for codes in (CODES, 2 * CODES):
        torch.manual_seed(seed)
        single_mse, _, single_seconds = trained(create("vq", dim=DIM, codes=codes, unit=True))
        yield Claim(
            system="fqgan",
            claim=f"two codebooks of {CODES} codes reconstruct better than one of {codes}",
            metric="MSE of pixels in [-1,1], test pictures",
            better="lower",
            baseline=single_mse,
            ours=plain_mse,
            holds=plain_mse < single_mse,
            seconds=plain_seconds + single_seconds,
        )


def dual(seed: int, ratio: float) -> Parallel:
    """Two cosine codebooks side by side, as in FQGAN, without its entropy term."""
    torch.manual_seed(seed)
    parts = [create("vq", dim=DIM, codes=CODES, unit=True) for _ in range(2)]
    return Parallel(parts, terms=[Disentanglement(ratio)] if ratio else [])


def squared_cosine(quantizer: nn.Module, codes: Tensor) -> float:
    """Mean squared cosine between the vectors of a position's slots; 1 where there is one slot."""
    assert isinstance(quantizer, Quantizer)
    with torch.no_grad():
        vectors = F.normalize(quantizer.lookup(codes), dim=-1)
    return float((vectors[..., 0, :] * vectors[..., -1, :]).sum(-1).square().mean())
