"""`smalti decode`: a token store back into files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from smalti.cli.output import console, print_json


def command(
    store: Annotated[Path, typer.Argument(help="The store's folder.", metavar="STORE")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the files go.")],
    select: Annotated[str | None, typer.Option(help="Only ids that match this pattern, such as 'holiday/*'.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", "-t", help="Another name or folder with the same codes.")
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="Pictures, sounds: png, jpg or webp; wav or flac.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary for programs, and no progress.")] = False,
) -> None:
    """Decode a token store back into files, named after their ids."""
    from smalti.cli.tokenizers import open_tokenizer
    from smalti.store import TokenStore, decode_store

    opened = TokenStore(store)
    if not opened.header["complete"]:
        typer.echo(f"smalti: {store} is unfinished, only what store.json lists is decoded", err=True)
    model, _ = open_tokenizer(tokenizer or opened.header["tokenizer"], device)
    with Progress(console=console(), transient=True, disable=as_json) as bar:
        task = bar.add_task("decoding", total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        result = decode_store(store, out, model, select=select, suffix=suffix, report=report)
    if as_json:
        failed = [{"id": name, "error": error} for name, error in result.failed]
        print_json({"written": [str(path) for path in result.written], "failed": failed})
    else:
        for name, error in result.failed:
            console().print(f"{name}: {error}", style="red", markup=False)
        console().print(f"{len(result.written)} files written to {out}, {len(result.failed)} failed")
    if result.failed:
        raise typer.Exit(1 if result.written else 2)
