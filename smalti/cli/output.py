"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console

PIPED_WIDTH = 160  # rich would cut tables at 80 columns where there is no terminal to ask


def console() -> Console:
    """A console on stdout, wide enough for tables where stdout is a pipe or a file."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


def print_json(data: Any) -> None:
    """Prints indented JSON."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
