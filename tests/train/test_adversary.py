"""Losses of the game against their formulas in plain numbers, and VQGAN's weight against gradients known by hand."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from smalti.train.adversary import GAN, adaptive_weight, discriminator_loss, generator_loss

REAL, FAKE = [2.0, -0.5, 0.3], [-3.0, 0.25]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def sigmoid(value: float) -> float:
    return 1 / (1 + exp(-value))


def likelihood() -> float:
    """-(ln D(x) + ln(1 - D(G(z)))), each a mean."""
    return -mean([log(sigmoid(r)) for r in REAL]) - mean([log(1 - sigmoid(f)) for f in FAKE])


@pytest.mark.parametrize(
    ("gan", "discriminator", "generator"),
    [
        ("hinge", mean([max(0, 1 - r) for r in REAL]) + mean([max(0, 1 + f) for f in FAKE]), -mean(FAKE)),
        (
            "least_squares",
            mean([(r - 1) ** 2 for r in REAL]) + mean([f**2 for f in FAKE]),
            mean([(f - 1) ** 2 for f in FAKE]),
        ),
        ("non_saturating", likelihood(), mean([-log(sigmoid(f)) for f in FAKE])),
        ("vanilla", likelihood(), mean([log(1 - sigmoid(f)) for f in FAKE])),
    ],
)
def test_losses_equal_their_formulas(gan: GAN, discriminator: float, generator: float) -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    assert discriminator_loss(gan, real, fake).item() == pytest.approx(discriminator, rel=1e-5)
    assert generator_loss(gan, fake).item() == pytest.approx(generator, rel=1e-5)


@pytest.mark.parametrize("gan", ["hinge", "least_squares", "non_saturating", "vanilla"])
def test_both_sides_pull_a_fake_logit_in_opposite_directions(gan: GAN) -> None:
    fake = torch.tensor(0.5, requires_grad=True)
    (judge,) = torch.autograd.grad(discriminator_loss(gan, torch.tensor(0.5), fake), fake)
    (forger,) = torch.autograd.grad(generator_loss(gan, fake), fake)
    assert judge > 0 > forger


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    reconstruction = 3 * w[0] + 4 * w[1]  # gradient (3, 4), norm 5
    generator = 0.5 * w[1] ** 2  # gradient (0, -2), norm 2
    weight = adaptive_weight(reconstruction, generator, w)
    assert weight.item() == pytest.approx(5 / (2 + 1e-4))
    assert not weight.requires_grad and w.grad is None
    (reconstruction + weight * generator).backward()  # the graph is still there, and the weight counts as a constant
    assert w.grad is not None
    assert w.grad.tolist() == pytest.approx([3, 4 - 2 * 5 / 2.0001])


def test_the_adaptive_weight_has_a_ceiling() -> None:
    w = torch.ones(1, requires_grad=True)
    assert adaptive_weight(1e6 * w.sum(), 0 * w.sum(), w).item() == 1e4
    assert adaptive_weight(1e6 * w.sum(), 0 * w.sum(), w, limit=7.0).item() == 7
