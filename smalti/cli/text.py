"""`smalti text`: what tokenizers of text and executables make of files, and training them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
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


class Splitter(StrEnum):
    """The splitters that need no further options."""

    none = "none"
    null_delimited = "null-delimited"
    whitespace = "whitespace"
    random = "random"


Tokenizer = Annotated[str, typer.Option("--tokenizer", "-t", help="A name (`smalti list`) or a saved folder.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Look into sub-folders too.")]
Match = Annotated[str | None, typer.Option(help="Only files whose id or name matches this pattern.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers for programs, and no progress.")]


@command.command()
def train(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders to learn from.", metavar="PATH...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where it is saved; an earlier one is replaced.")],
    vocab: Annotated[int, typer.Option(min=264, help="Size of the vocabulary.")] = 16384,
    min_count: Annotated[int, typer.Option(min=1, help="Pairs that are rarer are not merged.")] = 10,
    longest: Annotated[int, typer.Option(min=2, help="Bytes that a token may have.")] = 16,
    chunk: Annotated[int, typer.Option(min=0, help="No merge crosses chunks of so many bytes; 0: files.")] = 8192,
    splitter: Annotated[
        Splitter, typer.Option(help="Where chunks are cut further, so that no merge crosses the cuts.")
    ] = Splitter.none,
    keep: Annotated[float, typer.Option(min=0, max=1, help="Probability with which each cut is kept.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the cuts that are kept.")] = 0,
    min_entropy: Annotated[float, typer.Option(min=0, max=8, help="Chunks below are dropped, bits per byte.")] = 0.0,
    max_entropy: Annotated[float, typer.Option(min=0, max=8, help="Chunks above are dropped, bits per byte.")] = 8.0,
    special: Annotated[list[str] | None, typer.Option(help="A further special token; may be given again.")] = None,
    glyphs: Annotated[bool, typer.Option(help="Give 49 signs for reasoning a token each.")] = False,
    patience: Annotated[int | None, typer.Option(min=1, help="Stop after so many rare merges in a row.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="What training may take, such as 2GB; the merges stay the same.")
    ] = None,
    member: Annotated[
        list[int] | None, typer.Option(help="Also write the family's member of this size, as OUT-SIZE.")
    ] = None,
    recursive: Recursive = False,
    glob: Match = None,
    as_json: AsJson = False,
) -> None:
    """Train a vocabulary of binary-bpe: byte pair encoding of executables, or of any other bytes.

    From folders, executables are taken (ELF, PE, Mach-O); files that are named themselves are, whatever they hold.
    For prose and source code, `smalti text train-text` makes better tokens.
    """
    import numpy as np

    from smalti.bpe import Training
    from smalti.bpe.splitters import EntropyFilter
    from smalti.text.binary_bpe import BinaryBPE

    training = Training(vocab=vocab, min_count=min_count, longest=longest, patience=patience)
    tokenizer = BinaryBPE.Config(
        training=training, chunk=chunk, splitter={"type": splitter.value, "keep": keep}, seed=seed, glyphs=glyphs,
        entropy=EntropyFilter(least=min_entropy, most=max_entropy), specials=tuple(special or ()),
    ).build()  # fmt: skip
    wrong = [size for size in member or () if not len(tokenizer.config.reserved()) <= size <= vocab]
    if wrong:
        raise InputError(f"members of the family have at most {vocab} tokens, not {wrong[0]}")
    found = _files(paths, tokenizer, recursive, glob)
    size = sum(one.size for one in found.inputs)
    began = time.monotonic()
    wanted = vocab - len(tokenizer.config.reserved())
    with _progress(wanted, f"learning from {size / 1e6:.0f} MB", as_json, of_bytes=False) as report:
        samples = (np.fromfile(one.path, np.uint8) for one in found.inputs)  # mapped pages would count as memory
        tokenizer.fit(samples, memory=_memory(memory), report=lambda done, total: report(1))
    folders = [tokenizer.save(out)]
    folders += [tokenizer.smaller(size).save(out.with_name(f"{out.name}-{size}")) for size in member or ()]
    learned = len(tokenizer.merges)
    summary = {"files": len(found.inputs), "bytes": size, "merges": learned, "vocab": tokenizer.vocab[0]}
    if as_json:
        seconds = time.monotonic() - began
        print_json({**summary, "seconds": seconds, "skipped": found.skipped, "saved": [str(each) for each in folders]})
    else:
        places = ", ".join(map(str, folders))
        console().print(f"{len(found.inputs)} files, {size / 1e6:.1f} MB: {learned} merges -> {places}")


@command.command("train-text")
def train_text(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders to learn from.", metavar="PATH...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where it is saved; an earlier one is replaced.")],
    vocab: Annotated[int, typer.Option(min=257, help="Size of the vocabulary.")] = 32768,
    min_count: Annotated[int, typer.Option(min=1, help="Pairs that are rarer are not merged.")] = 2,
    pattern: Annotated[
        str | None, typer.Option(help="The regular expression that cuts text into words; by default GPT-2's.")
    ] = None,
    special: Annotated[list[str] | None, typer.Option(help="A special token; may be given again.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="What merging may take, such as 2GB; the merges stay the same.")
    ] = None,
    recursive: Recursive = False,
    glob: Match = None,
    as_json: AsJson = False,
) -> None:
    """Train a byte-level tokenizer of text, with the merges that Hugging Face's trainer would choose.

    From folders, files of text and source code are taken; files that are named themselves are, whatever they hold.
    Bytes that are no UTF-8 are not learned from, though they can be encoded.
    """
    from smalti.text.io import texts
    from smalti.text.tokenizer_json import JsonTokenizer
    from smalti.text.training import TextTraining, with_pattern
    from smalti.text.training import train_text as trained

    training = TextTraining(
        vocab=vocab, min_count=min_count, specials=tuple(special or ()),
        **({} if pattern is None else with_pattern(pattern)),
    )  # fmt: skip
    found = _files(paths, JsonTokenizer.Config().build(), recursive, glob)
    size = sum(one.size for one in found.inputs)
    with _progress(vocab - 256, f"learning from {size / 1e6:.0f} MB", as_json, of_bytes=False) as report:
        samples = (text for one in found.inputs for text in texts(one.path))
        file = trained(samples, training, memory=_memory(memory), report=lambda done, total: report(1))
    tokenizer = JsonTokenizer(JsonTokenizer.Config(), file.dump())
    folder = tokenizer.save(out)
    learned = len(file.model["merges"])
    if as_json:
        summary = {"files": len(found.inputs), "bytes": size, "merges": learned, "vocab": tokenizer.vocab[0]}
        print_json({**summary, "skipped": found.skipped, "saved": [str(folder)]})
    else:
        console().print(f"{len(found.inputs)} files, {size / 1e6:.1f} MB: {learned} merges -> {folder}")


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
    from smalti.store.reader import ONE_PASS

    stores = [TokenStore(path, cache=ONE_PASS) for path in paths if is_store(path)]
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


def _memory(text: str | None) -> int | None:
    """Bytes that "2GB" or "512 MiB" mean."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise InputError(f"memory must be an amount such as 2GB or 512MiB, got {text!r}")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kMGT".upper().index(prefix.upper() or " "))


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
