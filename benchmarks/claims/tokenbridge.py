"""Scalar tables made after training keep what a latent says, and dimensions must be predicted one after another.

Source: "Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation" (2025), checks 6 and 7 of its
sheet. The published errors of a table are those of normal samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.claims import Claim
from smalti.quantize import Levels, Quantize, create

SAMPLES = 200_000
PUBLISHED = {  # range of the latents -> bits -> mean squared error on N(0,1)
    3.0: {2: 0.1317, 4: 0.0211, 6: 0.0041},
    4.0: {2: 0.1244, 4: 0.0109, 6: 0.00091},
    5.0: {2: 0.1580, 4: 0.0103, 6: 0.00066},
}
NEAR = 0.03
DIMS, SOURCES, LEVELS, WIDTH, LAYERS, STEPS, BATCH, RATE = 8, 3, 8, 64, 2, 300, 256, 3e-3
REACHED, SPREAD, NOISE = 0.8, 3.0, 0.3


def claims(data: Path, seed: int) -> Iterator[Claim]:
    """Errors of the tables; likelihood of dimensions given those before them. No data set is needed."""
    yield from table_claims(seed)
    started = time.perf_counter()
    given = likelihood(seed, blind=False)
    blind = likelihood(seed, blind=True)
    yield Claim(
        system="tokenbridge",
        claim=f"a head that sees earlier dimensions needs at most {REACHED:.0%} of the nats of one that sees none",
        metric="nats per dimension, held-out vectors",
        better="lower",
        baseline=blind,
        ours=given,
        holds=given <= REACHED * blind,
        seconds=time.perf_counter() - started,
    )


def table_claims(seed: int) -> Iterator[Claim]:
    """Errors on normal samples beside those that were measured with the published function."""
    x = torch.randn(SAMPLES, 1, generator=torch.Generator().manual_seed(seed))
    for high, errors in PUBLISHED.items():
        for bits, published in errors.items():
            started = time.perf_counter()
            table = create("dimension-wise", dim=1, bits=bits, low=-high, high=high).eval()
            codes = table.encode(x)
            error = float(F.mse_loss(table.decode(codes), x))
            used = len(codes.unique())
            rounding = 0.5 * 10.0 ** -len(str(published).partition(".")[2])  # the sheet's figures are rounded
            yield Claim(
                system="tokenbridge",
                claim=f"{bits} bits over ±{high:.0f} err as published, within {NEAR:.0%}, and use all {2**bits} levels",
                metric=f"mean squared error on {SAMPLES:,} normal samples",
                better="lower",
                baseline=published,
                ours=error,
                holds=abs(error - published) <= NEAR * published + rounding and used == 2**bits,
                seconds=time.perf_counter() - started,
            )


class Head(nn.Module):
    """A small causal transformer over the dimensions of a vector: codes (B, DIMS) to logits (B, DIMS, LEVELS).

    Args:
        blind: whether the codes before a dimension are hidden from it.
    """

    def __init__(self, blind: bool) -> None:
        super().__init__()
        self.blind = blind
        self.codes = nn.Embedding(LEVELS + 1, WIDTH)  # the last one starts a vector
        self.places = nn.Parameter(torch.zeros(DIMS, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, LEVELS)

    def forward(self, codes: Tensor) -> Tensor:
        before = F.pad(codes[:, :-1], (1, 0), value=LEVELS)
        if self.blind:
            before = torch.full_like(before, LEVELS)
        hidden = self.layers(
            self.codes(before) + self.places, mask=nn.Transformer.generate_square_subsequent_mask(DIMS), is_causal=True
        )
        return self.out(hidden)


def likelihood(seed: int, *, blind: bool) -> float:
    """Nats per dimension that a trained head needs for vectors of three sources seen through eight mixtures."""
    torch.manual_seed(seed)
    mixing = torch.randn(DIMS, SOURCES)
    even = torch.linspace(-SPREAD, SPREAD, LEVELS)
    table = Quantize(Levels([even] * DIMS, slots=(1,) * DIMS)).eval()

    def vectors(count: int) -> Tensor:
        x = torch.randn(count, SOURCES) @ mixing.t() + NOISE * torch.randn(count, DIMS)
        return table.encode(x)

    head, held = Head(blind), vectors(4096)
    optimizer = torch.optim.Adam(head.parameters(), lr=RATE)
    for _ in range(STEPS):
        codes = vectors(BATCH)
        loss = F.cross_entropy(head(codes).flatten(0, 1), codes.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float(F.cross_entropy(head(held).flatten(0, 1), held.flatten()))
