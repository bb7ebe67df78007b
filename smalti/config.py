"""The base of every configuration: frozen, no unknown fields, wrong values named at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from smalti.errors import CheckpointError, ConfigError, InputError, UnavailableError

T = TypeVar("T")


class OfTraining:
    """Marks fields that shape training and decide no code."""


Training = Annotated[T, OfTraining()]  # of a field's type: decay: Training[float]


class FieldError(ConfigError):
    """Fields with values that are not allowed.

    Args:
        name: of the configuration, or "" where the paths say enough.
        issues: (dotted path, what is wrong).
    """

    def __init__(self, name: str, issues: list[tuple[str, str]]) -> None:
        said = "; ".join(f"{path}: {problem}" if path else problem for path, problem in issues)
        super().__init__(f"{name}: {said}" if name else said)
        self.issues = issues


class Config(BaseModel):
    """A frozen record of numbers and choices; it sits with the class that it builds.

    Raises:
        ConfigError: for an unknown field, a missing one, or a value out of range; the message names all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            found = error.errors()
            places = [issue["loc"] for issue in found]
            issues = [
                each
                for issue in found
                # Entries that are wrong are missing too; saying so as well helps nobody.
                if not (issue["type"] == "too_short" and any(issue["loc"] == place[:-1] for place in places))
                for each in _issues(issue, type(self), data)
            ]
            raise FieldError(type(self).__qualname__, issues) from None

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, data: Any) -> Any:
        """True is no number, and neither is "8"; pydantic would take both."""
        if isinstance(data, Mapping):
            wrong = [
                (name, f"Input should be a number (got {value!r:.80})")
                for name, value in data.items()
                if isinstance(value, bool | str) and name in cls.model_fields
                and _only_numbers(cls.model_fields[name].annotation)
            ]  # fmt: skip
            if wrong:
                raise FieldError(cls.__qualname__, wrong)
        return data

    def of_training(self) -> Iterator[str]:
        """Dotted names of the fields that are marked as `Training`, here and in nested configurations."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if any(isinstance(mark, OfTraining) for mark in field.metadata):
                yield name
            elif isinstance(value, Config):
                yield from (f"{name}.{below}" for below in value.of_training())

    def replace(self, **changes: Any) -> Any:
        """A copy with some fields changed, validated again."""
        return type(self)(**{**dict(self), **changes})


@contextmanager
def named(path: str) -> Iterator[None]:
    """Inside, what an error says belongs to the field at this dotted path: the message begins with it."""
    try:
        yield
    except FieldError as error:
        raise FieldError("", [(_joined(path, below), problem) for below, problem in error.issues]) from None
    except ConfigError as error:
        raise FieldError("", [(path, str(error))]) from None
    except (InputError, CheckpointError, UnavailableError) as error:
        raise type(error)(f"{path}: {error}") from None


def _only_numbers(annotation: Any) -> bool:
    """Whether a field takes numbers, or None, and nothing else."""
    if get_origin(annotation) is Annotated:
        return _only_numbers(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return all(each is type(None) or _only_numbers(each) for each in get_args(annotation))
    return annotation in (int, float)


def _joined(*paths: str) -> str:
    return ".".join(path for path in paths if path)


def _issues(issue: Mapping[str, Any], model: type[Config], data: Any) -> Iterator[tuple[str, str]]:
    """What pydantic found, with the fields of nested configurations under one path."""
    path = _path(issue["loc"], data)
    inner = issue.get("ctx", {}).get("error")
    if isinstance(inner, FieldError):  # a nested configuration that has spoken for itself
        for below, problem in inner.issues:
            yield _joined(path, below), problem
    elif isinstance(inner, ConfigError):  # which says what was given
        yield path, str(inner)
    elif issue["type"] == "extra_forbidden" and len(issue["loc"]) == 1:
        yield path, f"there is no such field; there are {', '.join(sorted(model.model_fields))}"
    else:
        yield path, f"{issue['msg'].removeprefix('Value error, ')} (got {issue['input']!r:.80})"


def _path(places: Sequence[int | str], data: Any) -> str:
    """The dotted path as one writes it in the configuration: without the tags that pydantic puts in for `type`."""
    names = []
    for place in places:
        if isinstance(data, Mapping) and place not in data and data.get("type") == place:
            continue
        names.append(str(place))
        inside = isinstance(data, Mapping) and place in data
        listed = isinstance(data, Sequence) and isinstance(place, int) and place < len(data)
        data = data[place] if inside or listed else None
    return ".".join(names)
