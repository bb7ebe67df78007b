"""Affine: rows that follow the latents' mean and deviation as a whole.

    e' = (e - mean_E) (deviation_x / deviation_E) + mean_x        per dimension

Source: "Straightening Out the Straight-Through Estimator: Overcoming Optimization Challenges in Vector Quantized
Networks" (2023), affine re-parametrisation, in its form without trained parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.distributed import sum_over_ranks
from smalti.quantize.vectors import Trained, Vectors

LEAST_VARIANCE = 1e-5


class Affine(Vectors):
    """Trained rows, moved and scaled from their own running mean and variance to those of the latents.

    A training batch is quantized with moments that include it; they are kept by `update`, once for all batches since
    the last one, over all ranks. Evaluation leaves them alone. Before any training rows are taken as they are.

    Args:
        rows: the stored rows, learned by gradient or a learning rule.
        latent_decay: weight of the past in the latents' moments.
        codebook_decay: the same for the rows' moments.

    State:
        latent_moments, codebook_moments: (2, dim), mean and variance; started: (2,), which of the two there are.
    """

    latent_moments: Tensor
    codebook_moments: Tensor
    started: Tensor

    def __init__(self, rows: Trained, *, latent_decay: float = 0.99, codebook_decay: float = 0.9) -> None:
        super().__init__()
        if not (0 <= latent_decay < 1 and 0 <= codebook_decay < 1):
            raise ConfigError(f"decays must lie in [0, 1), got {latent_decay} and {codebook_decay}")
        self.codes, self.dim, self.rows = rows.codes, rows.dim, rows
        self.latent_decay, self.codebook_decay = latent_decay, codebook_decay
        neutral = torch.tensor([0.0, 1.0], dtype=torch.float32)[:, None].repeat(1, rows.dim)
        self.register_buffer("latent_moments", neutral.clone())
        self.register_buffer("codebook_moments", neutral.clone())
        self.register_buffer("started", torch.tensor([False, False]))
        # Of the batches since the last update: the moments with the latest of them, and sums over all.
        self._now: Tensor | None = None
        self._gathered: Tensor | None = None

    def stored(self) -> Trained:
        return self.rows

    def forward(self) -> Tensor:
        (mean, _), (own_mean, _) = self._moments()
        return (self.rows() - own_mean) * self._ratio() + mean

    def to_stored(self, x: Tensor) -> Tensor:
        (mean, _), (own_mean, _) = self._moments()
        return (x - mean) / self._ratio() + own_mean

    def _moments(self) -> Tensor:
        kept = torch.stack([self.latent_moments, self.codebook_moments])
        return self._now if self._now is not None and self.training else kept

    def _ratio(self) -> Tensor:
        latents, rows = self._moments()[:, 1].clamp(min=LEAST_VARIANCE).sqrt()
        return latents / rows

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        exact = x.double()
        sums = torch.cat([exact.sum(0), exact.square().sum(0), exact.new_full((1,), len(x))])
        self._gathered = sums if self._gathered is None else self._gathered + sums
        self._now = self._following(sum_over_ranks(sums.clone()))

    @torch.no_grad()
    def update(self) -> None:
        if self._gathered is None:
            return
        everything = sum_over_ranks(self._gathered)
        latents, rows = self._following(everything)
        self.latent_moments.copy_(latents)
        self.codebook_moments.copy_(rows)
        self.started |= everything[-1] > 0
        self._now, self._gathered = None, None

    def _following(self, sums: Tensor) -> Tensor:
        """The moments (2, 2, dim) after sums of x, of x² and the number of x."""
        count = sums[-1]
        mean, square = sums[:-1].view(2, -1) / count.clamp(min=1)
        batch = torch.stack([mean, (square - mean.square()).clamp(min=0)]).float()
        own = torch.stack([self.rows.weight.mean(0), self.rows.weight.var(0, unbiased=False)])
        latents = torch.where(self.started[0], torch.lerp(batch, self.latent_moments, self.latent_decay), batch)
        rows = torch.where(self.started[1], torch.lerp(own, self.codebook_moments, self.codebook_decay), own)
        kept = torch.stack([self.latent_moments, self.codebook_moments])
        return torch.where(count > 0, torch.stack([latents, rows]), kept)
