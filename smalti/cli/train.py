"""`smalti train`: a recipe and a folder of files in, a tokenizer out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from smalti.cli.output import console
from smalti.errors import require

if TYPE_CHECKING:
    from smalti.train.recipe import Recipe

SHOWN = {"loss": "loss", "psnr": "PSNR", "mel": "mel", "utilisation": "used", "discriminator_loss": "D"}


def command(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, such as recipes/smalti-photo-f8.toml.")],
    data: Annotated[Path, typer.Option("--data", "-d", help="The folder of the files to train on.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run's folder; runs/NAME by default.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value with a dotted key: stages.0.steps=100; may be repeated."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    devices: Annotated[int, typer.Option(min=1, help="Processes on this machine, a GPU each where there are any.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines; start it on each with torchrun.")] = 1,
    strategy: Annotated[str, typer.Option(help="ddp, or fsdp, which shards the weights too.")] = "ddp",
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode files, per device.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each process on a CPU.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print lines of the journal for programs.")] = False,
) -> None:
    """Train a tokenizer, or go on training one.

    Ctrl-C writes a checkpoint and stops (with several processes the last checkpoint counts); --resume goes on from it
    with the same losses as if nothing had happened.
    """
    require("lightning_fabric", "train")
    import torch

    from smalti.train.fabric import make_fabric
    from smalti.train.loop import train
    from smalti.train.recipe import read_recipe

    if threads is not None:
        torch.set_num_threads(threads)
    plan = read_recipe(recipe, settings or ())
    folder = out or Path("runs") / plan.name
    fabric = make_fabric(accelerator, devices, nodes, strategy, plan.precision)
    with _progress(plan, as_json, quiet=not fabric.is_global_zero) as report:
        tokenizer = train(
            plan, data=data, out=folder, beside=recipe.parent, resume=resume, fabric=fabric, workers=workers,
            report=report, command=_told(recipe, settings or (), devices * nodes, strategy),
        )  # fmt: skip
    if fabric.is_global_zero and not as_json:
        out_of = console()
        out_of.print(f"{tokenizer}", markup=False, highlight=False)
        out_of.print(f"curves and samples: {folder / 'page.html'}", markup=False, style="dim")
        out_of.print(f"use it: smalti encode FILES -o TOKENS --tokenizer {tokenizer}", markup=False, style="dim")


def _told(recipe: Path, settings: Sequence[str], ranks: int, strategy: str) -> str:
    """The command as the card has it: what decides the weights, not where files lie."""
    given = [word for setting in settings for word in ("--set", setting)]
    given += ["--devices", str(ranks), "--strategy", strategy] if ranks > 1 else []
    return shlex.join(["smalti", "train", str(recipe), *given]) + " --data DATA"


@contextmanager
def _progress(recipe: Recipe, as_json: bool, quiet: bool) -> Iterator[Any]:
    """What gets the journal's lines: a bar for people, JSON for programs."""
    if quiet:
        yield lambda line: None
        return
    if as_json:
        yield lambda line: typer.echo(json.dumps(line))  # one object a line, as they come
        return
    columns = (  # on a narrow terminal the numbers give way to how far it is
        BarColumn(12), MofNCompleteColumn(table_column=Column(min_width=2 * len(str(recipe.steps)) + 1)),
        TextColumn("{task.fields[state]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        TimeElapsedColumn(table_column=Column(min_width=7)), TimeRemainingColumn(table_column=Column(min_width=7)),
    )  # fmt: skip
    bar = Progress(*columns, console=console(), refresh_per_second=2, speed_estimate_period=600, expand=True)
    task = bar.add_task("", total=recipe.steps, state="the recipe is tried out ...")
    begun = False

    def report(line: Mapping[str, float]) -> None:
        nonlocal begun
        if not begun:  # steps of an earlier run took no time in this one
            bar.reset(task, total=recipe.steps, completed=int(line["step"]))
            begun = True
        bar.update(task, completed=int(line["step"]))
        if "loss" in line:
            bar.update(task, state=_state(line))
        if any(name.startswith("validation_") for name in line):
            values = "  ".join(f"{name.removeprefix('validation_')} {line[name]:.4g}" for name in line if "_" in name)
            bar.console.print(f"step {int(line['step'])}: held-out {values}", markup=False, highlight=False)

    with bar:
        try:
            yield report
        finally:
            bar.update(task, visible=begun)  # a recipe that is refused leaves no bar


def _state(line: Mapping[str, float]) -> str:
    parts = [
        f"{label} {line[name]:.{3 if name == 'utilisation' else 4}g}" for name, label in SHOWN.items() if name in line
    ]
    return "  ".join([*parts, f"{line['samples_per_second']:.3g}/s"])
