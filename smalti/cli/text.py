"""`smalti text`: what tokenizers of text and executables make of files, and training them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
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
from rich.table import Table

from smalti.cli.output import console, print_json
from smalti.errors import InputError

if TYPE_CHECKING:
    from smalti.bench.text import Counted, TextStatistics
    from smalti.store.plan import Found
    from smalti.text.base import TextTokenizer

command = typer.Typer(
    help="Train tokenizers of text and executables, count tokens, and see which are used.",
    no_args_is_help=True,
    add_completion=False,
)

Tokenizer = Annotated[str, typer.Option("--tokenizer", "-t", help="A name (`smalti list`) or a saved folder.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Look into sub-folders too.")]
Match = Annotated[str | None, typer.Option(help="Only files whose id or name matches this pattern.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers for programs, and no progress.")]


@command.command()
def count(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.", metavar="PATH...")],
    tokenizer: Tokenizer,
    each: Annotated[bool, typer.Option("--each", help="Also a line per file.")] = False,
    recursive: Recursive = False,
    glob: Match = None,
    as_json: AsJson = False,
) -> None:
    """Count the tokens of files, without keeping any.

    Exit code 1 means that some files could not be read, 2 that none could.
    """
    from smalti.bench.text import count_files

    model, _ = _open(tokenizer)
    found = _files(paths, model, recursive, glob)
    with _progress(sum(one.size for one in found.inputs), "counting", as_json) as report:
        counted = list(count_files(model, found.inputs, report))
    good = [one for one in counted if one.error is None]
    sizes, tokens = sum(one.bytes for one in good), sum(one.tokens for one in good)
    if as_json:
        total = {"samples": len(good), "bytes": sizes, "tokens": tokens, "bytes_per_token": _ratio(sizes, tokens)}
        failed = [{"id": one.id, "error": one.error} for one in counted if one.error is not None]
        files = [{"id": one.id, "bytes": one.bytes, "tokens": one.tokens} for one in good]
        print_json({**total, "skipped": found.skipped, "failed": failed, **({"files": files} if each else {})})
    else:
        _print_counts(counted, each)
        ratio = f", {sizes / tokens:.3f} bytes per token" if tokens else ""
        console().print(f"{len(good)} files, {sizes} bytes, {tokens} tokens{ratio}; {found.skipped} files skipped")
    _finish(len(good), len(counted) - len(good))


@command.command()
def stats(
    paths: Annotated[list[Path], typer.Argument(help="Token stores, files and folders.", metavar="STORE_OR_PATH...")],
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", "-t", help="A name or a saved folder; by default the one of the first store."),
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="How many of the most frequent tokens to show.")] = 20,
    recursive: Recursive = False,
    glob: Match = None,
    as_json: AsJson = False,
) -> None:
    """Say how a tokenizer's vocabulary is used: bytes per token, entropy, frequent tokens, lengths, unknowns.

    Bytes of a store's samples are those that their tokens decode to.
    """
    from smalti.bench.text import TokenCounts, is_store
    from smalti.store import TokenStore

    stores = [TokenStore(path) for path in paths if is_store(path)]
    files = [path for path in paths if not is_store(path)]
    name = tokenizer or (str(stores[0].header["tokenizer"]) if stores else None)
    if name is None:
        raise InputError("there is no store among the paths that would name a tokenizer: give one with --tokenizer")
    model, _ = _open(name)
    counts = TokenCounts(model)
    for store in stores:
        with _progress(len(store.ids), f"reading {store.folder}", as_json, of_bytes=False) as report:
            counts.add_store(store, report)
    if files:
        found = _files(files, model, recursive, glob)
        with _progress(sum(one.size for one in found.inputs), "encoding", as_json) as report:
            counts.add_files(found.inputs, report)
    summary = counts.summary(top)
    if as_json:
        print_json(summary.data())
    else:
        _print_statistics(summary)
    _finish(summary.samples, len(summary.failed))


# --- what the commands share -----------------------------------------------------------------------------------------


def _open(name: str) -> tuple[TextTokenizer, str]:
    from smalti.bench.text import as_text
    from smalti.cli.tokenizers import open_tokenizer

    found, reference = open_tokenizer(name)
    return as_text(found, name), reference


def _files(paths: list[Path], tokenizer: TextTokenizer, recursive: bool, glob: str | None) -> Found:
    from smalti.store.media import considered
    from smalti.store.plan import find_inputs

    found = find_inputs(paths, considered(tokenizer.modality), recursive=recursive, glob=glob)
    if not found.inputs:
        hint = "" if recursive else "; --recursive looks into sub-folders"
        raise InputError(f"there is no {tokenizer.modality} among {len(paths)} paths ({found.skipped} skipped){hint}")
    return found


@contextmanager
def _progress(total: int, doing: str, hidden: bool, *, of_bytes: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar; call it with how much was done."""
    amount: list[ProgressColumn] = [DownloadColumn(), TransferSpeedColumn()] if of_bytes else [MofNCompleteColumn()]
    columns = [TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn()]
    with Progress(*columns, console=console(), transient=True, disable=hidden) as bar:
        task = bar.add_task(escape(doing), total=total)
        yield lambda done: bar.advance(task, done)


def _finish(good: int, bad: int) -> None:
    if bad:
        raise typer.Exit(1 if good else 2)


def _ratio(one: int, other: int) -> float | None:
    return one / other if other else None


def _print_counts(counted: list[Counted], each: bool) -> None:
    out = console()
    if each:
        table = Table("file", "bytes", "tokens", "bytes per token", box=None, header_style="bold", pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for one in counted:
            if one.error is None:
                ratio = f"{one.bytes / one.tokens:.3f}" if one.tokens else ""
                table.add_row(escape(one.id), str(one.bytes), str(one.tokens), ratio)
        out.print(table)
    for one in counted:
        if one.error is not None:
            out.print(f"{one.id}: {one.error}", style="red", markup=False)


def _print_statistics(found: TextStatistics) -> None:
    from smalti.bench.text import printable

    out = console()
    for name, error in found.failed:
        out.print(f"{name}: {error}", style="red", markup=False)
    facts = Table.grid(padding=(0, 2))
    for label, value in _facts(found):
        facts.add_row(f"[bold]{label}[/]", value)
    out.print(facts)
    if found.frequent:
        table = Table("id", "count", "share", "bytes", box=None, header_style="bold", pad_edge=False)
        for number, count, string in found.frequent:
            shown = "stands for nothing alone" if string is None else f'"{escape(printable(string))}"'
            table.add_row(str(number), str(count), f"{count / found.tokens:.2%}", shown)
        out.print()
        out.print(table)


def _facts(found: TextStatistics) -> Iterator[tuple[str, str]]:
    yield "samples", f"{found.samples}, {found.bytes} bytes, {found.tokens} tokens"
    if found.tokens:
        yield "bytes per token", f"{found.bytes_per_token:.3f}"
        yield (
            "entropy",
            f"{found.entropy:.3f} bits per token, {found.entropy_per_byte:.3f} bits per byte, without context",
        )
    yield "vocabulary", f"{found.used} of {found.vocabulary} ids occur ({found.used / found.vocabulary:.1%})"
    if found.lengths:
        longest, counted = max(found.lengths), sum(found.lengths.values())
        mean = sum(length * count for length, count in found.lengths.items()) / counted
        yield "token lengths", f"{mean:.3f} bytes on average, the longest that occurs {longest}"
    unknown = "none can be" if found.unknown is None else f"{found.unknown / max(found.tokens, 1):.4%} of tokens"
    yield "unknown", unknown
    yield "lossless", "yes" if found.lossless else "no"
