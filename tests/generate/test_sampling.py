"""The rules of drawing codes."""

from __future__ import annotations

import pytest
import torch

from smalti.errors import ConfigError, InputError
from smalti.generate.sampling import Sampling, guide, keep_likely, uniform_draws

INF = float("inf")


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.7), (4, 0.8), (1, 0.0)])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_analytic_distribution(top_k: int, top_p: float, temperature: float) -> None:
    logits = torch.tensor([0.3, 1.5, -0.2, 2.0, 0.9, -1.0])
    p = torch.softmax(logits.double() / temperature, 0)
    order = p.argsort(descending=True)[: top_k or None]
    q = p[order] / p[order].sum()
    if top_p > 0:
        reached = int((q.cumsum(0) < top_p - 1e-12).sum()) + 1  # the one that crosses stays
        order = order[:reached]
    expected = torch.zeros_like(p)
    expected[order] = p[order] / p[order].sum()
    rule = Sampling(temperature=temperature, top_k=top_k, top_p=top_p).rules([0])[0]
    n = 100_000
    drawn = rule.draw(logits.expand(n, -1), uniform_draws(n, 1, seed=range(n))[:, 0])
    share = torch.bincount(drawn, minlength=6) / n
    sigma = (expected * (1 - expected) / n).sqrt()
    assert ((share - expected).abs() <= 4 * sigma).all()


def test_top_k_keeps_what_ties_with_the_last() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0]])
    assert keep_likely(logits, top_k=2).tolist() == [[-INF, 3.0, 2.0, 2.0]]
    for off in (0, 4, 9):
        assert torch.equal(keep_likely(logits, top_k=off), logits)


def test_top_p_keeps_the_code_that_crosses() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = {p: torch.isfinite(keep_likely(logits, top_p=p)).sum().item() for p in (0.1, 0.4, 0.6, 0.9, 0.97, 1.0, 0.0)}
    assert kept == {0.1: 1, 0.4: 1, 0.6: 2, 0.9: 3, 0.97: 4, 1.0: 4, 0.0: 4}


def test_top_p_sees_what_top_k_left() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # Among the two most likely, the first has 4/7 > 0.5 of the probability; among all it would have 0.4 < 0.5.
    assert torch.isfinite(keep_likely(logits, top_k=2, top_p=0.5)).sum() == 1


def test_temperature_zero_takes_the_first_of_the_most_likely() -> None:
    rule = Sampling(temperature=0).rules([0])[0]
    assert rule.draw(torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([0.99])).tolist() == [1]


def test_impossible_codes_are_never_drawn() -> None:
    rule = Sampling().rules([0])[0]
    logits = torch.tensor([[-INF, 0.0, -INF, 0.0, -INF]]).expand(4, -1)
    edges = torch.tensor([0.0, 0.5 - 1e-12, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert rule.draw(logits, edges).tolist() == [1, 1, 3, 3]


def test_values_per_step_and_per_slot() -> None:
    slots = [0, 1, 0, 1]
    assert [rule.top_k for rule in Sampling(top_k=(5, 7)).rules(slots)] == [5, 7, 5, 7]
    assert [rule.guidance for rule in Sampling(guidance=(3.0, 2.0, 1.0, 1.0)).rules(slots)] == [3.0, 2.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match="temperature has 3 values"):
        Sampling(temperature=(1.0, 1.0, 1.0)).rules(slots)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 1.5}, {"steps": 0}, {"beams": 3}])
def test_wrong_rules_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_guidance() -> None:
    c, u = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    assert guide(c, u, 1) is c
    assert torch.equal(guide(c, u, 3.0), torch.tensor([2.0, 8.0]))


def test_a_samples_numbers_are_its_seeds_alone() -> None:
    rows = uniform_draws(3, 5, seed=[7, 8, 7])
    assert torch.equal(rows[0], rows[2]) and not torch.equal(rows[0], rows[1])
    assert torch.equal(uniform_draws(1, 5, seed=8)[0], rows[1])
    assert torch.equal(uniform_draws(2, 5, seed=8), rows[1].expand(2, -1))
    assert torch.equal(uniform_draws(2, 5, noise={"uniform": rows[:2]}), rows[:2])
    with pytest.raises(InputError, match="2 seeds for 3 samples"):
        uniform_draws(3, 5, seed=[1, 2])
    with pytest.raises(InputError, match="uniform"):
        uniform_draws(3, 5, noise={"uniform": rows[:2]})
