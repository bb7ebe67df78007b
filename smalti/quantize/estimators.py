"""How a gradient passes the choice of a code.

    StraightThrough     dL/dx = dL/dz                                             the table learns from loss terms alone
    Rotation            dL/dx = (|q|/|x|) R' dL/dz,  R turns x onto q
    RawLatent           another estimator, past the table's own normalisation
    CodebookOnly        nothing reaches x; the table gets dL/dz
    Synchronous         another estimator, and the table gets a share of dL/dz
    DiVeQ, NSVQ         z = x + |q - x| d: the gradient of a distance reaches x and the table; d a direction

The value is always the chosen vector, bit for bit; but for DiVeQ and NSVQ in training, whose direction is drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.base import Noise

MIN_LENGTH = 1e-6  # of a vector that something is divided by; published
CACHED = 2**17  # numbers of a tensor that fit a core's cache beside a few others


class Estimator(ABC):
    """Called with latents x and chosen vectors q, (rows, dim) both; gives q with the gradient that the method defines.

    Attributes:
        raw: whether x is the latent as it was before the alphabet projected it into its space.
    """

    raw: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x: Tensor, q: Tensor) -> Tensor:
        """The estimate without randomness."""

    def draw(self, x: Tensor, q: Tensor, noise: Noise) -> Tensor:
        """The estimate in training, where a method may be random."""
        return self(x, q)


class StraightThrough(Estimator):
    """The gradient of q goes to x unchanged ("Estimating or Propagating Gradients Through Stochastic Neurons")."""

    def __call__(self, x: Tensor, q: Tensor) -> Tensor:
        return _Straight.apply(x, q.detach())


class Rotation(Estimator):
    """x is carried to q by a rotation and a rescaling that count as constants.

    Source: "Restructuring Vector Quantization with the Rotation Trick" (2024).
    """

    def __call__(self, x: Tensor, q: Tensor) -> Tensor:
        return _Rotate.apply(x, q.detach())


class RawLatent(Estimator):
    """Another estimator on the latent as the encoder gave it: the gradient skips the normalisation of a unit table.

    Source: "Vector-quantized Image Modeling with Improved VQGAN" (ViT-VQGAN).

    Args:
        inner: the estimator; straight-through if None.
    """

    raw: ClassVar[bool] = True

    def __init__(self, inner: Estimator | None = None) -> None:
        self.inner = inner or StraightThrough()

    def __call__(self, x: Tensor, q: Tensor) -> Tensor:
        return self.inner(x, q)

    def draw(self, x: Tensor, q: Tensor, noise: Noise) -> Tensor:
        return self.inner.draw(x, q, noise)


class CodebookOnly(Estimator):
    """No gradient to x; all of it goes to the chosen rows of the table."""

    def __call__(self, x: Tensor, q: Tensor) -> Tensor:
        return q


class Synchronous(Estimator):
    """Another estimator for x, and a share of the gradient for the chosen rows, so that both follow the same loss.

    Source: "Straightening Out the Straight-Through Estimator" (2023), synchronized update; needs a trained table.

    Args:
        share: of the gradient, that the rows get.
        inner: the estimator of x; straight-through if None.
    """

    def __init__(self, share: float, inner: Estimator | None = None) -> None:
        if share <= 0:
            raise ConfigError(f"the table's share of the gradient must be positive, got {share}")
        self.share, self.inner = share, inner or StraightThrough()

    def __call__(self, x: Tensor, q: Tensor) -> Tensor:
        return self.inner(x, q) + self.share * (q - q.detach())

    def draw(self, x: Tensor, q: Tensor, noise: Noise) -> Tensor:
        return self.inner.draw(x, q, noise) + self.share * (q - q.detach())


class DiVeQ(Estimator):
    """z = x + |q - x| d with d = sg unit(q - x + noise): a small error of the right length, differentiable in x and q.

    No commitment or codebook term is needed. Without noise z is q.

    Source: "DiVeQ: Differentiable Vector Quantization Using the Reparameterization Trick" (2025).

    Args:
        variance: of the noise in training.

    Noise:
        directions: (rows, dim), standard normal.
    """

    def __init__(self, variance: float = 5e-3) -> None:
        if variance < 0:
            raise ConfigError(f"variance must not be negative, got {variance}")
        self.variance = variance

    def __call__(self, x: Tensor, q: Tensor) -> Tensor:
        error = q - x
        surrogate = error.norm(dim=-1, keepdim=True) * F.normalize(error.detach(), dim=-1) + x
        return q.detach() + (surrogate - surrogate.detach())

    def draw(self, x: Tensor, q: Tensor, noise: Noise) -> Tensor:
        error = q - x
        direction = F.normalize(error.detach() + self.variance**0.5 * _directions(x, noise), dim=-1)
        return x + error.norm(dim=-1, keepdim=True) * direction


class NSVQ(Estimator):
    """z = x + |q - x| d with a random direction d: noise of the length of the quantization error takes its place.

    In evaluation the value is q, with a straight-through gradient.

    Source: "NSVQ: Noise Substitution in Vector Quantization for Machine Learning" (2022).

    Noise:
        directions: (rows, dim), standard normal.
    """

    def __call__(self, x: Tensor, q: Tensor) -> Tensor:
        return _Straight.apply(x, q.detach())

    def draw(self, x: Tensor, q: Tensor, noise: Noise) -> Tensor:
        return x + (q - x).norm(dim=-1, keepdim=True) * F.normalize(_directions(x, noise), dim=-1)


class Amplified(Estimator):
    """Another estimator whose gradient to x is multiplied.

    Args:
        factor: multiplies the gradient.
        inner: the estimator.
    """

    def __init__(self, factor: float, inner: Estimator) -> None:
        self.factor, self.inner = factor, inner

    def __call__(self, x: Tensor, q: Tensor) -> Tensor:
        out = self.inner(x, q)
        return out.detach() + self.factor * (out - out.detach())


def _directions(x: Tensor, noise: Noise) -> Tensor:
    drawn = noise.get("directions")
    return torch.randn_like(x) if drawn is None else drawn.view_as(x)


class _Straight(torch.autograd.Function):
    """Forward gives q, backward gives x the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor) -> Tensor:
        return q.clone()  # the decoder may write into it, loss terms still need q

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Rotate(torch.autograd.Function):
    """Forward gives q; backward applies the transposed map to the gradient, two rank-one terms and a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(x, q)
        return q.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # On a CPU a part of the rows at a time, so that what is made on the way stays in cache.
        size = CACHED // gradient.shape[-1] + 1 if gradient.device.type == "cpu" else max(1, len(gradient))
        turned = torch.empty_like(gradient)
        parts = zip(*(tensor.split(size) for tensor in (gradient, *ctx.saved_tensors, turned)), strict=True)
        for part, x, q, out in parts:
            _turned_back(part, x, q, out)
        return turned, None


def _turned_back(gradient: Tensor, x: Tensor, q: Tensor, out: Tensor) -> None:
    """|q|/|x| R'g for the rotation R that takes x to q, all (rows, dim).

    With x and q at length 1, u and v, and w = (u + v) / |u + v|: R = 1 - 2ww' + 2vu', so R' = 1 - 2ww' + 2uv'.
    """
    per_x = 1 / x.norm(dim=-1, keepdim=True).clamp(min=MIN_LENGTH)
    length = q.norm(dim=-1, keepdim=True)
    per_q = 1 / length.clamp(min=MIN_LENGTH)
    both = torch.addcmul(x * per_x, q, per_q)
    per_both = 1 / both.norm(dim=-1, keepdim=True).clamp(min=MIN_LENGTH)
    along_both = (gradient * both).sum(-1, keepdim=True) * per_both.square()
    along_q = (gradient * q).sum(-1, keepdim=True) * per_q
    scale = length * per_x
    torch.mul(gradient, scale, out=out)
    out.addcmul_(both, -2 * scale * along_both).addcmul_(x, 2 * scale * along_q * per_x)
