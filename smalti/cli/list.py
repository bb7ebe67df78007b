"""`smalti list`: the table of systems."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from smalti import systems
from smalti.cli.output import console, print_json


def command(
    pattern: Annotated[
        str | None, typer.Argument(help="Shell pattern over names, such as 'simvq*', or the slug of a system.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help=f"Only this kind: {', '.join(systems.KINDS)}.")] = None,
    modality: Annotated[str | None, typer.Option(help=f"Only this modality: {', '.join(systems.MODALITIES)}.")] = None,
    status: Annotated[str | None, typer.Option(help=f"Only this status: {', '.join(systems.STATUSES)}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of records for programs.")] = False,
) -> None:
    """List the systems that Smalti knows, and whether they work yet."""
    records = systems.list_systems(pattern, kind=kind, modality=modality, status=status)
    if as_json:
        print_json([record.to_dict() for record in records])
        return
    table = Table(
        "name", "kind", "modality", "status", "year", "summary", box=None, header_style="bold", pad_edge=False
    )
    for column in table.columns[:-1]:
        column.no_wrap = True
    for record in records:
        colour = "green" if record.status == "works" else "dim"
        table.add_row(
            record.name,
            record.kind,
            ", ".join(record.modality),
            f"[{colour}]{record.status}[/]",
            str(record.year),
            escape(record.summary),
        )
    console().print(table if records else "no system matches")
