"""Noise in training: where it goes, that codes never see it, and the gradients of drawn bits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from smalti.errors import ConfigError
from smalti.quantize import (
    Bernoulli,
    BinaryMapping,
    Moments,
    NoiseDropout,
    OneHot,
    Perturbed,
    Quantize,
    Scalars,
    SoftClamp,
    Through,
    Warped,
    create,
)
from smalti.quantize.assign import Assigned
from smalti.quantize.bounds import Cumulative
from smalti.quantize.moments import PRESETS
from smalti.quantize.scalar_noise import level_widths


def test_noise_dropout_moves_some_scalars_and_no_code() -> None:
    torch.manual_seed(0)
    grid = Scalars((5, 3))
    vq = Quantize(grid, before=SoftClamp(), assign=NoiseDropout(0.3, level_widths(grid)))
    z = torch.randn(1, 5000, 2)
    out = vq(z)
    clean = vq.eval()(z)
    assert torch.equal(out.codes, clean.codes)
    moved = (out.z != clean.z)[clean.z.abs() < 1]  # noise beyond the outermost levels is cut
    assert abs(float(moved.float().mean()) - 0.3) < 0.05
    assert float(out.z.abs().max()) <= 1
    assert torch.equal(grid.nearest(out.z[0].detach()), out.codes[0])  # noise of a level's width leaves the level


def test_named_noise_replaces_the_draw() -> None:
    vq = Quantize(Scalars((5, 3)), before=SoftClamp(), assign=NoiseDropout(1.0, [1.0, 1.0]))
    z = torch.zeros(1, 4, 2)
    drawn = torch.tensor([[0.25, 0.0], [-0.5, 0.5], [0.0, 0.0], [0.1, 0.2]])
    assert torch.allclose(vq(z, noise={"noise_dropout": drawn}).z[0], drawn)


@pytest.mark.parametrize("back", [False, True])
def test_perturbed_scalars_stay_within_half_a_level(back: bool) -> None:
    torch.manual_seed(0)
    levels, bound = (8, 5), Cumulative("normal")
    inverse = bound.inverse if back else None
    vq = Quantize(
        Warped(Scalars(levels, grid="centres"), bound, inverse),
        assign=Perturbed(0.25, levels, bound, inverse),
        estimator=None if back else Through(bound),
    )
    z = torch.randn(1, 4000, 2)
    p = bound(z)
    out = vq(z).z
    got = bound(out) if back else out
    rounded = vq.eval()(z).z
    rounded = bound(rounded) if back else rounded
    share = (got - rounded).abs() < 1e-6
    assert abs(float(share.float().mean()) - 0.25) < 0.03
    far = (got - p).abs() * torch.tensor(levels) * 2
    assert float(far.max()) <= 1 + 1e-4
    assert float(got.min()) > 0 and float(got.max()) < 1
    assert not bool(((got == p) & ~share)[(p > 0.2) & (p < 0.8)].any())


def test_bits_are_drawn_with_their_probability() -> None:
    torch.manual_seed(0)
    vq = Quantize(Scalars((2,) * 3), assign=Bernoulli())
    logits = torch.tensor([-1.0, 0.0, 2.0]).expand(1, 20_000, 3)
    ones = (vq(logits).z[0] > 0).float().mean(0)
    assert torch.allclose(ones, torch.sigmoid(logits[0, 0]), atol=0.02)
    assert torch.equal(vq.eval()(logits).codes, vq.encode(logits))
    uniform = torch.tensor([[0.2, 0.6, 0.9]]).expand(20_000, 3)
    assert vq.train()(logits, noise={"uniform": uniform}).z[0, 0].tolist() == [1.0, -1.0, -1.0]


@pytest.mark.parametrize("order", ["little", "big"])
def test_one_hot_gradients_are_those_of_the_product_distribution(order: str) -> None:
    alphabet = OneHot(4, order=order)  # type: ignore[arg-type]
    vq = Quantize(alphabet, assign=BinaryMapping())
    logits = torch.randn(6, 4, requires_grad=True)
    table = (alphabet.signs.codebooks()[0] > 0).float()
    p = torch.sigmoid(logits)
    product = (p[:, None] * table + (1 - p[:, None]) * (1 - table)).prod(-1)
    assert torch.allclose(product.sum(1), torch.ones(6))
    assert torch.allclose(alphabet.log_probabilities(logits).exp(), product, atol=1e-6)
    assigned = BinaryMapping()(logits, alphabet, {})
    upstream = torch.randn(6, 16)
    ours, theirs = (
        torch.autograd.grad((each * upstream).sum(), logits, retain_graph=True)[0]
        for each in (assigned.vectors, product)
    )
    assert torch.allclose(ours, theirs, atol=1e-6)
    codes = vq.encode(logits.detach()[None])[0]
    assert torch.equal(F.one_hot(codes[:, 0], 16).float(), alphabet.lookup(codes))
    assert torch.equal(alphabet.codebooks()[0], torch.eye(16))


def test_moments_are_zero_for_what_they_want_and_their_formula_else() -> None:
    torch.manual_seed(0)
    nothing = Assigned(torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0))
    normal = torch.randn(400_000, 2)
    alphabet = Scalars((4, 4))
    assert float(PRESETS["kurt"](normal, nothing, alphabet)) < 1e-4
    logistic = torch.logit(torch.rand(400_000, 2)) / 2
    assert float(PRESETS["var_tanh"](logistic, nothing, alphabet)) < 1e-4
    x = torch.randn(50, 3).exp()
    mean, variance = x.mean(0), x.var(0)
    score = (x - mean) / variance.sqrt()
    expected = (
        0.1 * mean.square().mean()
        + 0.07 * (variance - 1).square().mean()
        + 0.06 * score.pow(3).mean(0).square().mean()
        + 0.05 * (score.pow(4).mean(0) - 3).square().mean()
    )
    assert torch.allclose(PRESETS["kurt"](x, nothing, alphabet), expected, rtol=1e-5)
    single = torch.ones(1, 3, requires_grad=True)
    Moments()(single, nothing, alphabet).backward()
    assert single.grad is not None and bool(torch.isfinite(single.grad).all())


def test_fsp_rounds_probabilities_to_unit_variance() -> None:
    vq = create("fsp", levels=(16, 16), distribution="normal", rounded=1.0).eval()
    out = vq(torch.randn(1, 100_000, 2)).z
    assert torch.allclose(out.var((0, 1)), torch.ones(2), atol=0.02) and float(out.mean().abs()) < 0.02
    assert math.isclose(float(out.max()), (1 - 1 / 32 - 0.5) * math.sqrt(12), rel_tol=1e-5)


def test_wrong_rates_name_themselves() -> None:
    with pytest.raises(ConfigError, match="rate"):
        NoiseDropout(1.5, [1.0])
    with pytest.raises(ConfigError, match="bits"):
        OneHot(40)
