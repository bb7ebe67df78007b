"""Choice: a quantizer by name as a field of a configuration, so that recipes can exchange it."""

from __future__ import annotations

from pydantic import ConfigDict

from smalti.config import Config
from smalti.quantize.base import Quantizer
from smalti.quantize.named import create


class Choice(Config):
    """`type` is a name that `create` knows, every other field an option of that quantizer.

    In a recipe:

        [model.config.quantizer]
        type = "residual-simvq"
        dim = 16
        codes = 256
        levels = 2
    """

    model_config = ConfigDict(extra="allow")

    type: str

    def build(self) -> Quantizer:
        """The quantizer.

        Raises:
            ConfigError: if there is no such name, or an option does not fit.
        """
        return create(self.type, **(self.model_extra or {}))
