"""Linear maps that no optimizer moves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FixedLinear(nn.Module):
    """x W' + b with constants.

    Args:
        weight: (out, in).
        bias: (out,); None for none.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().float().clone())
        zero = torch.zeros(len(weight), dtype=torch.float32) if bias is None else bias.detach().float().clone()
        self.register_buffer("bias", zero)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def preimage(self) -> FixedLinear:
        """The map back to the shortest x that comes closest."""
        inverse = torch.linalg.pinv(self.weight.double())
        return FixedLinear(inverse, -(inverse @ self.bias.double()))
