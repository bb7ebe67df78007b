"""Everything that Smalti raises on purpose. `except SmaltiError` catches all of it.

Messages say what was given and what is needed, so that the command line can print them as they are.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class SmaltiError(Exception):
    """Base of every error that Smalti raises on purpose."""


class InputError(SmaltiError, ValueError):
    """Data that can't be used: NaN, wrong channels, codes out of range, an unreadable file."""


class NotFiniteError(InputError):
    """Numbers inside a network that are NaN, infinite or too large."""


class ConfigError(SmaltiError, ValueError):
    """A configuration or an option with a value that is not allowed."""


class CheckpointError(SmaltiError):
    """A checkpoint that can't be read safely, or whose keys and shapes do not fit."""


class StoreError(SmaltiError):
    """A token store that is damaged, locked, full or made by another tokenizer."""


class TrainingError(SmaltiError):
    """Training that can't go on: a loss that is no number, codes that moved though they were to be kept."""


class UnavailableError(SmaltiError):
    """Something that exists elsewhere but can't be had here: a planned system, a file behind a network."""


class MissingDependencyError(SmaltiError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional dependency, or says which extra of Smalti brings it.

    Args:
        module: dotted name of the module to import.
        extra: the extra in pyproject.toml that installs it.

    Raises:
        MissingDependencyError: if the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"this needs the module {module!r}, which is not installed: pip install 'smalti[{extra}]'"
        ) from error
