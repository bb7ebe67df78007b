"""What the checks share: saying what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

import smalti.config
from smalti.errors import ConfigError, SmaltiError

UNKNOWN_FIELD: dict[str, Any] = {"no_such_field": 1}


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def expect_error(action: Callable[[], object], what: str, kind: type[Exception] = SmaltiError) -> None:
    try:
        action()
    except kind as error:
        expect(len(str(error)) > 10, f"the error for {what} says nothing: {error!r}")
        return
    except Exception as error:
        raise AssertionError(f"{what} must be refused with {kind.__name__}, came {error!r}") from error
    raise AssertionError(f"{what} must be refused with {kind.__name__}, but was taken")


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.float(), other.float(), rtol=1e-5, atol=1e-6)


@contextmanager
def unchanged(module: torch.nn.Module, what: str) -> Iterator[None]:
    """Fails if the module's state changes inside."""
    before = {key: value.clone() for key, value in module.state_dict().items()}
    yield
    for key, value in module.state_dict().items():
        expect(torch.equal(value, before[key]), f"{what} changes the state {key}")


def switched(config: smalti.config.Config) -> Iterator[tuple[str, Any]]:
    """(dotted name, config) with one switch turned: a flag, or another choice of a field that names its choices."""
    for name, about in type(config).model_fields.items():
        value = getattr(config, name)
        others: Iterable[tuple[str, Any]] = ()
        if isinstance(value, smalti.config.Config):
            others = ((f"{name}.{path}", changed) for path, changed in switched(value))
        elif isinstance(value, bool):
            others = [(name, not value)]
        elif get_origin(about.annotation) is Literal:
            others = [(name, other) for other in get_args(about.annotation) if other != value]
        for path, changed in others:
            try:
                yield path, config.replace(**{name: changed})
            except ConfigError:
                continue
