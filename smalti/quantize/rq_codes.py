"""Soft and stochastic codes of RQ-VAE: p(code | r) = softmax(-|r - e|² / temperature) at every residual level.

Source: "Autoregressive Image Generation using Residual Quantization" (2022).

    r_1 = z ──p_1──► code (nearest or drawn) ──► r_2 = r_1 - e ──p_2──► ...

The codes are what a prior is fed, the distributions what it is asked for (soft targets).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.quantize.assign import Assigned, Nearest
from smalti.quantize.base import Alphabet, Noise
from smalti.quantize.compose import Quantize
from smalti.quantize.residual import Residual
from smalti.quantize.table import Table

SOFT_BUFFER = 2**22  # distributions held at once


class Stochastic(Nearest):
    """In training a code is drawn with probability softmax(-|x - e|² / temperature); otherwise the nearest.

    Args:
        temperature: 0 takes the nearest; a schedule may change it.

    Noise:
        gumbel: (rows, codes), replaces the drawn Gumbel noise.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature < 0:
            raise ConfigError(f"temperature must not be negative, got {temperature}")
        self.temperature = temperature

    def forward(self, x: Tensor, alphabet: Alphabet, noise: Noise) -> Assigned:
        if not self.training or self.temperature == 0:
            return super().forward(x, alphabet, noise)
        codes = draw_codes(x.detach(), _rows(alphabet), self.temperature, noise.get("gumbel"))[:, None]
        return Assigned(codes, alphabet.chosen(codes))


@torch.no_grad()
def draw_codes(x: Tensor, table: Tensor, temperature: float, gumbel: Tensor | None = None) -> Tensor:
    """One code for each row of x (rows, dim), drawn from softmax(-|x - e|² / temperature): (rows,).

    Args:
        x: (rows, dim).
        table: (codes, dim).
        temperature: positive.
        gumbel: (rows, codes), replaces the drawn Gumbel noise.
    """
    drawn = [x.new_zeros(0, dtype=torch.int64)]
    for span in _spans(x, table):
        logits = _logits(x[span], table, temperature)
        own = -torch.empty_like(logits).exponential_().log() if gumbel is None else gumbel[span]
        drawn.append((logits + own).argmax(1))
    return torch.cat(drawn)


@torch.no_grad()
def soft_codes(
    quantizer: Residual, z: Tensor, temperature: float, *, stochastic: bool = False, gumbel: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes along the residual path, and the distribution at each of its levels.

    Args:
        quantizer: Residual of Quantize over Euclidean Tables of one size.
        z: (batch, *positions, dim).
        temperature: of the distributions; 0.5 and 1 are published.
        stochastic: draw the codes from the distributions; otherwise they are the nearest, as `encode` gives them.
        gumbel: (levels, rows, codes), replaces the drawn Gumbel noise.

    Returns:
        codes (batch, *positions, levels) and distributions (batch, *positions, levels, codes), float32, which is as
        large as it looks: ask for no more positions than a prior is trained on at once.

    Raises:
        ConfigError: if the quantizer is another, or the temperature is not positive.
        InputError: if z does not fit.
    """
    if temperature <= 0:
        raise ConfigError(f"temperature must be positive, got {temperature}")
    if z.shape[-1] != quantizer.dim or not bool(torch.isfinite(z).all()):
        raise InputError(f"latents must be finite (batch, *positions, {quantizer.dim}), got {tuple(z.shape)}")
    residual = quantizer.before(z.float()).reshape(-1, quantizer.inner_dim)
    codes, soft = [], []
    for place, level in enumerate(quantizer.levels):
        if not isinstance(level, Quantize):
            raise ConfigError(f"soft codes need levels that are Quantize, got {type(level).__name__}")
        table = _rows(level.alphabet)
        x = level.alphabet.project(level.before(residual))
        soft.append(torch.cat([_logits(x[span], table, temperature).softmax(1) for span in _spans(x, table)]))
        if stochastic:
            own = None if gumbel is None else gumbel[place]
            chosen = draw_codes(x, table, temperature, own)[:, None]
        else:
            chosen = level.alphabet.nearest(x)
        residual = residual - level.decode(chosen)
        codes.append(chosen[:, 0])
    shape = z.shape[:-1]
    depths = torch.stack(soft, 1)
    return torch.stack(codes, -1).view(*shape, len(codes)), depths.view(*shape, *depths.shape[1:])


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -sum p log softmax(logits) over all but the last axis: a prior's loss on soft targets.

    Args:
        logits: (..., codes).
        targets: (..., codes), distributions.
    """
    return -(targets * F.log_softmax(logits.float(), dim=-1)).sum(-1).mean()


def _rows(alphabet: Alphabet) -> Tensor:
    if not isinstance(alphabet, Table) or alphabet.space != "euclidean":
        raise ConfigError(f"RQ-VAE's codes need a Euclidean Table, got {type(alphabet).__name__}")
    return alphabet.codebooks()[0].detach()


def _spans(x: Tensor, table: Tensor) -> Iterator[slice]:
    size = max(1, SOFT_BUFFER // len(table))
    for start in range(0, len(x), size):
        yield slice(start, start + size)


def _logits(x: Tensor, table: Tensor, temperature: float) -> Tensor:
    """-|x - e|² / temperature, without what all codes of a row share; centred, so that an offset costs no digits."""
    centre = table.mean(0)
    rows = table - centre
    return ((x - centre) @ rows.t() * 2 - rows.square().sum(1)) / temperature
