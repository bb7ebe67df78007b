"""How `smalti bench` prints what it measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from smalti.cli.output import console

if TYPE_CHECKING:
    from smalti.bench.comparison import Comparison, Row
    from smalti.bench.reconstruction import Criterion


def print_comparison(found: Comparison) -> None:
    """A table per budget, what its columns mean, and what could not be measured."""
    out = console()
    for budget, rows in found.budgets.items():
        judges = [judge for judge in found.judges if any(row.mean(judge.label) is not None for row in rows)]
        table = _table(
            f"at {budget}", "bytes", found.unit.bits, *(judge.heading for judge in judges), "files", "setting"
        )
        for row in rows:
            table.add_row(*_comparison_cells(row, judges))
        out.print(table)
        out.print()
    for name, why in found.missing.items():
        out.print(f"{name}: {why}", style="yellow", markup=False, soft_wrap=True)
    out.print("bytes: mean of a file, headers counted; † above the budget, the smallest that it makes", style="dim")
    for judge in found.judges:
        out.print(f"{judge.heading}: {judge.metric.protocol}, {judge.better} is better", style="dim", markup=False)
    for failed in found.failed:
        out.print(f"{failed.id}: {failed.error}", style="red", markup=False, soft_wrap=True)
    for codec, each in found.unscored:
        out.print(f"{codec}: no {each.label} of {each.id}: {each.reason}", markup=False, soft_wrap=True)


def _comparison_cells(row: Row, judges: Sequence[Criterion]) -> list[str]:
    return [
        escape(row.label),
        f"{row.bytes:,.0f}" + (" †" if row.over else ""),
        _number(row.bits),
        *(_precise(row.mean(judge.label)) for judge in judges),
        str(len(row.sizes)),
        escape(row.setting),
    ]


def _precise(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


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
            out.print(
                f"{row['tokenizer']}: {failed['id']}: {failed['error']}", style="red", markup=False, soft_wrap=True
            )
        for each in row["unscored"]:
            out.print(
                f"{row['tokenizer']}: no {each['label']} of {each['id']}: {each['reason']}",
                markup=False,
                soft_wrap=True,
            )


def _quality_table(rows: list[dict[str, Any]]) -> Table:
    """Quality and bits; where samples have different rates, a metric has a column for each."""
    qualities = _qualities(rows)
    bits = rows[0]["bits"]["unit"]
    table = _table(
        "tokenizer", "samples", *(_heading(entry, qualities) for entry in qualities.values()), bits, "entropy coded"
    )
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
        "tokenizer",
        "codes used (uniform)",
        "perplexity",
        "entropy",
        f"encode {rate}",
        cost,
        f"decode {rate}",
        cost,
        "peak MB",
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


def _table(first: str, *headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
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
