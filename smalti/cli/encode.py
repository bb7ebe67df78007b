"""`smalti encode`: files into a token store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from smalti.cli.output import console, print_json

if TYPE_CHECKING:
    from smalti.store import Progress as Done


def command(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders to encode.", metavar="PATH...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The store's folder; an unfinished one is continued.")],
    tokenizer: Annotated[str, typer.Option("--tokenizer", "-t", help="A name (`smalti list`) or a saved folder.")],
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Pictures, sounds: processes that decode files while the model runs [default: 1]. "
            "Text, executables: threads that encode files [default: one per core, at most 3].",
        ),
    ] = None,
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
    max_row: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Text, executables: tokens of a row; longer samples are several [default: 2^20]; part of the store.",
        ),
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Samples per shard file [default: 512; of text and executables 4096].")
    ] = None,
    shard_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="Text, executables: bytes of input per shard file [default: 2^25]."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary for programs, and no progress.")] = False,
) -> None:
    """Encode files into a token store: pictures, sounds, text or executables, whatever the tokenizer takes.

    Of a folder, files count by their suffix; executables by their first bytes (ELF, PE, Mach-O). A file that is named
    itself always counts.

    Exactly once: a run that was interrupted goes on when the same command is given again, and new or failed files of a
    later run go into new shards. Exit code 1 means that some files failed; errors.jsonl says which and why.
    """
    from smalti.cli.tokenizers import open_tokenizer
    from smalti.store import coder_class, encode_paths

    choices = {"size": size, "threads": threads, "batch": batch, "device": device, "max_row": max_row}
    model, reference = open_tokenizer(tokenizer, device or "cpu")
    in_bytes = coder_class(model).in_bytes
    with Progress(*_columns(in_bytes), console=console(), transient=True, disable=as_json) as bar:
        task = bar.add_task("encoding", total=None, rate=0.0, share=0.0)

        def report(done: Done) -> None:
            finished = done.encoded + done.failed
            rate = finished / done.seconds if done.seconds else 0.0
            total, completed = (done.planned_bytes, done.bytes) if in_bytes else (done.planned, finished)
            bar.update(task, total=total, completed=min(completed, total), rate=rate, share=done.model_share)

        done = encode_paths(
            paths, out, model, reference=reference, workers=workers,
            recipe={name: value for name, value in choices.items() if value is not None},
            shard_size=shard_size, shard_bytes=shard_bytes, recursive=recursive, glob=glob, report=report,
        )  # fmt: skip
    losses = list(getattr(model, "losses", ()))  # pictures and sounds have their measures
    if as_json:
        print_json({**asdict(done), "model_share": done.model_share, "store": str(out), "losses": losses})
    else:
        _summarise(done, out, in_bytes)
        if losses:
            console().print(f"decoding will not give back {'; '.join(losses)}", style="yellow", markup=False)
    if done.without_codes:
        raise typer.Exit(1)
    if not done.encoded and not done.already:
        typer.echo(
            f"smalti: nothing to encode; {done.skipped} files were skipped, which are not {model.modality}", err=True
        )
        raise typer.Exit(2)


def _columns(in_bytes: bool) -> list[ProgressColumn]:
    if in_bytes:
        amount: list[ProgressColumn] = [DownloadColumn(), TransferSpeedColumn()]
    else:
        amount = [MofNCompleteColumn(), TextColumn("{task.fields[rate]:.1f}/s")]
    share = TextColumn("tokenizer {task.fields[share]:.0%} of time")
    return [TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn(), share]


def _summarise(done: Done, out: Path, in_bytes: bool) -> None:
    seconds = done.seconds or 1.0
    speed = f"{done.bytes / 1e6 / seconds:.1f} MB/s" if in_bytes else f"{done.encoded / seconds:.1f}/s"
    console().print(
        f"{done.encoded} encoded, {done.failed} failed, {done.already} already there, {done.skipped} skipped; "
        f"{done.codes} codes, {speed}, the tokenizer worked {done.model_share:.0%} of the time -> {out}"
    )
    if done.without_codes:
        console().print(f"[yellow]without codes: {done.without_codes}; {out / 'errors.jsonl'} says why[/]")
