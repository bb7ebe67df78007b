"""What the rows of a table are.

    Trained     parameters, or rows that a learning rule sets
    Frozen      constants
    Mapped      a trained network over a frozen base (SimVQ with one linear layer)
    Bridged     a trained network over trained rows (FVQ's bridge)
    Affine      trained rows, moved and scaled to the latents' running mean and deviation (module `affine`)

Sources: "Neural Discrete Representation Learning"; "Addressing Representation Collapse in Vector Quantized Models with
One Linear Layer" (mapped); "Scalable Training for Vector-Quantized Networks with 100% Codebook Utilization" (bridged).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from smalti.errors import ConfigError

Init = Callable[[Tensor], object]


class Vectors(nn.Module):
    """The rows of a table: (codes, dim)."""

    codes: int
    dim: int
    weight: Tensor

    def forward(self) -> Tensor:
        """The effective rows, differentiable in what is trained."""
        return self.weight

    def stored(self) -> Trained | None:
        """The rows that a learning or dead-code rule may set, if there are any."""
        return None

    def start(self, x: Tensor) -> None:
        """Sees the latents of a training batch, (rows, dim), before they are quantized."""

    def to_stored(self, x: Tensor) -> Tensor:
        """Moves latents (rows, dim) from where effective rows lie to where stored rows lie."""
        return x

    def update(self) -> None:
        """Applies what `start` gathered; called before rules set rows."""


def uniform(scale: float) -> Init:
    """Initialisation U(-scale, scale); VQ-VAE uses scale 1/K."""
    return lambda weight: nn.init.uniform_(weight, -scale, scale)


class Trained(Vectors):
    """Rows that are parameters (learned by gradient) or are set by a learning rule.

    Args:
        codes: number of rows K.
        dim: their dimension D.
        init: fills a (K, D) tensor; U(-1/K, 1/K) if None.
    """

    def __init__(self, codes: int, dim: int, init: Init | None = None) -> None:
        super().__init__()
        if codes < 1 or dim < 1:
            raise ConfigError(f"a table needs at least one code and one dimension, got {codes} x {dim}")
        self.codes, self.dim = codes, dim
        self.weight = nn.Parameter(torch.empty(codes, dim, dtype=torch.float32))
        with torch.no_grad():
            (init or uniform(1 / codes))(self.weight)

    def stored(self) -> Trained:
        return self


class Frozen(Vectors):
    """Rows that never change.

    Args:
        rows: (codes, dim).
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.codes, self.dim = rows.shape
        self.register_buffer("weight", rows.float().clone())


class Mapped(Vectors):
    """Rows that move together: a trained network over a frozen base.

    Args:
        base: (codes, base dim), frozen.
        network: maps rows to (codes, dim).
        dim: what the network gives.
    """

    def __init__(self, base: Tensor, network: nn.Module, dim: int) -> None:
        super().__init__()
        self.codes, self.dim = len(base), dim
        self.register_buffer("weight", base.float().clone())
        self.network = network

    def forward(self) -> Tensor:
        return self.network(self.weight)


class Bridged(Vectors):
    """Trained rows seen through a trained network, so that every row gets a gradient, chosen or not.

    A dead-code rule sets stored rows to latents as they are, because a network has no inverse.

    Args:
        rows: (codes, dim), learned by gradient.
        network: maps the rows (codes, dim) to (codes, dim).
    """

    def __init__(self, rows: Trained, network: nn.Module) -> None:
        super().__init__()
        self.codes, self.dim = rows.codes, rows.dim
        self.rows, self.network = rows, network

    def stored(self) -> Trained:
        return self.rows

    def forward(self) -> Tensor:
        return self.network(self.rows())
