"""The card that lies beside trained weights: how they came about, so that anyone can make them again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Any

from smalti.tokenizer import NeuralTokenizer
from smalti.train.recipe import Recipe
from smalti.train.run import Span

POINTS = 12  # rows of the curve
CURVES = (
    "loss",
    "psnr",
    "mel",
    "perplexity",
    "validation_psnr",
    "validation_ssim",
    "validation_stoi",
    "validation_mel",
)


def model_card(
    recipe: Recipe,
    tokenizer: NeuralTokenizer,
    files: int,
    history: Sequence[Span],
    journal: Sequence[Mapping[str, float]],
    best: Mapping[str, Any] | None,
) -> str:
    """Markdown: recipe, data, sizes, curve, licence.

    Args:
        recipe: of the run.
        tokenizer: what came out.
        files: how many were trained on.
        history: the recipes that the steps were made by.
        journal: the run's lines.
        best: `value` and `step` of the weights that were kept, or None where the last ones were.
    """
    parameters = sum(each.numel() for each in tokenizer.parameters())
    samples = sum(stage.steps * stage.batch for stage in recipe.stages)
    kept = "the last ones" if best is None else f"those of step {best['step']:,}, the best on validation"
    averaged = ", averaged over steps" if recipe.stages[-1].average else ""
    lines = [
        f"# {recipe.name}",
        "",
        f"Made by `{history[0].command}`, seed {recipe.seed}; recipe.json beside this card has every number that was "
        "set.",
        "",
        *_turns(history, recipe.steps),
        f"- **Network**: {tokenizer.name}, {parameters / 1e6:.2f} M parameters, stored as {recipe.weights}.",
        f"- **Codes**: slots of {', '.join(map(str, tokenizer.quantizer.vocab))}.",
        f"- **Data**: {files} files ({', '.join(recipe.data.include)}), those that can't be used passed over, seen as "
        f"{samples:,} random samples in {recipe.steps:,} steps; held out: {_held_out(recipe)}.",
        f"- **Weights**: {kept}{averaged}.",
        f"- **Licence**: {recipe.licence or 'not stated'}.",
        "",
        "## Curve",
        "",
        *_curve(journal),
    ]
    return "\n".join(lines) + "\n"


def _turns(history: Sequence[Span], steps: int) -> list[str]:
    """Where a resumption went on by another recipe, and what was different in it."""
    lines = []
    for before, after in pairwise(history):
        moved = list(_changes(before.recipe, after.recipe, ""))
        if moved:
            when = f"From step {after.step:,} on" if after.step < steps else "After the last step"
            lines.append(f"- {when} by `{after.command}`: {'; '.join(moved)}.")
    lead = "Its recipe was changed on the way: recipe.json is the last one, history.json has all of them."
    return [lead, "", *lines, ""] if lines else []


def _changes(old: Any, new: Any, path: str) -> Iterator[str]:
    """Fields that differ, as "path: old → new"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping) and set(old) == set(new):
        for name in new:
            yield from _changes(old[name], new[name], f"{path}.{name}" if path else name)
    elif path == "stages":
        for index, pair in enumerate(zip_longest(old, new)):
            yield from _changes(*pair, f"{path}.{index}")
    elif isinstance(old, Mapping) and new is None:
        yield f"{path} removed"
    elif isinstance(new, Mapping) and old is None:
        yield f"{path} added"
    elif old != new:
        yield f"{path}: {json.dumps(old)} → {json.dumps(new)}"


def _held_out(recipe: Recipe) -> str:
    named = [*recipe.data.held_out, *([f"those in {recipe.data.held_out_list}"] if recipe.data.held_out_list else [])]
    return ", ".join(named) or "none"


def _curve(journal: Sequence[Mapping[str, float]]) -> list[str]:
    """A table of evenly spread steps; means of training beside measurements of validation at the same step."""
    merged: dict[int, dict[str, float]] = {}
    for line in journal:
        merged.setdefault(int(line["step"]), {}).update(line)
    measured = [step for step, line in merged.items() if any(name.startswith("validation_") for name in line)]
    steps = measured or list(merged)
    chosen = [steps[round(index * (len(steps) - 1) / (POINTS - 1))] for index in range(POINTS)] if steps else []
    columns = [name for name in CURVES if any(name in merged[step] for step in chosen)]
    rows = [
        f"| {step:,} | "
        + " | ".join(f"{merged[step][name]:.4g}" if name in merged[step] else "" for name in columns)
        + " |"
        for step in dict.fromkeys(chosen)
    ]
    return [f"| step | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows]
