"""`smalti bench`: what tokenizers are worth, measured on files of the user's own."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from smalti.cli.bench_tables import print_comparison, print_rows
from smalti.cli.output import console, print_json
from smalti.errors import InputError

if TYPE_CHECKING:
    from smalti.bench.comparison import Comparison
    from smalti.store.media import Square
    from smalti.store.plan import Input

command = typer.Typer(add_completion=False, no_args_is_help=True)


@command.callback()
def group() -> None:
    """Measure quality, codebook use, bits, speed and memory."""


Data = Annotated[Path, typer.Option("--data", "-d", help="A folder of files, or one file.")]
Size = Annotated[int | None, typer.Option(min=1, help="Images: shorter side and centre crop to SIZE x SIZE.")]
Crop = Annotated[int | None, typer.Option(min=1, help="Images: centre crop to CROP x CROP, not scaled.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first LIMIT files, by name.")]
Match = Annotated[str | None, typer.Option("--glob", help="Only files whose name matches, such as '1688-*'.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Look into sub-folders too.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the model on a CPU.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
PageFile = Annotated[
    Path | None,
    typer.Option(
        "--page", help="The page with plots and examples, one HTML file: bench.html; with --json only if named."
    ),
]
NoPage = Annotated[bool, typer.Option("--no-page", help="Write no page: numbers only, sooner.")]
Shown = Annotated[int, typer.Option(min=0, help="How many files the page shows.")]
Transcripts = Annotated[
    Path | None,
    typer.Option(help="Sounds: a CSV with the columns file and text, for word error rates against what was said."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the rows for programs, and no progress.")]


@command.command()
def reconstruct(
    tokenizer: Annotated[
        list[str], typer.Option("--tokenizer", "-t", help="A name (`smalti list`) or a saved folder; may be repeated.")
    ],
    data: Data,
    size: Size = None,
    crop: Crop = None,
    rate: Annotated[
        int | None, typer.Option(min=1, help="Audio: resample to this rate first. By default every file keeps its own.")
    ] = None,
    limit: Limit = None,
    glob: Match = None,
    recursive: Recursive = False,
    threads: Threads = None,
    device: Device = "cpu",
    transcripts: Transcripts = None,
    page: PageFile = None,
    no_page: NoPage = False,
    paged: Annotated[
        int, typer.Option("--page-files", min=1, help="How many files the page is about, the first by name.")
    ] = 24,
    shown: Shown = 4,
    as_json: AsJson = False,
) -> None:
    """Encode files, decode them, and compare: a row per tokenizer.

    The page at the end sets classical codecs at the same bytes beside them, which takes seconds for every file. Files
    that can't be read are reported, and the rest is measured; the exit code is then 1.
    """
    import torch

    from smalti.bench.comparison import Plan, compare
    from smalti.bench.reconstruction import measure
    from smalti.bench.transcripts import read_transcripts
    from smalti.cli.tokenizers import open_neural

    if threads is not None:
        torch.set_num_threads(threads)
    models = [open_neural(name, device) for name in dict.fromkeys(tokenizer)]
    inputs = [_files(model.modality, data, recursive, limit, glob) for model, _ in models]
    texts = {} if transcripts is None else read_transcripts(transcripts)
    rows: list[dict[str, Any]] = []
    with _progress(as_json) as report:
        for (model, reference), files in zip(models, inputs, strict=True):
            tally = measure(
                model, files, reference=reference, square=_square(size, crop), rate=rate, transcripts=texts,
                report=lambda done, reference=reference, files=files: report(reference, done, len(files)),  # type: ignore[misc]
            )  # fmt: skip
            rows.append(tally.row())
    if as_json:
        print_json(rows)
    else:
        print_rows(rows)
    _check_measured(sum(row["samples"] for row in rows), data)
    target, failed = _page_file(page, no_page, as_json), {each["id"] for row in rows for each in row["failed"]}
    if target is not None:
        comparisons = []
        with _progress(as_json) as report:
            for modality in dict.fromkeys(model.modality for model, _ in models):
                own = [(model, reference) for model, reference in models if model.modality == modality]
                read = [each for each in _files(modality, data, recursive, limit, glob) if each.id not in failed]
                files = read[:paged]
                plan = Plan(
                    square=_square(size, crop), rate=rate or _rate_of(files, modality), curves=True, shown=shown,
                    transcripts=texts,
                )  # fmt: skip
                comparisons.append(
                    compare(modality, files, own, plan, lambda what, *so_far: report(f"page: {what}", *so_far))
                )
        _write_page(comparisons, data, target, as_json)
    _finish(bool(failed))


@command.command()
def classical(
    data: Data,
    tokenizer: Annotated[
        list[str] | None,
        typer.Option("--tokenizer", "-t", help="A name (`smalti list`) or a saved folder; may be repeated."),
    ] = None,
    budget: Annotated[
        list[int] | None,
        typer.Option(
            "--bytes", "-b", min=1, help="A budget in bytes; by default those of the tokenizers. May be repeated."
        ),
    ] = None,
    kbps: Annotated[
        list[float] | None, typer.Option(min=0.001, help="Sounds: a budget as a bit rate, kbit/s. May be repeated.")
    ] = None,
    size: Size = None,
    crop: Crop = None,
    rate: Annotated[int, typer.Option(min=1, help="Sounds: resample to this rate first.")] = 16_000,
    limit: Limit = None,
    glob: Match = None,
    recursive: Recursive = False,
    threads: Threads = None,
    device: Device = "cpu",
    transcripts: Transcripts = None,
    page: PageFile = None,
    no_page: NoPage = False,
    shown: Shown = 4,
    as_json: AsJson = False,
) -> None:
    """Compare JPEG, JPEG 2000, WebP, AVIF, or Opus and Codec2, with tokenizers at the same bytes.

    Each codec of pictures comes twice, at full size and at its best scale. What can't get down to the budget takes what
    it needs, and is marked.
    """
    import torch

    from smalti.bench.comparison import Plan, compare, modality_of
    from smalti.bench.transcripts import read_transcripts
    from smalti.cli.tokenizers import open_neural
    from smalti.store.plan import by_suffix, find_inputs

    if threads is not None:
        torch.set_num_threads(threads)
    models = [open_neural(name, device) for name in dict.fromkeys(tokenizer or ())]
    if models:
        modality = models[0][0].modality
    else:
        modality = modality_of(
            [each.id for each in find_inputs([data], by_suffix(_suffixes()), recursive=recursive, glob=glob).inputs]
        )
    files = _files(modality, data, recursive, limit, glob)
    texts = {} if transcripts is None else read_transcripts(transcripts)
    target = _page_file(page, no_page, as_json)
    plan = Plan(
        tuple(budget or ()),
        tuple(kbps or ()),
        _square(size, crop),
        rate,
        curves=target is not None,
        shown=shown if target is not None else 0,
        transcripts=texts,
    )
    with _progress(as_json) as report:
        found = compare(modality, files, models, plan, report)
    if as_json:
        print_json(found.data())
    else:
        print_comparison(found)
    _check_measured(len(found.rows), data)
    if target is not None:
        _write_page([found], data, target, as_json)
    _finish(bool(found.failed))


@command.command()
def training(
    run: Annotated[Path, typer.Argument(help="The folder of a training run: journal.jsonl, samples/, recipe.json.")],
    page: Annotated[Path, typer.Option("--page", help="The HTML file to write.")] = Path("training.html"),
) -> None:
    """Write the page of a training run: curves, the latest samples, the recipe. While it runs, too."""
    from smalti.bench.training_page import save_training_page

    written = save_training_page(run, page)
    console().print(f"open in a browser: {written.resolve()}", markup=False, soft_wrap=True)


# --- what the commands share -----------------------------------------------------------------------------------------


def _page_file(page: Path | None, no_page: bool, as_json: bool) -> Path | None:
    """Where the page goes, or None if there is to be none."""
    if page is not None and no_page:
        raise InputError(f"--page {page} asks for a page, --no-page for none: give one of them")
    return page or (None if no_page or as_json else Path("bench.html"))


def _check_measured(measured: int, data: Path) -> None:
    if not measured:
        typer.echo(f"smalti: nothing in {data} could be measured", err=True)
        raise typer.Exit(2)


def _write_page(comparisons: list[Comparison], data: Path, page: Path, as_json: bool) -> None:
    from smalti.bench.comparison_page import comparison_page

    written = comparison_page(comparisons, str(data), _command()).save(page)
    if not as_json:
        console().print(f"open in a browser: {written.resolve()}", markup=False, soft_wrap=True)


def _finish(failed: bool) -> None:
    """The exit code says whether all files were measured."""
    if failed:
        raise typer.Exit(1)


def _command() -> str:
    """The command line that is running, as one would type it."""
    return shlex.join(["smalti", *sys.argv[1:]])


@contextmanager
def _progress(hidden: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar per thing that is being done; call it with (what, files done, files in all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True, disable=hidden) as bar:
        tasks: dict[str, TaskID] = {}

        def report(doing: str, done: int, total: int) -> None:
            if doing not in tasks:
                tasks[doing] = bar.add_task(escape(doing), total=total)
            bar.update(tasks[doing], completed=done)

        yield report


def _suffixes() -> frozenset[str]:
    from smalti.store.media import media

    return media("image").suffixes | media("audio").suffixes


def _rate_of(files: list[Input], modality: str) -> int:
    """The sample rate of the first file that can be read: a page has one for all."""
    from smalti.errors import SmaltiError
    from smalti.store.media import media

    for each in files if modality == "audio" else ():
        try:
            return int(media(modality).read(each.path, None).conditions["sample_rate"])
        except (SmaltiError, OSError):
            continue
    return 16_000


def _square(size: int | None, crop: int | None) -> Square | None:
    from smalti.store.media import Square

    if size is not None and crop is not None:
        raise InputError(
            f"--size {size} scales pictures before it crops them, --crop {crop} does not: give one of them"
        )
    side = crop if size is None else size
    return None if side is None else Square(side, scaled=crop is None)


def _files(modality: str, data: Path, recursive: bool, limit: int | None, glob: str | None) -> list[Input]:
    from smalti.store.media import considered
    from smalti.store.plan import find_inputs

    found = find_inputs([data], considered(modality), recursive=recursive, glob=glob)
    if not found.inputs:
        kind = "an" if modality[0] in "aeiou" else "a"
        hint = "" if recursive else "; --recursive looks into sub-folders"
        raise InputError(f"{data} holds no file with {kind} {modality} suffix{hint}")
    return found.inputs[:limit]
