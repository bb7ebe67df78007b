"""`smalti encode`: files into a token store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from smalti.cli.output import console, print_json

if TYPE_CHECKING:
    from smalti.store import Progress as Done


def command(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders to encode.", metavar="PATH...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The store's folder; an unfinished one is continued.")],
    tokenizer: Annotated[str, typer.Option("--tokenizer", "-t", help="A name (`smalti list`) or a saved folder.")],
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode files while the model runs.")] = 1,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples of one extent per pass on a GPU.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look into sub-folders too.")] = False,
    glob: Annotated[str | None, typer.Option(help="Only files whose id or name matches this pattern.")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Images: shorter side and centre crop to SIZE x SIZE.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the model on a CPU; part of the store.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu (the default) or cuda; part of the store.")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Samples per shard file.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary for programs, and no progress.")] = False,
) -> None:
    """Encode files into a token store.

    Exactly once: a run that was interrupted goes on when the same command is given again, and new or failed files of a
    later run go into new shards. Exit code 1 means that some files failed; errors.jsonl says which and why.
    """
    from smalti.cli.tokenizers import open_tokenizer
    from smalti.store import encode_paths

    choices = {"size": size, "threads": threads, "batch": batch, "device": device}
    model, reference = open_tokenizer(tokenizer, device or "cpu")
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f}/s"), TimeRemainingColumn(),
        TextColumn("model {task.fields[share]:.0%} of time"),
    )  # fmt: skip
    with Progress(*columns, console=console(), transient=True, disable=as_json) as bar:
        task = bar.add_task("encoding", total=None, rate=0.0, share=0.0)

        def report(done: Done) -> None:
            finished = done.encoded + done.failed
            rate = finished / done.seconds if done.seconds else 0.0
            bar.update(task, total=done.planned, completed=finished, rate=rate, share=done.model_share)

        done = encode_paths(
            paths, out, model, reference=reference, workers=workers,
            recipe={name: value for name, value in choices.items() if value is not None},
            shard_size=shard_size, recursive=recursive, glob=glob, report=report,
        )  # fmt: skip
    if as_json:
        print_json({**asdict(done), "model_share": done.model_share, "store": str(out)})
    else:
        _summarise(done, out)
    if done.without_codes:
        raise typer.Exit(1)
    if not done.encoded and not done.already:
        typer.echo(f"smalti: nothing to encode; {done.skipped} files were skipped because of their suffix", err=True)
        raise typer.Exit(2)


def _summarise(done: Done, out: Path) -> None:
    rate = done.encoded / done.seconds if done.seconds else 0.0
    console().print(
        f"{done.encoded} encoded, {done.failed} failed, {done.already} already there, {done.skipped} skipped; "
        f"{rate:.1f}/s, the model worked {done.model_share:.0%} of the time -> {out}"
    )
    if done.without_codes:
        console().print(f"[yellow]without codes: {done.without_codes}; {out / 'errors.jsonl'} says why[/]")
