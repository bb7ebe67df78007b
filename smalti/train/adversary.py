"""Losses of generative adversarial training, for images and sound, and VQGAN's weight that balances them.

    real, fake ──discriminator──► logits of any shape ──► scalar

    name             discriminator                        generator                    source
    hinge            relu(1 - real) + relu(1 + fake)      -fake                        Geometric GAN (2017)
    least_squares    (real - 1)² + fake²                  (fake - 1)²                  LSGAN (2016)
    non_saturating   softplus(-real) + softplus(fake)     softplus(-fake)              GAN (2014)
    vanilla          softplus(-real) + softplus(fake)     -softplus(fake)              the same paper's minimax game

Means are taken over all logits. The discriminator's two halves are added; image papers halve that sum, sound papers
do not, so it is left to objectives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.quantize.distributed import mean_over_ranks

GAN = Literal["hinge", "least_squares", "non_saturating", "vanilla"]

STABLE = 1e-4  # added to the norm of the generator's gradient, as published
LIMIT = 1e4  # of the adaptive weight, as published


def discriminator_loss(gan: GAN, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises.

    Args:
        gan: which pair of losses; `vanilla` and `non_saturating` are one here.
        real, fake: logits of data, and of what was generated without its gradient; any shapes.

    Returns:
        Scalar: the mean over real logits plus the mean over fake ones.
    """
    of_real, of_fake = _DISCRIMINATOR[gan]
    return of_real(real).mean() + of_fake(fake).mean()


def generator_loss(gan: GAN, fake: Tensor) -> Tensor:
    """What the generator minimises: a scalar, the mean over the logits of what it generated."""
    return _GENERATOR[gan](fake).mean()


def adaptive_weight(reconstruction: Tensor, generator: Tensor, parameter: Tensor, limit: float = LIMIT) -> Tensor:
    """VQGAN's weight of the generator's loss: both losses then pull equally hard at one parameter.

    ||d reconstruction / d parameter|| / (||d generator / d parameter|| + 1e-4), between 0 and `limit`.

    Source: "Taming Transformers for High-Resolution Image Synthesis" (2020), equation 7.

    Args:
        reconstruction, generator: the losses, scalars; their graph is kept.
        parameter: the last layer's weight.
        limit: the weight's maximum.

    Returns:
        Scalar without gradient, on the parameter's device.
    """
    (pull,) = torch.autograd.grad(reconstruction, parameter, retain_graph=True)
    (push,) = torch.autograd.grad(generator, parameter, retain_graph=True)
    # The gradients of the whole batch: ranks that weighed only their own share would pull apart.
    pull, push = mean_over_ranks(pull), mean_over_ranks(push)
    return (pull.norm() / (push.norm() + STABLE)).clamp(0, limit).detach()


Loss = Callable[[Tensor], Tensor]


def _hinge_real(logits: Tensor) -> Tensor:
    return F.relu(1 - logits)


def _hinge_fake(logits: Tensor) -> Tensor:
    return F.relu(1 + logits)


def _distance_to_one(logits: Tensor) -> Tensor:
    return (logits - 1).square()


def _surprise_of_real(logits: Tensor) -> Tensor:
    return F.softplus(-logits)  # -ln sigmoid


_LOGISTIC: tuple[Loss, Loss] = (_surprise_of_real, F.softplus)
_DISCRIMINATOR: dict[GAN, tuple[Loss, Loss]] = {
    "hinge": (_hinge_real, _hinge_fake),
    "least_squares": (_distance_to_one, torch.square),
    "non_saturating": _LOGISTIC,
    "vanilla": _LOGISTIC,
}
_GENERATOR: dict[GAN, Loss] = {
    "hinge": torch.neg,
    "least_squares": _distance_to_one,
    "non_saturating": _surprise_of_real,
    "vanilla": lambda logits: -F.softplus(logits),
}
