"""`smalti show NAME`: everything the table says about one system, or a saved folder about itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from smalti import systems
from smalti.cli.output import console, print_json


def command(
    name: Annotated[str, typer.Argument(help="A name that `smalti list` prints, or a saved folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the record for programs.")] = False,
) -> None:
    """Show one system: paper, repository, checkpoints, licences, and how to load it; or what a saved folder holds."""
    if systems.is_folder(name):
        _show_folder(Path(name), as_json)
        return
    record = systems.find(name)
    if as_json:
        print_json(record.to_dict())
        return
    out = console()
    out.print(f"[bold]{record.name}[/]  {escape(record.title)} ({record.year})")
    out.print(escape(record.summary), end="\n\n")
    facts = Table.grid(padding=(0, 2))
    for label, value in (*_facts(record), *_ids_of(record)):
        facts.add_row(f"[bold]{label}[/]", escape(value))
    out.print(facts)
    for checkpoint in record.weights:
        out.print(f"\n[bold]{escape(checkpoint.name)}[/]  {escape(checkpoint.licence)}")
        for line in filter(None, (checkpoint.place, checkpoint.note)):
            out.print("  " + escape(line), soft_wrap=True)


def _facts(record: systems.Record) -> list[tuple[str, str]]:
    repository = f"https://github.com/{record.repository}" if record.repository else "none found"
    weights = f"{len(record.weights)} published, listed below" if record.weights else "none published"
    return [
        ("system", record.system),
        ("kind", record.kind),
        ("modality", ", ".join(record.modality)),
        ("status", record.status),
        ("paper", record.paper),
        ("repository", repository),
        ("code licence", record.code_licence or "no code published"),
        ("weights", "ship with this package" if record.ships else weights),
        ("how sure", record.licence_note),
        ("load", _how_to_load(record)),
    ]


def _how_to_load(record: systems.Record) -> str:
    if record.status != "works":
        return "planned: it does not work yet"
    if record.ships or (record.weights and record.weights[0].hub):
        return f"smalti.load({record.name!r})"
    if record.weights:
        return f"smalti.load({record.name!r}, checkpoint=FILE), after downloading one of those below"
    return f"smalti.create({record.name!r}), random weights"


def _ids_of(record: systems.Record) -> Iterator[tuple[str, str]]:
    """What only a tokenizer itself can say, where making one is cheap: those of bytes have no network."""
    if record.kind == "tokenizer" and record.status == "works" and {"text", "executable"} & set(record.modality):
        tokenizer = systems.load(record.name) if record.ships else systems.create(record.name)
        yield from _lines(_ids(tokenizer))


def _ids(tokenizer: Any) -> dict[str, Any]:
    """Of a tokenizer of bytes: how many ids it has, and whether every byte comes back."""
    from smalti.text.base import TextTokenizer

    if not isinstance(tokenizer, TextTokenizer):
        return {}
    return {"vocabulary": tokenizer.vocab[0], "lossless": tokenizer.lossless}


def _lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if name == "vocabulary":
            yield name, f"{value} ids"
        elif name == "lossless":
            yield name, "yes: every byte comes back" if value else "no: its class says what is lost"
        elif name == "config":
            yield from ((f"config.{field}", str(choice)) for field, choice in value.items())
        else:
            yield name.replace("_", " "), "not stated" if value is None else str(value)


def _show_folder(folder: Path, as_json: bool) -> None:
    from smalti.folder import read_header

    header, found = read_header(folder), systems.load(folder)
    facts = {
        "name": header["name"],
        "kind": header["kind"],
        "modality": getattr(found, "modality", None),
        **_ids(found),
        **{name: value for name, value in header.items() if name not in ("name", "kind", "config")},
        "config": header["config"],
    }
    if as_json:
        print_json(facts)
        return
    table = Table.grid(padding=(0, 2))
    for label, value in _lines(facts):
        table.add_row(f"[bold]{escape(label)}[/]", escape(value))
    console().print(table)
