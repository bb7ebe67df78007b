"""Muon: orthogonal steps against the decomposition and torch's own; a network's two kinds of parameters."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from smalti.errors import ConfigError
from smalti.train.distributed import full_optimizer_state, load_full_optimizer_state
from smalti.train.muon import Muon, orthogonal
from smalti.train.recipe import Matrices, Optimizer

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


def test_matrices_take_the_steps_that_the_rule_says() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 20, generator=generator) for _ in range(2))
    ours = nn.Parameter(torch.ones(6, 20))
    optimizer = Muon([{"params": [ours], "momentum": 0.9, "lr": 0.1, "weight_decay": 0.2}])
    expected, mean = torch.ones(6, 20), torch.zeros(6, 20)
    for gradient in (first, second):
        ours.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        direction = orthogonal(0.1 * gradient + 0.9 * mean)  # Nesterov's
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * direction
    assert torch.allclose(ours, expected, atol=1e-5)
    before = ours.detach().clone()
    optimizer.step()  # no gradient, no step
    assert torch.equal(ours, before)


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
        optimizer.step()
    before = dict(network().named_parameters())
    others = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, others[name]) is (name != "0.weight")
    step = ours[0].weight - before["0.weight"] * (1 - 0.05 * 0.1)
    lengths = torch.linalg.svdvals(step.detach().flatten(1)) / 0.05
    assert lengths.min() > 0.5 and lengths.max() < 1.25


MATRICES = Optimizer(rate=1e-2, muon=Matrices(parameters=("*.weight",), rate=0.02))


def test_its_state_goes_into_another_optimizer_and_on() -> None:
    net = network()
    optimizer = MATRICES.build(net)

    def steps(count: int) -> None:
        for _ in range(count):
            loss(net).backward()
            optimizer.step()
            optimizer.zero_grad()

    steps(3)
    weights, state = deepcopy(net.state_dict()), full_optimizer_state(optimizer)
    steps(3)
    uninterrupted = [each.clone() for each in net.parameters()]
    net.load_state_dict(weights)
    optimizer = MATRICES.build(net)
    load_full_optimizer_state(optimizer, state)
    steps(3)
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), uninterrupted, strict=True))


def test_a_closure_is_called_once_before_any_step() -> None:
    nets = network(), network()
    optimizers = [MATRICES.build(net) for net in nets]
    calls = []

    def closure() -> float:
        optimizers[0].zero_grad()
        value = loss(nets[0])
        value.backward()
        calls.append(value.item())
        return calls[-1]

    for step in range(2):
        assert optimizers[0].step(closure) == calls[step]
        optimizers[1].zero_grad()
        loss(nets[1]).backward()
        optimizers[1].step()
    assert len(calls) == 2
    assert all(torch.equal(one, other) for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


@pytest.mark.parametrize("back", [False, True])
def test_another_rule_for_the_same_parameters_is_no_resumption(back: bool) -> None:
    # AdamW with decay_vectors off groups the same parameters as Muon does here.
    plans = [Optimizer(rate=1e-2, weight_decay=0.1, decay_vectors=False), MATRICES]
    before, after = plans[::-1] if back else plans
    net = network()
    optimizer = before.build(net)
    loss(net).backward()
    optimizer.step()
    with pytest.raises(ConfigError, match=r"grouped otherwise \(rates, muon"):
        load_full_optimizer_state(after.build(net), full_optimizer_state(optimizer))


def test_groups_that_say_nothing_learn_by_adamw() -> None:
    ours, theirs = network(), network()
    one, other = Muon([{"params": list(ours.parameters())}]), torch.optim.AdamW(theirs.parameters())
    for net, optimizer in ((ours, one), (theirs, other)):
        loss(net).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    with pytest.raises(ConfigError, match=r"got parameters of shape \(6,\)"):
        Muon([{"params": list(ours.parameters()), "momentum": 0.9}])


def test_matrices_that_are_all_frozen_are_refused() -> None:
    net = network()
    net[0].weight.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"all that match 0\.weight are frozen"):
        Optimizer(muon=Matrices(parameters=("0.weight",))).build(net)


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
