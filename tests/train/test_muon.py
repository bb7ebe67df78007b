"""Muon: orthogonal steps against the decomposition and torch's own; a network's two kinds of parameters."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from smalti.errors import ConfigError
from smalti.train.muon import Muon, orthogonal
from smalti.train.recipe import Optimizer

SHAPES = [(8, 8), (8, 30), (30, 8), (1, 5), (64, 576)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_orthogonal_keeps_the_directions_and_evens_their_lengths(shape: tuple[int, int], scale: float) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    turned = left.T @ orthogonal(matrix).double() @ right.T  # diagonal, if the directions are the same
    lengths = turned.diagonal()
    assert lengths.min() > 0.65 and lengths.max() < 1.25
    assert (turned - lengths.diag()).abs().max() < 1e-4


def test_orthogonal_of_deficient_matrices_is_finite() -> None:
    assert torch.equal(orthogonal(torch.zeros(4, 9)), torch.zeros(4, 9))
    once = torch.outer(torch.arange(1.0, 5), torch.ones(9))
    assert torch.linalg.matrix_norm(orthogonal(once), 2) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_matrices_take_the_steps_of_torch(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    rates = {"lr": 0.1, "weight_decay": 0.2}
    one = Muon([{"params": [ours], "momentum": 0.9, **rates}])
    other = torch.optim.Muon([theirs], momentum=0.9, **rates)
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
    assert torch.allclose(ours, theirs, atol=0.01)  # theirs rounds to bfloat16
    assert (ours - 1).abs().max() > 0.1


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.SiLU(), nn.Conv2d(6, 4, 3)).to(memory_format=torch.channels_last)


def loss(net: nn.Module) -> torch.Tensor:
    return (net(torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))) - 1).square().mean()


def test_the_other_parameters_take_the_steps_of_adamw() -> None:
    plan = Optimizer(rate=1e-2, weight_decay=0.1, rates={"2.bias": 0.5})
    with_muon = plan.replace(muon={"parameters": ["0.weight"], "rate": 0.05})
    ours, theirs = network(), network()
    (one, other) = with_muon.build(ours), plan.build(theirs)
    for net, optimizer in ((ours, one), (theirs, other)):
        loss(net).backward()
        for group in optimizer.param_groups:  # as the loop does it
            group["lr"] = plan.rate * group["factor"]
        optimizer.step()
    before = dict(network().named_parameters())
    others = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, others[name]) is (name != "0.weight")
    step = ours[0].weight - before["0.weight"] * (1 - 0.05 * 0.1)
    lengths = torch.linalg.svdvals(step.detach().flatten(1)) / 0.05
    assert lengths.min() > 0.5 and lengths.max() < 1.25


def test_its_state_goes_into_another_optimizer_and_on() -> None:
    plan = Optimizer(rate=1e-2, muon={"parameters": ["*.weight"]})
    net = network()
    optimizer = plan.build(net)

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            loss(net).backward()
            optimizer.step()

    steps(3)
    weights, state = deepcopy(net.state_dict()), deepcopy(optimizer.state_dict())
    steps(3)
    uninterrupted = [each.clone() for each in net.parameters()]
    net.load_state_dict(weights)
    optimizer = plan.build(net)
    optimizer.load_state_dict(state)
    steps(3)
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), uninterrupted, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"muon": {"parameters": ["*.wait"]}},
            r"muon\.parameters: no parameter matches '\*\.wait'; there are 0\.weight",
        ),
        ({"muon": {"parameters": ["*"]}}, r"muon\.parameters: 0\.bias is no matrix, its shape is \(6,\)"),
        ({"muon": {"parameters": []}}, "parameters"),
        ({"type": "adam", "muon": {"parameters": ["*.weight"]}}, "muon goes with type 'adamw', got 'adam'"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Optimizer(**changes).build(network())  # type: ignore[arg-type]
