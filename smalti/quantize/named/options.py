"""The options of a builder as a configuration: types and ranges checked, unknown ones named, defaults filled in.

    simvq(dim: Count, codes: Count, *, commitment_weight: Weight = 0.25) ──options_of──► a Config of these

What only training looks at is marked as `Training[...]`, a loss's weight as `Weight`: it stays out of the codes hash.

A builder that passes `**options` to another says to which, so that these are known and checked as well:

    @hands_on(simvq)
    def residual_simvq(dim: Count, codes: Count, *, levels: Count, **options: Any) -> Quantizer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from inspect import Parameter, signature
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, create_model

from smalti.config import Config, Training

__all__ = [
    "Amount", "Count", "Counts", "Decay", "LevelCounts", "Natural", "Number", "Positive", "Share", "Training",
    "Weight", "hands_on", "options_of",
]  # fmt: skip

# Neither True nor "8" is a number here; those of NumPy and of tensors are.
PLAIN = BeforeValidator(lambda value: value.tolist() if hasattr(value, "tolist") else value)
Integer = Annotated[int, Field(strict=True), PLAIN]
Number = Annotated[float, Field(strict=True), PLAIN]

Count = Annotated[Integer, Field(ge=1)]
Natural = Annotated[Integer, Field(ge=0)]
Amount = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Decay = Annotated[Number, Field(ge=0, lt=1)]
Weight = Training[Amount]  # of a term of the loss
Counts = Annotated[Sequence[Count], Field(min_length=1), PLAIN]
LevelCounts = Annotated[Sequence[Annotated[Integer, Field(ge=2)]], Field(min_length=1), PLAIN]

Builder = TypeVar("Builder", bound=Callable[..., Any])


@cache
def options_of(builder: Callable[..., Any], name: str) -> type[Config]:
    """A configuration with the builder's parameters as fields.

    Args:
        builder: its annotations are types, or the ranges above.
        name: of what it builds, for messages.
    """
    fields: dict[str, Any] = {}
    for each in signature(builder, eval_str=True).parameters.values():
        fields[each.name] = each.annotation, ... if each.default is Parameter.empty else each.default
    return create_model(name, __base__=Config, **fields)


def hands_on(inner: Callable[..., Any]) -> Callable[[Builder], Builder]:
    """Says of a builder with `**options` what these are: the keywords of `inner`."""
    handed = [each for each in signature(inner, eval_str=True).parameters.values() if each.kind is each.KEYWORD_ONLY]

    def decorate(builder: Builder) -> Builder:
        own = signature(builder, eval_str=True)
        kept = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        builder.__signature__ = own.replace(parameters=[*kept, *handed])  # type: ignore[attr-defined]
        return builder

    return decorate
