"""How a gradient passes the choice of a code. The value is always the chosen vector, bit for bit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Estimator(ABC):
    """Called with latents x and chosen vectors q, (rows, dim) both; gives q with a gradient to x."""

    @abstractmethod
    def __call__(self, x: Tensor, q: Tensor) -> Tensor: ...


class StraightThrough(Estimator):
    """The gradient of q goes to x unchanged ("Estimating or Propagating Gradients Through Stochastic Neurons")."""

    def __call__(self, x: Tensor, q: Tensor) -> Tensor:
        return q.detach() + (x - x.detach())  # the difference is exactly zero


class Rotation(Estimator):
    """x is carried to q by a rotation and a rescaling that count as constants.

    Source: "Restructuring Vector Quantization with the Rotation Trick" (2024).
    """

    def __call__(self, x: Tensor, q: Tensor) -> Tensor:
        return _Rotate.apply(x, q.detach())


class _Rotate(torch.autograd.Function):
    """Forward gives q; backward applies the transposed map to the gradient, two rank-one terms and a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(x, q)
        return q.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, q = ctx.saved_tensors
        length = x.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        u = x / length
        v = F.normalize(q, dim=-1, eps=1e-6)
        w = F.normalize(u + v, dim=-1, eps=1e-6)
        # R = 1 - 2ww' + 2vu', so R' = 1 - 2ww' + 2uv'.
        turned = gradient - 2 * (gradient * w).sum(-1, keepdim=True) * w + 2 * (gradient * v).sum(-1, keepdim=True) * u
        return turned * (q.norm(dim=-1, keepdim=True) / length), None
