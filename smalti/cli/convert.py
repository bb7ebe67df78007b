"""`smalti convert`: an officially published checkpoint into a Smalti folder."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
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
    record = systems.find(system)
    entry = systems.entry_class(record)
    if out.exists() and not (out / "config.json").is_file():
        raise InputError(f"{out} exists and is not a saved Smalti folder: give a new path")
    model, copy = read(entry, file, None if config is None else read_config(config))
    published = published_as(record, file)
    try:
        model.save(out, licence=None if published is None else published.licence)
    except OSError as error:
        raise InputError(f"{out} can't be written: {error.strerror or error}") from None
    if as_json:
        facts = {"out": str(out), "system": record.name, "kind": record.kind, "source": copy, **size(model)}
        print_json({**facts, "licence": None if published is None else published.licence})
        return
    ((what, count),) = size(model).items()
    amount = f"{count / 1e6:.1f} M parameters" if what == "parameters" else f"{count} ids"
    lines = [f"{record.name}: took {copy}; {amount} -> {out}"]
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


def read(entry: Any, file: Path, config: Mapping[str, Any] | None) -> tuple[Any, str]:
    """The system of a published file, and what was taken of it.

    Raises:
        CheckpointError: if it is of something else.
        ConfigError: if a configuration is given where files have none.
    """
    if hasattr(entry, "from_files"):  # vocabularies rather than tensors
        if config is not None:
            raise ConfigError(f"files of {entry.name} need no configuration, but --config was given")
        return build(entry, file, lambda: entry.from_files(file)), str(file)
    from smalti.checkpoint import read_official

    official = read_official(file)
    settings = official.config if config is None else config
    return build(entry, file, lambda: entry.from_official(settings, official.state)), source(official)


def size(model: Any) -> dict[str, int]:
    """How large it is: parameters of a network, ids of a vocabulary."""
    if hasattr(model, "parameters"):
        return {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    return {"vocabulary": model.vocab[0]}


def build(entry: Any, file: Path, make: Callable[[], Any]) -> Any:
    """The system from what was read.

    Raises:
        CheckpointError: if it is a checkpoint of something else.
    """
    try:
        return make()
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
    measure = "bench reconstruct --data FOLDER" if hasattr(model, "parameters") else "text stats FOLDER"
    lines = [
        "encode files with it:",
        f"    smalti encode FILES -o STORE --tokenizer {quote(folder)}",
        "measure it on files of your own:",
        f"    smalti {measure} --tokenizer {quote(folder)}",
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
