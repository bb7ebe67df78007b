"""Choice: a quantizer by name as a field of a configuration, so that recipes can exchange it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Self

import torch
from pydantic import ConfigDict, PrivateAttr, model_validator

from smalti.config import Config
from smalti.errors import ConfigError
from smalti.quantize.base import Quantizer
from smalti.quantize.multiscale import MultiScale
from smalti.quantize.named import checked_options, create, own_name


class Choice(Config):
    """`type` is a name that `create` knows, every other field an option of that quantizer.

    What is left out has the builder's default, which is kept as if it had been given: saved configurations say all of
    it. Quantizers whose codes lie on other positions than the latents are refused.

    In a recipe:

        [model.config.quantizer]
        type = "residual-simvq"
        dim = 16
        codes = 256
        levels = 2
    """

    model_config = ConfigDict(extra="allow")

    type: str
    _latent_dim: int = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        if not (isinstance(data, Mapping) and isinstance(data.get("type"), str)):
            return data  # which says what is wrong by itself
        options = checked_options(data["type"], {name: value for name, value in data.items() if name != "type"})
        # Lists, as files have them, are the same as tuples.
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in options}
        return {"type": own_name(data["type"]), **plain}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._latent_dim = _latent_dim(self.type, tuple((self.model_extra or {}).items()))
        return self

    @property
    def latent_dim(self) -> int:
        """Dimension of the latents that it quantizes."""
        return self._latent_dim

    def build(self) -> Quantizer:
        """The quantizer, with random weights."""
        return create(self.type, **(self.model_extra or {}))

    def of_training(self) -> Iterator[str]:
        """Those options that the builder marks so."""
        return checked_options(self.type, self.model_extra or {}).of_training()


@lru_cache(maxsize=256)  # a configuration is checked whenever it is copied, and some codebooks take a second to build
def _latent_dim(name: str, options: tuple[tuple[str, Any], ...]) -> int:
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        quantizer = create(name, **dict(options))
    if isinstance(quantizer, MultiScale):
        raise ConfigError(
            f"the codes of {name} lie on positions of their own, not on those of the latents: take one with a code "
            "for every position, such as residual"
        )
    return quantizer.dim
