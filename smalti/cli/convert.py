"""`smalti convert`: an officially published checkpoint into a Smalti folder."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from smalti import systems
from smalti.cli.output import console, print_json
from smalti.errors import CheckpointError, ConfigError, InputError, SmaltiError

if TYPE_CHECKING:
    from smalti.checkpoint import Official

MAX_CONFIG_BYTES = 2**24


def command(
    file: Annotated[Path, typer.Argument(help="The published file, or a folder that holds one.", metavar="FILE")],
    system: Annotated[
        str, typer.Option("--system", "-s", help="Which system it is of: a name that `smalti list` has.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The Smalti folder to write.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="Its published configuration (yaml or json), if it lies elsewhere.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary for programs.")] = False,
) -> None:
    """Turn an officially published checkpoint into a Smalti folder.

    The file is read as data: nothing that it holds is run. Every tensor of it must be known, and every tensor of ours
    filled; else nothing is written and the message names them.
    """
    from smalti.checkpoint import read_official

    record = systems.find(system)
    entry = systems.entry_class(record)
    if out.exists() and not (out / "config.json").is_file():
        raise InputError(f"{out} exists and is not a saved Smalti folder: give a new path")
    settings = None if config is None else read_config(config)
    official = read_official(file)
    model = build(entry, official, official.config if settings is None else settings, file)
    published = published_as(record, file)
    try:
        model.save(out, licence=None if published is None else published.licence)
    except OSError as error:
        raise InputError(f"{out} can't be written: {error.strerror or error}") from None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    copy = source(official)
    if as_json:
        facts = {"out": str(out), "system": record.name, "kind": record.kind, "source": copy, "parameters": parameters}
        print_json({**facts, "licence": None if published is None else published.licence})
        return
    lines = [f"{record.name}: took {copy}; {parameters / 1e6:.1f} M parameters -> {out}"]
    lines += [f"licence of the weights: {published.licence}"] if published is not None else []
    console().print("\n".join([*lines, "", *next_steps(model, record, out)]), markup=False, soft_wrap=True)


def read_config(path: Path) -> Mapping[str, Any]:
    """A published configuration.

    Raises:
        ConfigError: if it can't be read, or is no mapping.
    """
    import yaml  # type: ignore[import-untyped]  # comes with huggingface_hub

    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path} is larger than any configuration")
        text = path.read_text()
        config = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConfigError(f"{path} can't be read as a configuration: {reason}") from None
    if not isinstance(config, Mapping):
        raise ConfigError(f"{path} holds a {type(config).__name__}, a configuration is a mapping")
    return config


def build(entry: Any, official: Official, config: Mapping[str, Any] | None, file: Path) -> Any:
    """The system from what was read.

    Raises:
        CheckpointError: if it is a checkpoint of something else.
    """
    try:
        return entry.from_official(config, official.state)
    except SmaltiError as error:
        raise CheckpointError(f"{file} does not fit {entry.name}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        # Files of other systems, and configurations of other shapes, break the reading in ways that nobody can list.
        raise CheckpointError(f"{file} does not fit {entry.name}: {type(error).__name__}: {error}") from error


def source(official: Official) -> str:
    """Which copy of the weights was taken, for people."""
    from smalti.checkpoint import LIT_EMA

    # Lightning keeps averages beside the live tensors; every system whose files have them prefers them.
    averaged = any(key.startswith(LIT_EMA) for key in official.state)
    return f"the moving averages ({LIT_EMA}*) in {official.source}" if averaged else official.source


def published_as(record: systems.Record, file: Path) -> systems.Checkpoint | None:
    """The published checkpoint that has this file's name, if exactly one has it."""
    named = [each for each in record.weights if each.file is not None and Path(each.file).name == file.name]
    return named[0] if len(named) == 1 else None


# --- what to do with it ----------------------------------------------------------------------------------------------


class KnownCodes(Protocol):
    """What a module of a system may hold as KNOWN_CODES: codes that one published checkpoint is known to give."""

    checkpoint: str
    description: str
    codes: tuple[int, ...]
    source: str

    def holds(self, tokenizer: Any) -> bool:
        """Whether a tokenizer gives them."""


def next_steps(model: Any, record: systems.Record, out: Path) -> list[str]:
    """Commands to go on with, and the system's check with real weights if it states one."""
    folder = str(out)
    if any(folder in (other.name, other.system) for other in systems.list_systems()):
        folder = f"./{folder}"  # the name would win over the folder
    load = f"smalti.load({json.dumps(folder)})"
    if record.kind != "tokenizer":
        needed = "".join(f", {name}=..." for name, condition in model.conditions.items() if condition.required)
        return ["use it in Python:", f"    {load}.generate(4, seed=0{needed})"]
    lines = [
        "encode files with it:",
        f"    smalti encode FILES -o STORE --tokenizer {quote(folder)}",
        "measure it on files of your own:",
        f"    smalti bench reconstruct --tokenizer {quote(folder)} --data FOLDER",
    ]
    module = type(model).__module__
    known: KnownCodes | None = getattr(importlib.import_module(module), "KNOWN_CODES", None)
    if known is None:
        return lines
    code = f"import smalti; from {module} import KNOWN_CODES; print(KNOWN_CODES.holds({load}))"
    return [
        *lines,
        f"check it, if it is {known.checkpoint}: {known.description} gives {', '.join(map(str, known.codes))}",
        f"(from {known.source}); this prints True:",
        f"    python -c {quote(code)}",
    ]
