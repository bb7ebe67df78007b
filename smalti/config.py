"""The base of every configuration: frozen, no unknown fields, wrong values named at once."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from smalti.errors import ConfigError


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
            lines = [
                f"{'.'.join(map(str, issue['loc'])) or type(self).__qualname__}: {issue['msg']}"
                f" (got {issue['input']!r:.80})"
                for issue in error.errors()
            ]
            raise ConfigError(f"{type(self).__qualname__}: " + "; ".join(lines)) from None

    def replace(self, **changes: Any) -> Any:
        """A copy with some fields changed, validated again."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})
