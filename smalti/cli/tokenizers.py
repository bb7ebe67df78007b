"""How commands find the tokenizer that a user names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from smalti.errors import ConfigError

if TYPE_CHECKING:
    from smalti.tokenizer import NeuralTokenizer, Tokenizer


def open_tokenizer(name: str, device: str = "cpu") -> tuple[Tokenizer, str]:
    """Loads a tokenizer by name or folder.

    Args:
        name: of a record, or a folder that `save` wrote, or a tokenizer.json.
        device: where its tensors go, if it is a network; others work on the CPU.

    Returns:
        the tokenizer, and what a store notes to find it again (folders as absolute paths).

    Raises:
        ConfigError: if what the name means is no tokenizer, or the device does not exist.
    """
    import torch

    from smalti import systems
    from smalti.tokenizer import NeuralTokenizer, Tokenizer

    found = systems.load(name)
    if not isinstance(found, Tokenizer):
        raise ConfigError(f"{name} is a {type(found).__name__}, not a tokenizer of files")
    if isinstance(found, NeuralTokenizer):
        try:
            found.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device {device!r} can't be used: {str(error).splitlines()[0]}") from None
    elif device != "cpu":
        raise ConfigError(f"{name} works on the CPU, not on {device!r}")
    return found, str(Path(name).resolve()) if Path(name).is_dir() or name.endswith(".json") else name


def open_neural(name: str, device: str = "cpu") -> tuple[NeuralTokenizer, str]:
    """As `open_tokenizer`, for commands that measure what networks lose.

    Raises:
        ConfigError: as `open_tokenizer`; and if the tokenizer is none.
    """
    from smalti.tokenizer import NeuralTokenizer

    found, reference = open_tokenizer(name, device)
    if not isinstance(found, NeuralTokenizer):
        raise ConfigError(f"{name} tokenizes {found.modality} and is no network: `smalti text stats` measures it")
    return found, reference
