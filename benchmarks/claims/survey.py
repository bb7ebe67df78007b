"""Codewords that are chosen together beat residual ones, and rotated parts beat parts.

Source: "Discrete Tokenization for Multimodal LLMs" (2025), the survey, for additive quantization ("Additive
Quantization for Extreme Vector Compression", "LSQ++") and OPQ ("Optimized Product Quantization"); check 3 of its sheet.
Vectors are photo patches, and the sheet's own Gaussian mixture.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.claims import Claim
from benchmarks.claims._autoencoder import cifar
from smalti.quantize.additive import fit
from smalti.quantize.rotated import fit_product

PARTS, CODES, DIM, COMPONENTS, ROWS = 4, 16, 32, 100, 5000
GAIN, ITERATIONS, PATCH = 0.10, 10, 4


def claims(data: Path, seed: int) -> Iterator[Claim]:
    """LSQ against residual k-means; AQ, OPQ and PQ at the same 16 bits."""
    started = time.perf_counter()
    errors = fit(mixture(seed), PARTS, CODES, iterations=ITERATIONS, seed=seed).errors
    yield Claim(
        system="survey",
        claim=f"{ITERATIONS} iterations of LSQ lower the error of residual quantization by at least {GAIN:.0%}",
        metric="squared error per vector of a Gaussian mixture",
        better="lower",
        baseline=errors[0],
        ours=errors[-1],
        holds=errors[-1] <= (1 - GAIN) * errors[0],
        seconds=time.perf_counter() - started,
    )
    started = time.perf_counter()
    x = patches(cifar(data, "train"), seed)
    product = fit_product(x, PARTS, CODES, rotate=False, seed=seed).errors[-1]
    rotated = fit_product(x, PARTS, CODES, rotate=True, seed=seed).errors[-1]
    additive = fit(x, PARTS, CODES, iterations=ITERATIONS, seed=seed).errors[-1]
    seconds = time.perf_counter() - started
    for name, better, worse, other in (("OPQ", rotated, product, "PQ"), ("AQ", additive, rotated, "OPQ")):
        yield Claim(
            system="survey",
            claim=f"{name} errs no more than {other} at {PARTS} x {CODES} codes",
            metric=f"squared error per patch of {PATCH}x{PATCH} pixels",
            better="lower",
            baseline=worse,
            ours=better,
            holds=better <= worse,
            seconds=seconds,
        )


def mixture(seed: int) -> Tensor:
    """Vectors of a Gaussian mixture: (ROWS, DIM)."""
    draw = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(COMPONENTS, DIM, generator=draw)
    return means[torch.randint(COMPONENTS, (ROWS,), generator=draw)] + torch.randn(ROWS, DIM, generator=draw)


def patches(pictures: Tensor, seed: int) -> Tensor:
    """Random patches of pictures (N, 3, 16, 16): (ROWS, 3 * PATCH²)."""
    draw = torch.Generator().manual_seed(seed)
    cut = pictures.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)
    return cut[torch.randint(len(cut), (ROWS,), generator=draw)]
