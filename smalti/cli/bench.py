"""`smalti bench`: what tokenizers are worth, measured on files of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from smalti.cli.output import console, print_json
from smalti.errors import InputError

if TYPE_CHECKING:
    from smalti.store.plan import Input
    from smalti.tokenizer import NeuralTokenizer

command = typer.Typer(add_completion=False, no_args_is_help=True)


@command.callback()
def group() -> None:
    """Measure quality, codebook use, bits, speed and memory."""


@command.command()
def reconstruct(
    tokenizer: Annotated[
        list[str], typer.Option("--tokenizer", "-t", help="A name (`smalti list`) or a saved folder; may be repeated.")
    ],
    data: Annotated[Path, typer.Option("--data", "-d", help="A folder of files, or one file.")],
    size: Annotated[
        int | None, typer.Option(min=1, help="Images: shorter side and centre crop to SIZE x SIZE.")
    ] = None,
    rate: Annotated[
        int | None, typer.Option(min=1, help="Audio: resample to this rate first. By default every file keeps its own.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first LIMIT files, by name.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look into sub-folders too.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the model on a CPU.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows for programs, and no progress.")] = False,
) -> None:
    """Encode files, decode them, and compare: a row per tokenizer.

    Files that can't be read are reported, and the rest is measured; the exit code is then 1.
    """
    import torch

    from smalti.bench.reconstruction import measure
    from smalti.cli.tokenizers import open_tokenizer

    if threads is not None:
        torch.set_num_threads(threads)
    models = [open_tokenizer(name, device) for name in dict.fromkeys(tokenizer)]
    inputs = [_files(model, data, recursive, limit) for model, _ in models]
    rows = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True, disable=as_json) as bar:
        for (model, reference), files in zip(models, inputs, strict=True):
            task = bar.add_task(escape(reference), total=len(files))
            tally = measure(
                model, files, reference=reference, size=size, rate=rate,
                report=lambda done, task=task: bar.update(task, completed=done),  # type: ignore[misc]
            )  # fmt: skip
            rows.append(tally.row())
    if as_json:
        print_json(rows)
    else:
        print_rows(rows)
    if not any(row["samples"] for row in rows):
        typer.echo(f"smalti: nothing in {data} could be measured", err=True)
        raise typer.Exit(2)
    if any(row["failed"] for row in rows):
        raise typer.Exit(1)


def _files(model: NeuralTokenizer, data: Path, recursive: bool, limit: int | None) -> list[Input]:
    from smalti.store.media import media
    from smalti.store.plan import find_inputs

    found = find_inputs([data], media(model.modality).suffixes, recursive=recursive)
    if not found.inputs:
        kind = "an" if model.modality[0] in "aeiou" else "a"
        hint = "" if recursive else "; --recursive looks into sub-folders"
        raise InputError(f"{data} holds no file with {kind} {model.modality} suffix{hint}")
    return found.inputs[:limit]


# --- how rows are shown ----------------------------------------------------------------------------------------------


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Two tables per modality, what their columns mean, and what could not be measured."""
    out = console()
    for modality in dict.fromkeys(row["modality"] for row in rows):
        own = [row for row in rows if row["modality"] == modality and row["samples"]]
        if own:
            out.print(_quality_table(own))
            out.print()
            out.print(_cost_table(own))
            out.print("\n" + _legend(own) + "\n", style="dim", markup=False)
    for row in rows:
        for failed in row["failed"]:
            out.print(f"{row['tokenizer']}: {failed['id']}: {failed['error']}", style="red", markup=False)
        for each in row["unscored"]:
            out.print(f"{row['tokenizer']}: no {each['label']} of {each['id']}: {each['reason']}", markup=False)


def _quality_table(rows: list[dict[str, Any]]) -> Table:
    """Quality and bits; where samples have different rates, a metric has a column for each."""
    qualities = _qualities(rows)
    bits = rows[0]["bits"]["unit"]
    table = _table("samples", *(_heading(entry, qualities) for entry in qualities.values()), bits, "entropy coded")
    for row in rows:
        values = {entry["protocol"]: entry["value"] for entry in row["quality"]}
        table.add_row(
            escape(row["tokenizer"]),
            str(row["samples"]),
            *(_number(values.get(protocol)) for protocol in qualities),
            _number(row["bits"]["nominal"]),
            _number(row["bits"]["entropy"]),
        )
    return table


def _cost_table(rows: list[dict[str, Any]]) -> Table:
    """Codebook use, speed and memory."""
    work = rows[0]["speed"]["unit"]
    rate, cost = ("x real time", "CPU s/s") if work == "second of audio" else (f"{work}s/s", f"CPU s/{work}")
    table = _table(
        "codes used (uniform)", "perplexity", "entropy", f"encode {rate}", cost, f"decode {rate}", cost, "peak MB"
    )
    for row in rows:
        slots = [slot for report in row["codebook"].values() for slot in report["slots"]]
        peak = row["peak_memory"]
        table.add_row(
            escape(row["tokenizer"]),
            _slots([f"{slot['usage']:.1%} ({slot['expected_usage']:.1%})" for slot in slots]),
            _slots([f"{slot['perplexity']:.0f}" for slot in slots]),
            _slots([f"{slot['entropy']:.2f}" for slot in slots]),
            *(_number(row["speed"][way][key]) for way in ("encode", "decode") for key in ("per_second", "cpu_seconds")),
            "-" if peak is None else f"{peak / 1e6:.0f}",
        )
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("tokenizer", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _qualities(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {entry["protocol"]: entry for row in rows for entry in row["quality"]}


def _heading(entry: dict[str, Any], qualities: dict[str, dict[str, Any]]) -> str:
    """A metric's name, with a number where others have that name (at other rates); the legend tells them apart."""
    name = f"{entry['name']} {entry['unit']}".strip()
    twins = [protocol for protocol, other in qualities.items() if other["name"] == entry["name"]]
    return name if len(twins) == 1 else f"{name} ({twins.index(entry['protocol']) + 1})"


def _legend(rows: list[dict[str, Any]]) -> str:
    qualities = _qualities(rows)
    lines = [
        f"{_heading(entry, qualities)}: {protocol}, {entry['better']} is better, {entry['samples']} samples"
        for protocol, entry in qualities.items()
    ]
    speed = rows[0]["speed"]
    lines += [
        "codes used, perplexity, entropy (bits): per slot; uniform: what as many codes of a uniform source would use",
        f"speed: {speed['device']}, {speed['threads']} threads, one file at a time; peak: above the loaded model",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _slots(values: list[str]) -> str:
    return "\n".join(values) if len(values) <= 4 else f"{values[0]} ... {values[-1]} ({len(values)} slots)"
