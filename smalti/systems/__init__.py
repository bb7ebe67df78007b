"""The table of published systems: what exists, where its checkpoints are, and how to get one.

    list_systems("simvq*") ──► records            create(name) ──► published preset, random weights
    find("wavtokenizer")   ──► one record         load(name)   ──► trained: shipped, downloaded, or from a local file
                                                  load(folder) ──► what `save` wrote

Nothing here imports torch, and a system's module is imported only when `create` or `load` is asked for it.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from smalti.errors import CheckpointError, ConfigError, InputError, UnavailableError
from smalti.systems.record import (
    KINDS,
    MODALITIES,
    NONE_PUBLISHED,
    STATUSES,
    UNKNOWN,
    Checkpoint,
    Kind,
    Modality,
    Record,
    Status,
)
from smalti.systems.table import RECORDS

__all__ = [
    "KINDS",
    "MODALITIES",
    "NONE_PUBLISHED",
    "STATUSES",
    "UNKNOWN",
    "Checkpoint",
    "Kind",
    "Modality",
    "Record",
    "Status",
    "configuration",
    "create",
    "entry_class",
    "find",
    "is_folder",
    "list_systems",
    "load",
    "load_official",
]

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"  # a folder per tokenizer that ships


def list_systems(
    pattern: str | None = None,
    *,
    kind: str | None = None,
    modality: str | None = None,
    status: str | None = None,
) -> list[Record]:
    """Records by name, filtered.

    Args:
        pattern: a shell pattern over names, such as "simvq*"; a slug also gives its entries ("vqgan" and "vqgan/...").
        kind, modality, status: keep records of this kind, with this modality, of this status.

    Raises:
        ConfigError: for a kind, modality or status that does not exist.
    """
    _check_choice("kind", kind, KINDS)
    _check_choice("modality", modality, MODALITIES)
    _check_choice("status", status, STATUSES)
    return [
        record
        for record in sorted(RECORDS, key=lambda record: record.name)
        if (pattern is None or fnmatchcase(record.name, pattern) or record.system == pattern)
        and (kind is None or record.kind == kind)
        and (modality is None or modality in record.modality)
        and (status is None or record.status == status)
    ]


def find(name: str) -> Record:
    """The record of that name.

    Raises:
        InputError: if there is none; the message names what was probably meant, or the entries to choose from.
    """
    records = {record.name: record for record in RECORDS}
    if name in records:
        return records[name]
    entries = sorted(key for key, record in records.items() if record.system == name)
    if entries:
        raise InputError(f"{name!r} has several entries: choose {' or '.join(entries)}")
    close = get_close_matches(name.lower().replace("_", "-"), records, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "`smalti list` prints all names"
    raise InputError(f"no system is called {name!r}: {hint}")


def create(name: str, preset: str | None = None, **overrides: Any) -> Any:
    """A system with random weights.

    Args:
        name: of a record.
        preset: one of the entry's published configurations; by default the one of the record's own name, else the
            configuration's defaults.
        **overrides: fields of the configuration to change.

    Raises:
        UnavailableError: if the system is only planned.
        ConfigError: if the preset does not exist, or an override is not legal.
    """
    return configuration(name, preset).replace(**overrides).build()


def configuration(name: str, preset: str | None = None) -> Any:
    """The configuration that `create` starts from.

    Raises:
        UnavailableError, ConfigError: as `create`.
    """
    entry = entry_class(find(name))
    if preset is None and name not in entry.presets:
        return entry.Config()
    if preset is not None and preset not in entry.presets:
        raise ConfigError(f"{name} has no preset {preset!r}: choose one of {sorted(entry.presets)}")
    return entry.presets[preset or name]


def load(name_or_folder: str | Path, *, checkpoint: str | Path | None = None) -> Any:
    """A trained system, ready to use.

    Args:
        name_or_folder: a record's name, or a folder that `save` wrote, or a tokenizer.json. A name wins over a folder
            of the same name; write "./name" for the folder.
        checkpoint: which published checkpoint (a name that `smalti show` prints), or the path of an official file
            that is already here. By default the one that ships, else the first one published.

    Raises:
        InputError: if there is no such name, folder or checkpoint.
        UnavailableError: if the system is only planned, or its checkpoint can't be fetched from here.
        CheckpointError: if the file or folder is damaged, or does not fit.
    """
    if _is_name(name_or_folder):
        record = find(str(name_or_folder))
    elif is_folder(name_or_folder):
        return _load_folder(Path(name_or_folder))
    elif os.path.isfile(name_or_folder) and os.fspath(name_or_folder).endswith(".json"):
        return load_official(_kind_of_json(Path(name_or_folder)), name_or_folder)
    elif os.path.exists(name_or_folder):
        raise InputError(
            f"{str(name_or_folder)!r} is not a saved Smalti folder. An official file needs its system's name: "
            f"load(NAME, checkpoint={str(name_or_folder)!r})"
        )
    else:
        record = _find_or_say(str(name_or_folder))
    entry_class(record)  # a planned system is refused before anything is fetched
    if checkpoint is not None and os.path.exists(checkpoint):
        return load_official(record.name, checkpoint)
    if record.ships and checkpoint is None:
        return _load_shipped(record)
    from smalti.systems.hub import fetch

    published = _choose(record, checkpoint)
    return load_official(record.name, fetch(published, record.name), published.config)


def is_folder(name_or_folder: str | Path) -> bool:
    """Whether `load` would take this for a saved folder."""
    return not _is_name(name_or_folder) and os.path.isfile(os.path.join(name_or_folder, "config.json"))


def load_official(name: str, path: str | Path, config: Mapping[str, Any] | None = None) -> Any:
    """Reads an officially published checkpoint into a system; the log says which copy of the weights was taken.

    Args:
        name: of a record.
        path: a safetensors file, a pickle that can be read without running anything, or a folder that holds one. An
            entry whose files are of other kinds (vocabularies) reads them itself, in `from_files`.
        config: the published configuration; by default the config.json beside the file, if there is one, else sizes
            are read off the tensors.

    Raises:
        CheckpointError: if it can't be read safely, or its keys and shapes do not fit.
    """
    from smalti.checkpoint import read_official

    entry = entry_class(find(name))
    if hasattr(entry, "from_files"):
        return entry.from_files(path)
    official = read_official(path)
    logging.getLogger("smalti").info("%s: %s", name, official.source)
    return entry.from_official(official.config if config is None else config, official.state)


def entry_class(record: Record) -> Any:
    """Imports the class of a record.

    Raises:
        UnavailableError: if the system is only planned.
    """
    if record.status != "works" or record.entry is None:
        raise UnavailableError(
            f"{record.name} is planned and does not work yet: `smalti list --status works` prints what does"
        )
    module, _, name = record.entry.partition(":")
    return getattr(importlib.import_module(module), name)


def _kind_of_json(path: Path) -> str:
    """The record that reads a tokenizer.json: one of bytes that are written as characters needs bytes given so."""
    from smalti.text.binary_bpe import is_of_bytes

    return "binary-bpe" if is_of_bytes(path.read_bytes()) else "tokenizer-json"


# --- where things are ------------------------------------------------------------------------------------------------


def _check_choice(field: str, value: str | None, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        raise ConfigError(f"{field} must be one of {', '.join(allowed)}; got {value!r}")


def _is_name(name_or_folder: str | Path) -> bool:
    return isinstance(name_or_folder, str) and any(name_or_folder in (record.name, record.system) for record in RECORDS)


def _find_or_say(name: str) -> Record:
    try:
        return find(name)
    except InputError as error:
        raise InputError(f"{error}; nor is there such a folder") from None


def _load_folder(folder: Path) -> Any:
    from smalti.folder import read_header

    name = read_header(folder)["name"]
    for record in RECORDS:
        if name == (record.saved_as or record.name):
            return entry_class(record).load(folder)
    raise CheckpointError(f"{folder} holds a {name!r}, which this Smalti does not know: load it by its own class")


def _load_shipped(record: Record) -> Any:
    folder = WEIGHTS / record.name
    if not folder.is_dir():
        raise UnavailableError(f"the weights of {record.name} are missing in this installation ({folder})")
    return entry_class(record).load(folder)


def _choose(record: Record, checkpoint: str | Path | None) -> Checkpoint:
    if not record.weights:
        raise UnavailableError(
            f"no checkpoints of {record.name} were published; create({record.name!r}) gives random weights"
        )
    if checkpoint is None:
        return record.weights[0]
    names = {published.name: published for published in record.weights}
    if str(checkpoint) not in names:
        raise InputError(
            f"{str(checkpoint)!r} is neither a file nor a checkpoint of {record.name}; published are {', '.join(names)}"
        )
    return names[str(checkpoint)]
