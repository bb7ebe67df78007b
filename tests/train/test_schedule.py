"""Schedules: warm-up, decays, and numbers that move between points."""

from __future__ import annotations

import pytest
from torch import nn

from smalti.errors import ConfigError
from smalti.quantize import create
from smalti.train.schedule import Schedule, apply_schedules, learning_rate_factor


def test_warm_up_is_a_straight_line_to_the_full_rate() -> None:
    factors = [learning_rate_factor(step, 100, 4, "constant", 0.0) for step in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_fvq_s_learning_annealing_has_its_published_values() -> None:
    steps, warmup = 1004, 100

    def factor(step: int) -> float:
        return learning_rate_factor(step, steps, warmup, "linear", 0.01, start=0.005, hold=0.3)

    assert factor(0) == pytest.approx(0.005)
    assert factor(50) == pytest.approx(0.005 + 0.995 / 2)
    held = warmup + int(0.3 * (steps - 1 - warmup))
    assert factor(warmup) == factor(held) == 1.0
    u = (held + 200 - warmup) / (steps - 1 - warmup)
    assert factor(held + 200) == pytest.approx(0.01 + 0.99 * (1 - u) / 0.7)
    assert factor(steps - 1) == pytest.approx(0.01)


@pytest.mark.parametrize(("decay", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_decays_pass_the_middle_and_end_where_they_should(decay: str, middle: float) -> None:
    steps = 101
    values = [learning_rate_factor(step, steps, 0, decay, 0.1) for step in range(steps)]  # type: ignore[arg-type]
    assert values[0] == pytest.approx(1.0)
    assert values[50] == pytest.approx(middle)
    assert values[-1] == pytest.approx(1.0 if decay == "constant" else 0.1)
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("between", "expected"),
    [("linear", [1, 1, 2, 3, 3]), ("step", [1, 1, 1, 3, 3]), ("cosine", [1, 1, 2, 3, 3])],
)
def test_values_at_between_and_beyond_points(between: str, expected: list[float]) -> None:
    schedule = Schedule(target="model.x", points=((10, 1.0), (20, 3.0)), between=between)
    assert [schedule.value(step) for step in (0, 10, 15, 20, 99)] == pytest.approx(expected)


def test_points_out_of_order_and_targets_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="growing steps"):
        Schedule(target="model.x", points=((5, 1.0), (5, 2.0)))
    for target in ("model.missing", "model.0.weight", "model.training"):
        with pytest.raises(ConfigError, match=target):
            apply_schedules([Schedule(target=target, points=((0, 1.0),))], {"model": nn.Sequential(nn.Linear(1, 1))}, 0)


def test_nested_targets_are_set_and_whole_numbers_stay_whole() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.PixelShuffle(2))
    schedules = [
        Schedule(target="model.0.p", points=((0, 0.0), (10, 1.0))),
        Schedule(target="model.1.upscale_factor", points=((0, 1.0), (10, 4.0))),
    ]
    assert apply_schedules(schedules, {"model": model}, 5) == {"model.0.p": 0.5, "model.1.upscale_factor": 2.5}
    assert model[0].p == 0.5
    assert model[1].upscale_factor == 2
    assert isinstance(model[1].upscale_factor, int)


def test_weights_of_a_quantizer_s_terms_can_be_scheduled() -> None:
    model = nn.Module()
    model.quantizer = create("lookup-free", bits=4)
    schedule = Schedule(target="model.quantizer.terms.0.weight", points=((0, 0.3), (10, 0.1)))
    apply_schedules([schedule], {"model": model}, 5)
    assert model.quantizer.terms[0].weight == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="no number of that name"):
        apply_schedules([Schedule(target="model.quantizer.terms.7.weight", points=((0, 1.0),))], {"model": model}, 0)
