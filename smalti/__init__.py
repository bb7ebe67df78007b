"""Smalti turns anything into discrete tokens and back.

    import smalti

    tokenizer = smalti.load("smalti-photo-f8")      # ships with the package; published ones come from the hub
    tokens = tokenizer.encode(images)               # (B, 3, H, W) in [0, 1]  ->  Tokens
    images = tokenizer.decode(tokens)

Names are imported when they are first used, so `import smalti` costs nothing beside what is used of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smalti import systems
    from smalti.systems import create, load
    from smalti.tokenizer import Tokenizer
    from smalti.tokens import Latents, Tokens

    __version__: str

__all__ = ["Latents", "Tokenizer", "Tokens", "__version__", "create", "load", "systems"]

_HOMES = {
    "create": "smalti.systems",
    "load": "smalti.systems",
    "Tokenizer": "smalti.tokenizer",
    "Latents": "smalti.tokens",
    "Tokens": "smalti.tokens",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name == "systems":
        value = importlib.import_module("smalti.systems")
    elif name == "__version__":
        from importlib.metadata import version  # its import is a third of what the whole package costs

        value = version("smalti")
    else:
        raise AttributeError(f"module 'smalti' has no attribute {name!r}")
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
