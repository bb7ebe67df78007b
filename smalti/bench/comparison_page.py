"""The page of `smalti bench`: rate-distortion plots, tables with their command, pictures and sounds side by side."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import smalti
from smalti.audio.io import encode_audio
from smalti.bench.charts import Axis, Series, plot
from smalti.bench.comparison import CURVE_LABELS, Comparison, Example, Row, Version
from smalti.bench.exhibit import files_of, short, still
from smalti.bench.figures import spectrogram
from smalti.bench.reconstruction import Criterion, seconds
from smalti.bench.report import Charts, Code, Media, Note, Page, Panel, Panels, Part, Section, Table
from smalti.image.io import to_image

WIDEST = 768  # pixels of a picture on the page
LONGEST = 30  # seconds of a sound on the page
TITLES = {"image": "Pictures", "audio": "Sounds"}
ONE = {"image": "a picture", "audio": "a sound"}
NOTES = {
    "image": (
        "PSNR and SSIM of 8-bit pixels, means over pictures. Classical codecs may shrink a picture before they code "
        "it, and all their headers count. Both measures reward smooth pictures: look at the details too."
    ),
    "audio": (
        "Means over sounds. STOI and spectra can be trained for, and flatter then; DNSMOS (heard in the reconstruction "
        "alone; see what the original gets) and word error rates (a recogniser's words of the reconstruction against "
        "those of the original) were nobody's loss. Codec2 has no sound above 4 kHz."
    ),
}


def comparison_page(comparisons: Sequence[Comparison], data: str, command: str) -> Page:
    """The page.

    Args:
        comparisons: one per modality.
        data: where the files are from, as the user named it.
        command: the line that made it.
    """
    cards = [card for found in comparisons for card in _cards(found)]
    lead = "Tokenizers and classical codecs on the same files, at the same bytes."
    protocols = [
        f"{TITLES[found.modality]}: " + ", ".join(f"{j.label} = {j.metric.protocol}" for j in found.judges) + "."
        for found in comparisons
    ]
    versions = (
        f"Smalti {smalti.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} on {platform.machine()}, {torch.get_num_threads()} threads."
    )
    sections = [_section(found, data, command) for found in comparisons]
    return Page("At equal bytes", lead, cards[:8], sections, [*protocols, versions])


def _section(found: Comparison, data: str, command: str) -> Section:
    count = max((len(row.sizes) for row in found.rows), default=0)
    square = found.plan.square if found.modality == "image" else None
    cut = "" if square is None else f", {square.side}x{square.side} centre crops{'' if square.scaled else ', unscaled'}"
    cut += f" at {found.plan.rate / 1000:g} kHz" if found.modality == "audio" else ""
    lead = [f"{files_of(range(count))} of {data}{cut}."]
    lead += [f"{name} is missing: {why}." for name, why in found.missing.items()]
    parts: list[Part] = []
    if found.curves:
        parts.append(curves(found))
    parts.append(Code(command))
    parts += [table(found, budget, rows) for budget, rows in found.budgets.items()]
    parts.append(Note(_how_to_read(found)))
    if found.tallies:
        parts.append(costs([tally.row() for tally in found.tallies]))
    parts += [_examples(found, each) for each in found.examples]
    problems = [f"{each.id} was skipped: {each.error}" for each in found.failed]
    return Section(TITLES[found.modality], lead, parts, problems)


def _cards(found: Comparison) -> list[tuple[str, str]]:
    """Of the first budget: what the tokenizers reach, and the best of the classical codecs."""
    cards: list[tuple[str, str]] = []
    for rows in list(found.budgets.values())[:1]:
        for judge in [judge for judge in found.judges if judge.label in ("PSNR", "SSIM", "STOI", "DNSMOS")]:
            for kind in ("tokenizer", "classical"):
                own = [(row.mean(judge.label), row) for row in rows if row.kind == kind]
                valued = [(value, row) for value, row in own if value is not None]
                if valued:
                    value, row = max(valued, key=lambda each: each[0])
                    cards.append((f"{short(value)} {judge.unit}".strip(), f"{judge.label}, {row.label}"))
    return cards


# --- plots -----------------------------------------------------------------------------------------------------------


def curves(found: Comparison) -> Charts:
    """Rate against each measure: a line per classical codec, a point per tokenizer."""
    points = [row for row in found.rows if row.kind == "tokenizer"]
    drawings = []
    for label in CURVE_LABELS[found.modality]:
        judge = next((judge for judge in found.judges if judge.label == label), None)
        if judge is None:
            continue
        series = [
            Series(codec, _line(rows, label), colour=1 + index)
            for index, (codec, rows) in enumerate(found.curves.items())
        ]
        series += [
            Series(row.codec, _line([row], label), line=False, colour=0 if len(points) == 1 else (5 + i) % 8)
            for i, row in enumerate(points)
        ]
        across = Axis(f"{found.unit.bits}, logarithmic", log=True)
        title = f"{judge.heading}, {judge.better} is better"
        drawings.append((title, plot(series, across, Axis(judge.heading), title=f"{title}, by {found.unit.bits}")))
    best = " at their best scale" if found.modality == "image" else ""
    return Charts(drawings, f"Lines: classical codecs{best}, headers counted. Single marks: tokenizers.")


def _line(rows: Sequence[Row], label: str) -> list[tuple[float, float]]:
    """(rate, value) of rows, by rate; where a codec can't get lower, its budgets give one point."""
    found = {row.bits: value for row in rows if row.sizes and (value := row.mean(label)) is not None}
    return sorted(found.items())


# --- tables ----------------------------------------------------------------------------------------------------------


def table(found: Comparison, budget: str, rows: Sequence[Row]) -> Table:
    """Codecs against criteria at one budget."""
    judges = [judge for judge in found.judges if any(row.mean(judge.label) is not None for row in rows)]
    headings = [f"at {budget}", f"bytes {ONE[found.modality]}", found.unit.bits]
    headings += [*(judge.heading for judge in judges), "files", "setting"]
    body = [
        [row.label, _bytes(row), short(row.bits), *_cells(row, judges), str(len(row.sizes)), row.setting]
        for row in rows
    ]
    return Table(headings, body, words=True)


def _how_to_read(found: Comparison) -> str:
    lower = [judge.label for judge in found.judges if judge.better == "lower"]
    note = NOTES[found.modality] + (f" Lower is better for {', '.join(lower)}." if lower else "")
    over = any(row.over for row in found.rows)
    return note + " † above the budget: the smallest file that it makes." * over


def _bytes(row: Row) -> str:
    return f"{row.bytes:,.0f}" + (" †" if row.over else "")


def _cells(row: Row, judges: Sequence[Criterion]) -> list[str]:
    means = [row.mean(judge.label) for judge in judges]
    return ["-" if mean is None else f"{mean:.3f}" if abs(mean) < 10 else f"{mean:.2f}" for mean in means]


def costs(rows: Sequence[dict[str, Any]]) -> Table:
    """Codebook use and speed of tokenizers."""
    work = rows[0]["speed"]["unit"]
    body = []
    for row in rows:
        slots = [slot for report in row["codebook"].values() for slot in report["slots"]]
        speed = [row["speed"][way]["per_second"] for way in ("encode", "decode")]
        body.append(
            [
                row["tokenizer"],
                "-" if row["bits"]["entropy"] is None else short(row["bits"]["entropy"]),
                _slots([f"{slot['usage']:.1%}" for slot in slots]),
                _slots([f"{slot['perplexity']:,.0f}" for slot in slots]),
                *("-" if each is None else short(each) for each in speed),
                f"{row['parameters'] / 1e6:.1f} M",
            ]
        )
    per = "x real time" if work == "second of audio" else f"{work}s a second"
    headings = ["tokenizer", f"{rows[0]['bits']['unit']}, entropy coded", "codes used", "perplexity"]
    device = rows[0]["speed"]
    note = f"Codes used and perplexity per slot. One file at a time on {device['device']}, {device['threads']} threads."
    return Table([*headings, f"encode, {per}", f"decode, {per}", "parameters"], body, note)


def _slots(values: Sequence[str]) -> str:
    return ", ".join(values) if len(values) <= 4 else f"{values[0]} ... {values[-1]}"


# --- pictures and sounds ---------------------------------------------------------------------------------------------


def _examples(found: Comparison, example: Example) -> Panels:
    panel = _picture if found.modality == "image" else _sound
    return Panels(example.id, panel(found, example))


def _picture(found: Comparison, example: Example) -> list[Panel]:
    original = example.sample.tensor()
    size = f"{original.shape[2]} x {original.shape[1]} pixels"
    return [
        Panel("Original", (size, "24 bits per pixel"), _photo(original)),
        *(Panel(each.label, _said(found, example, each), _photo(each.decoded)) for each in example.versions),
    ]


def _photo(pixels: Tensor) -> Media:
    """The decoded pixels without loss, at most `WIDEST` a side."""
    image = to_image(pixels)
    image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    return still(np.asarray(image))


def _sound(found: Comparison, example: Example) -> list[Panel]:
    rate, original = int(example.sample.conditions["sample_rate"]), example.sample.tensor()
    picture, loudest = spectrogram(original, rate)
    length = seconds(example.sample)
    about = f"{length:.1f} s at {rate / 1000:g} kHz" + (f"; the first {LONGEST} s to hear" if length > LONGEST else "")
    panels = [Panel("Original", (about,), still(picture), _heard(original, rate))]
    for each in example.versions:
        drawn = still(spectrogram(each.decoded, rate, loudest)[0])
        panels.append(Panel(each.label, _said(found, example, each), drawn, _heard(each.decoded, rate)))
    return panels


def _heard(waveform: Tensor, rate: int) -> Media:
    return Media(encode_audio(waveform[:, : LONGEST * rate], rate, "flac"), "audio/flac")


def _said(found: Comparison, example: Example, version: Version) -> tuple[str, ...]:
    """What stands under a version."""
    rate = short(8 * version.size / found.unit.amount(example.sample)[1])
    values = ", ".join(f"{label} {short(value)}" for label, value in version.scores.items())
    return tuple(filter(None, (f"{version.size:,} bytes, {rate} {found.unit.bits}", values, version.setting)))
