"""Gradients of estimators against finite differences of the surrogate that each stands for, and their values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize import (
    NSVQ,
    CodebookOnly,
    DiVeQ,
    Estimator,
    Quantize,
    RawLatent,
    Rotation,
    StraightThrough,
    Synchronous,
    Table,
    Trained,
)

EXACT: list[Estimator] = [StraightThrough(), Rotation(), CodebookOnly(), Synchronous(0.3), DiVeQ(), NSVQ(), RawLatent()]


def slopes(surrogate: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor) -> Tensor:
    """Central differences of (surrogate(x) * upstream).sum(), float64."""
    step, out = 1e-6, torch.empty_like(x)
    for index in range(x.numel()):
        moved = torch.zeros_like(x).flatten()
        moved[index] = step
        moved = moved.view_as(x)
        out.view(-1)[index] = ((surrogate(x + moved) - surrogate(x - moved)) * upstream).sum() / (2 * step)
    return out


def draws(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, q, upstream, noise = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64).unbind(0)
    return x, q, upstream, noise


def gradients(out: Tensor, upstream: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    found = torch.autograd.grad(out, inputs, upstream, allow_unused=True)
    return tuple(torch.zeros_like(x) if each is None else each for x, each in zip(inputs, found, strict=True))


@pytest.mark.parametrize("estimator", EXACT, ids=lambda each: type(each).__name__)
def test_the_value_without_noise_is_the_code_bit_for_bit(estimator: Estimator) -> None:
    x, q = torch.randn(2, 50, 7).unbind(0)
    assert torch.equal(estimator(x, q), q)
    assert torch.equal(estimator(x.requires_grad_(), q.clone().requires_grad_()), q)
    assert torch.equal(estimator(q, q), q)  # where latent and code meet


@pytest.mark.parametrize("variance", [0.0, 0.04])
def test_diveq_has_the_gradient_of_its_surrogate(variance: float) -> None:
    x, q, upstream, noise = draws()
    direction = (q - x) + variance**0.5 * noise
    direction = direction / direction.norm(dim=-1, keepdim=True)
    leaf, row = x.clone().requires_grad_(), q.clone().requires_grad_()
    out = DiVeQ(variance).draw(leaf, row, {"directions": noise})
    assert torch.allclose((out - x).norm(dim=-1), (q - x).norm(dim=-1))
    to_x, to_q = gradients(out, upstream, leaf, row)
    assert torch.allclose(
        to_x, slopes(lambda v: v + (q - v).norm(dim=-1, keepdim=True) * direction, x, upstream), atol=1e-6
    )
    assert torch.allclose(
        to_q, slopes(lambda v: x + (v - x).norm(dim=-1, keepdim=True) * direction, q, upstream), atol=1e-6
    )


def test_diveq_in_evaluation_has_the_gradient_of_the_limit_without_noise() -> None:
    x, q, upstream, _ = draws()
    leaf, row = x.clone().requires_grad_(), q.clone().requires_grad_()
    still = DiVeQ(0.0).draw(leaf, row, {})
    assert torch.allclose(still, q)
    expected = gradients(still, upstream, leaf, row)
    found = gradients(DiVeQ(0.1)(leaf, row), upstream, leaf, row)
    assert all(torch.allclose(one, other) for one, other in zip(found, expected, strict=True))


def test_nsvq_has_the_gradient_of_its_surrogate_and_the_error_of_the_code() -> None:
    x, q, upstream, noise = draws()
    leaf, row = x.clone().requires_grad_(), q.clone().requires_grad_()
    out = NSVQ().draw(leaf, row, {"directions": noise})
    direction = noise / noise.norm(dim=-1, keepdim=True)
    assert torch.allclose((out - x).norm(dim=-1), (q - x).norm(dim=-1))
    to_x, to_q = gradients(out, upstream, leaf, row)
    assert torch.allclose(
        to_x, slopes(lambda v: v + (q - v).norm(dim=-1, keepdim=True) * direction, x, upstream), atol=1e-6
    )
    assert torch.allclose(
        to_q, slopes(lambda v: x + (v - x).norm(dim=-1, keepdim=True) * direction, q, upstream), atol=1e-6
    )


@pytest.mark.parametrize("inner", [StraightThrough(), Rotation()])
def test_synchronous_gives_the_code_its_share_and_the_latent_what_it_had(inner: Estimator) -> None:
    x, q, upstream, _ = draws()
    leaf, row = x.clone().requires_grad_(), q.clone().requires_grad_()
    to_x, to_q = gradients(Synchronous(0.3, inner)(leaf, row), upstream, leaf, row)
    (alone,) = gradients(inner(leaf, row), upstream, leaf)
    assert torch.allclose(to_x, alone)
    assert torch.allclose(to_q, 0.3 * upstream)


def test_codebook_only_gives_the_whole_gradient_to_the_code() -> None:
    x, q, upstream, _ = draws()
    leaf, row = x.clone().requires_grad_(), q.clone().requires_grad_()
    to_x, to_q = gradients(CodebookOnly()(leaf, row), upstream, leaf, row)
    assert not to_x.any()
    assert torch.equal(to_q, upstream)


def test_rotation_turns_the_gradient_back_and_scales_it() -> None:
    """The angle between gradient and latent is that between upstream gradient and code."""
    x, q, upstream, _ = draws()
    leaf = x.clone().requires_grad_()
    (found,) = gradients(Rotation()(leaf, q), upstream, leaf)
    cosine = nn.functional.cosine_similarity
    assert torch.allclose(cosine(found, x), cosine(upstream, q))
    assert torch.allclose(found.norm(dim=-1), upstream.norm(dim=-1) * q.norm(dim=-1) / x.norm(dim=-1))


def test_the_raw_latents_gradient_skips_the_normalisation() -> None:
    torch.manual_seed(0)
    table = Table(Trained(20, 4, nn.init.normal_), space="unit")
    z = torch.randn(1, 9, 4, requires_grad=True)
    upstream = torch.randn(1, 9, 4)
    (raw,) = torch.autograd.grad(Quantize(table, estimator=RawLatent())(z).z, z, upstream)
    assert torch.equal(raw, upstream)
    (through,) = torch.autograd.grad(Quantize(table)(z).z, z, upstream)
    assert torch.allclose((through * z).sum(-1), torch.zeros(1, 9), atol=1e-6)  # nothing along the latent
    expected = (upstream - (upstream * z).sum(-1, keepdim=True) * z / z.square().sum(-1, keepdim=True)) / z.norm(
        dim=-1, keepdim=True
    )
    assert torch.allclose(through, expected, atol=1e-5)


def test_the_output_may_be_written_into_without_harming_the_loss() -> None:
    for estimator in (StraightThrough(), Rotation()):
        x, q = torch.randn(2, 4, 3).unbind(0)
        x.requires_grad_()
        out = estimator(x, q)
        loss = (x - q).square().mean()
        (nn.functional.relu(out, inplace=True).sum() + loss).backward()
        assert x.grad is not None


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="variance"):
        DiVeQ(-1.0)
    with pytest.raises(ConfigError, match="share"):
        Synchronous(0.0)
