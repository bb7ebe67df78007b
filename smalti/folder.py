"""The folder that a tokenizer or a generator is saved as, and the only code that reads or writes it.

    config.json         format, kind, name, config, codes_hash, licence, extra facts
    model.safetensors   the tensors (EMA weights where there are any); float16 ones are read as float32
    ...                 further files, where a system has any (tokenizer.json)

Folders appear under their final name in one rename, so a reader never meets half of one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from smalti.errors import CheckpointError, InputError

FORMAT = 1
CONFIG_FILE, MODEL_FILE = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Saved:
    """A folder's content: its config.json and its tensors as float32."""

    header: Mapping[str, Any]
    state: dict[str, Tensor]


def write_folder(
    folder: str | Path,
    *,
    kind: str,
    name: str,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    facts: Mapping[str, Any] | None = None,
    assets: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes a folder atomically.

    Args:
        folder: where; it must not exist, or must be an earlier folder of this kind, which is replaced.
        kind: "tokenizer", "generator" ...
        name: the record's name in `smalti.systems`.
        config: what `Config(**config)` rebuilds.
        state: tensors by name.
        facts: further entries of config.json (codes_hash, licence ...).
        assets: further files by name.

    Raises:
        InputError: if something else lies at that path.
    """
    target = Path(folder)
    if target.exists() and not (target / CONFIG_FILE).is_file():
        raise InputError(f"{target} exists and is not a saved Smalti folder: give a new path")
    target.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "kind": kind, "name": name, "config": dict(config), **(facts or {})}
    staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
        save_file(tensors, staged / MODEL_FILE)
        (staged / CONFIG_FILE).write_text(json.dumps(header, indent=2) + "\n")
        for asset, data in (assets or {}).items():
            (staged / asset).write_bytes(data)
        (staged / MODEL_FILE).chmod(0o644)  # made private by the libraries that make temporary folders and files
        staged.chmod(0o755)
        if target.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.replace(target, replaced / "folder")
            os.replace(staged, target)
            shutil.rmtree(replaced)
        else:
            os.replace(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def read_header(folder: str | Path) -> dict[str, Any]:
    """config.json of a saved folder.

    Raises:
        CheckpointError: if it is missing, damaged, or of a newer format.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        header = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a saved Smalti folder: it has no {CONFIG_FILE}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None
    if not isinstance(header, dict) or not {"format", "kind", "name", "config"} <= header.keys():
        raise CheckpointError(f"{path} lacks some of format, kind, name, config: not a saved Smalti folder")
    if not isinstance(header["format"], int) or header["format"] > FORMAT:
        raise CheckpointError(f"{path} has format {header['format']!r}; this Smalti reads up to {FORMAT}: update it")
    if not isinstance(header["config"], dict):
        raise CheckpointError(f"{path}: config must be an object")
    return header


def read_folder(folder: str | Path, kind: str, name: str) -> Saved:
    """Reads a folder of the given kind and system.

    Raises:
        CheckpointError: if it is damaged, newer, or of another kind or system.
    """
    header = read_header(folder)
    if (header["kind"], header["name"]) != (kind, name):
        raise CheckpointError(f"{folder} holds the {header['kind']} {header['name']!r}, not the {kind} {name!r}")
    path = Path(folder) / MODEL_FILE
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None
    return Saved(header, {key: as_float32(tensor) for key, tensor in state.items()})


def as_float32(tensor: Tensor) -> Tensor:
    """Floating tensors as float32, others as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def fill(
    module: nn.Module, state: Mapping[str, Tensor], what: str, official_names: Mapping[str, str] | None = None
) -> None:
    """Loads a state dict strictly.

    Args:
        module: what is filled.
        state: a tensor for every parameter and persistent buffer, under the module's own names.
        what: what the state is, for messages.
        official_names: the names that the module's tensors have in the published file, for messages.

    Raises:
        CheckpointError: naming every tensor that is missing, unknown or of another shape.
    """
    own, names = module.state_dict(), official_names or {}
    missing = sorted(names.get(key, key) for key in own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{names.get(key, key)}: {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    problems = [
        f"{label}: {', '.join(keys[:8])}{f' and {len(keys) - 8} more' if len(keys) > 8 else ''}"
        for label, keys in (("missing", missing), ("unknown", unknown), ("wrong shape", shapes))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{what} does not fit: " + "; ".join(problems))
    with torch.no_grad():
        module.load_state_dict({key: state[key].to(own[key].dtype) for key in own})
