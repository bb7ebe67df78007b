"""Schedules: how learning rates and named attributes move with the step. Pure functions, so resuming needs no state."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from smalti.config import Config, named
from smalti.errors import ConfigError

Decay = Literal["constant", "cosine", "linear"]


def learning_rate_factor(
    step: int, steps: int, warmup: int, decay: Decay, final: float, *, start: float | None = None, hold: float = 0.0
) -> float:
    """Linear warm-up, the full rate for a while, then decay to `final` at the last step.

    FVQ's learning annealing is start=0.005, hold=0.3, decay="linear", final=0.01 ("Scalable Training for
    Vector-Quantized Networks with 100% Codebook Utilization").

    Args:
        step: optimizer steps done, 0 .. steps - 1.
        steps: of the stage.
        warmup: steps of the warm-up.
        decay: the shape of what follows it.
        final: the factor that a decay ends at.
        start: the factor of step 0, from where the factor reaches 1 at step `warmup`; None for (step + 1) / warmup.
        hold: share of the steps behind the warm-up that keep the full rate.
    """
    if step < warmup:
        return (step + 1) / warmup if start is None else start + (1 - start) * step / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    if decay == "constant" or progress < hold:
        return 1.0
    progress = (progress - hold) / (1 - hold)
    remaining = (1 + math.cos(math.pi * progress)) / 2 if decay == "cosine" else 1 - progress
    return final + (1 - final) * remaining


class Schedule(Config):
    """A number of the model or the objective that changes during a stage.

    Args:
        target: dotted path below "model" or "objective", such as "model.quantizer.assign.temperature" or
            "model.quantizer.terms.0.weight".
        points: (step, value) in order of steps; before the first and after the last the value stays.
        between: how values pass from point to point.
    """

    target: str = Field(pattern=r"^(model|objective)(\.\w+)+$")
    points: tuple[tuple[int, float], ...] = Field(min_length=1)
    between: Literal["linear", "cosine", "step"] = "linear"

    @model_validator(mode="after")
    def _ordered(self) -> Schedule:
        steps = [step for step, _ in self.points]
        if steps != sorted(set(steps)) or steps[0] < 0:
            raise ValueError(f"points must have growing steps from 0 on, got {steps}")
        return self

    def value(self, step: int) -> float:
        """The number at a step."""
        after = bisect_right([each for each, _ in self.points], step)
        if after == 0 or after == len(self.points) or self.between == "step":
            return self.points[max(0, after - 1)][1]
        (left, low), (right, high) = self.points[after - 1 : after + 1]
        progress = (step - left) / (right - left)
        if self.between == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return low + (high - low) * progress


def apply_schedules(schedules: Sequence[Schedule], roots: Mapping[str, nn.Module], step: int) -> dict[str, float]:
    """Sets every target for this step; a stage's own step, so that resuming needs no state.

    Args:
        schedules: of the stage.
        roots: "model" and "objective".
        step: optimizer steps of the stage so far.

    Returns:
        target -> value, for the log.

    Raises:
        ConfigError: if a target does not exist or is no number.
    """
    values = {}
    for schedule in schedules:
        owner, name, present = _found(schedule.target, roots)
        values[schedule.target] = value = schedule.value(step)
        _set(owner, name, round(value) if isinstance(present, int) else value, schedule.target)
    return values


def check_schedules(schedules: Sequence[Schedule], roots: Mapping[str, nn.Module]) -> None:
    """Refuses targets that don't exist, are no numbers, or can't be set; nothing changes.

    Raises:
        ConfigError: naming the target.
    """
    for index, schedule in enumerate(schedules):
        with named(f"schedules.{index}.target"):
            owner, name, present = _found(schedule.target, roots)
            _set(owner, name, present, schedule.target)


def _found(target: str, roots: Mapping[str, nn.Module]) -> tuple[object, str, float]:
    root, *path, name = target.split(".")
    owner: object = roots[root]
    for part in path:
        listed = isinstance(owner, tuple | list) and part.isdigit() and int(part) < len(owner)
        owner = owner[int(part)] if listed else getattr(owner, part, None)  # type: ignore[index]
    present = getattr(owner, name, None)
    if isinstance(present, bool) or not isinstance(present, int | float):
        raise ConfigError(f"there is no number of that name: {target!r}")
    return owner, name, present


def _set(owner: object, name: str, value: float, target: str) -> None:
    try:
        setattr(owner, name, value)
    except AttributeError:
        raise ConfigError(f"{target!r} can't be set: {type(owner).__name__} is frozen") from None
