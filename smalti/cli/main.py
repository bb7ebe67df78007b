"""The command `smalti`: a table of commands, each of which is imported only when it is invoked.

A new command is one line in COMMANDS and one module smalti/cli/NAME.py with a `command`: a function that typer can
read, or a `typer.Typer` where the command has sub-commands. Until then only this module is imported, so that
`smalti --help` answers at once.

Exit codes: 0 all done, 1 some inputs failed, 2 wrong usage or nothing could be done.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from smalti.errors import SmaltiError

COMMANDS = {
    "demo": "Tokenize real photos and speech, decode them, and write a report page.",
    "list": "List the systems that Smalti knows.",
    "show": "Show one system: paper, repository, checkpoints, licences.",
    "encode": "Encode files into a token store.",
    "decode": "Decode a token store back into files.",
    "verify": "Check a token store for damage, or its codes by encoding anew.",
    "convert": "Turn an officially published checkpoint into a Smalti folder.",
    "text": "Train tokenizers of text and executables, count tokens, and see which are used.",
    "train": "Train a tokenizer from a recipe, or go on training one.",
    "bench": "Measure quality, codebook use, bits and speed.",
}


class LazyGroup(TyperGroup):
    """Lists commands by their line in COMMANDS, and imports the one that is invoked."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands.update({name: TyperCommand(name, help=line) for name, line in COMMANDS.items()})

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else load_command(name), rest


def load_command(name: str) -> Any:
    """Imports a command and builds what typer runs."""
    command = importlib.import_module(f"smalti.cli.{name}").command
    if not isinstance(command, typer.Typer):
        function, command = command, typer.Typer(add_completion=False)
        command.command(name, help=COMMANDS[name] if function.__doc__ is None else None)(function)
    return typer.main.get_command(command)


app = typer.Typer(
    cls=LazyGroup,
    help="Smalti turns anything into discrete tokens and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback; users' mistakes never get that far
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import smalti

        typer.echo(f"smalti {smalti.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Smalti turns anything into discrete tokens and back."""


def main() -> None:
    """The entry point: what Smalti refuses is one line on stderr and exit code 2, without a traceback."""
    # Threads that spin while they wait steal the processor from the workers that decode files; torch reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except SmaltiError as error:
        typer.echo(f"smalti: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
