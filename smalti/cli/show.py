"""`smalti show NAME`: everything the table says about one system."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from smalti import systems
from smalti.cli.output import console, print_json


def command(
    name: Annotated[str, typer.Argument(help="A name that `smalti list` prints.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the record for programs.")] = False,
) -> None:
    """Show one system: paper, repository, checkpoints, licences, and how to load it."""
    record = systems.find(name)
    if as_json:
        print_json(record.to_dict())
        return
    out = console()
    out.print(f"[bold]{record.name}[/]  {escape(record.title)} ({record.year})")
    out.print(escape(record.summary), end="\n\n")
    facts = Table.grid(padding=(0, 2))
    for label, value in _facts(record):
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
