"""A page about a training run, while it runs and after: curves, the latest samples, the recipe.

    RUN/journal.jsonl ─────────────────► curves, logarithmic where values span decades ──┐
    RUN/samples/step-000500.png, .wav ─► the latest, with their step ───────────────────┼──► one HTML file
    RUN/recipe.toml or .json, whatever else is known ─► facts ───────────────────────────────────┤
    RUN/history.json ─► the steps after which it was resumed ────────────────────────────────────┘

The journal has a JSON object per logged step: {"step": int, "stage": int, "loss": float, ...}. Where steps were logged
twice, those of the later attempt count, and the place is marked. The history, where there is one, is a list of objects
with the "step" after which a command went on. Nothing here knows the training loop, which calls this.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from smalti.bench.charts import Axis, Series, plot
from smalti.bench.exhibit import short
from smalti.bench.report import Charts, Code, Facts, Media, Page, Panel, Panels, Part, Section
from smalti.errors import InputError

JOURNAL, HISTORY, SAMPLES, RECIPES = "journal.jsonl", "history.json", "samples", ("recipe.toml", "recipe.json")
NOT_CURVES = ("step", "stage", "time", "seconds")
LOG_NAMES = ("loss", "lr", "learning_rate", "grad")  # that are shown by powers of ten where they span enough
LOG_SPAN = 4.0  # of highest over lowest
MOST_POINTS = 1200  # of a curve on the page
WINDOW = 0.02  # of the run that a mean is taken over
LATEST = 6  # samples
KINDS = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg", ".wav": "audio/wav", ".flac": "audio/flac"}


@dataclass(frozen=True)
class History:
    """A journal with the steps of abandoned attempts taken out.

    Args:
        entries: by step.
        resumed: steps at which a run began again.
        stages: (first step, stage), where the journal has stages.
    """

    entries: Sequence[Mapping[str, float]]
    resumed: Sequence[int]
    stages: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, journal: Sequence[Mapping[str, float]], resumed: Sequence[int] = ()) -> History:
        """A journal's history; `resumed` are the steps that are known to be resumptions.

        Raises:
            InputError: if an entry has no step.
        """
        kept: list[Mapping[str, float]] = []
        again = list(resumed)
        for entry in journal:
            if "step" not in entry:
                raise InputError(f"an entry of the journal has no step: {dict(entry)}")
            step = int(entry["step"])
            if kept and step < kept[-1]["step"]:
                again.append(step)
                while kept and kept[-1]["step"] >= step:
                    kept.pop()
            if kept and kept[-1]["step"] == step:  # a validation, say, is an entry of its own
                entry = {**kept.pop(), **entry}
            kept.append(entry)
        stages: list[tuple[int, int]] = []
        for entry in kept:
            stage = int(entry.get("stage", 0))
            if not stages or stages[-1][1] != stage:
                stages.append((int(entry["step"]), stage))
        return cls(kept, sorted(set(again)), stages)

    def series(self) -> dict[str, list[tuple[float, float]]]:
        """(step, value) of everything that was logged, by name, in the order in which it first came."""
        found: dict[str, list[tuple[float, float]]] = {}
        for entry in self.entries:
            for name, value in entry.items():
                if name not in NOT_CURVES and isinstance(value, int | float) and not isinstance(value, bool):
                    found.setdefault(name, []).append((float(entry["step"]), float(value)))
        return found


def training_page(
    journal: Sequence[Mapping[str, float]], samples: Sequence[Path], facts: Mapping[str, str]
) -> str:  # fmt: skip
    """The page, as HTML in one piece.

    Args:
        journal: entries in the order in which they were logged; each has "step".
        samples: pictures (PNG, WebP, JPEG) and sounds (WAV, FLAC); the latest by name are shown. Files that can't be
            read any more are left out.
        facts: what else there is to say. "name" becomes the heading, "command" and whatever has several lines
            ("recipe") is shown as it stands.

    Raises:
        InputError: if an entry of the journal has no step.
    """
    return _page(History.of(journal), samples, facts).html()


def training_page_of(folder: Path) -> str:
    """The page of a run's folder: its `journal.jsonl`, `history.json`, `samples/` and `recipe.toml` or `recipe.json`.

    Raises:
        InputError: if there is no journal, a line other than its last is damaged, or so is the history.
    """
    return _page(_history(folder), _samples(folder), _facts(folder)).html()


def save_training_page(folder: Path, target: Path) -> Path:
    """Writes the page of a run's folder, whole or not at all.

    Raises:
        InputError: as `training_page_of`, or if it can't be written there.
    """
    return _page(_history(folder), _samples(folder), _facts(folder)).save(target)


def read_journal(folder: Path) -> list[Mapping[str, float]]:
    """The entries of a run's journal. A last line that is being written is left out.

    Raises:
        InputError: if there is none, or another line is no JSON object.
    """
    file = folder / JOURNAL
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} can't be read: is {folder} the folder of a run? ({error})") from None
    entries: list[Mapping[str, float]] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            entry = None
        if isinstance(entry, dict):
            entries.append(entry)
        elif line.strip() and number < len(lines):
            raise InputError(f"{file}, line {number}, is no JSON object")
    return entries


def _history(folder: Path) -> History:
    journal, file = read_journal(folder), folder / HISTORY
    try:
        spans = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        resumed = [int(span["step"]) for span in spans[1:]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file} is no list of objects that each have a step: {error}") from None
    return History.of(journal, resumed)


def _samples(folder: Path) -> list[Path]:
    place = folder / SAMPLES
    return sorted(each for each in place.iterdir() if each.suffix in KINDS) if place.is_dir() else []


def _facts(folder: Path) -> dict[str, str]:
    facts = {"name": folder.resolve().name, "folder": str(folder.resolve())}
    for recipe in (folder / name for name in RECIPES):
        if recipe.is_file():
            facts[recipe.name] = recipe.read_text(encoding="utf-8", errors="replace")
    return facts


# --- the page --------------------------------------------------------------------------------------------------------


def _page(history: History, samples: Sequence[Path], facts: Mapping[str, str]) -> Page:
    title = facts.get("name", "Training")
    last = int(history.entries[-1]["step"]) if history.entries else 0
    times = f", resumed {len(history.resumed)} times" if len(history.resumed) > 1 else ", resumed once"
    lead = f"A training run at step {last:,}" + (times if history.resumed else "") + "."
    sections = [
        Section("Curves", [] if history.entries else ["Nothing was logged yet."], [_curves(history)]),
        *([Section("Samples", ["The latest, newest first."], list(_shown(samples)))] if samples else []),
        Section("Recipe and facts", [], _told(facts, history)),
    ]
    return Page(title, lead, _cards(history), sections)


def _cards(history: History) -> list[tuple[str, str]]:
    """The last value of the first few curves, as the mean over a window."""
    cards = [(f"{int(history.entries[-1]['step']):,}", "steps")] if history.entries else []
    for name, points in history.series().items():
        value = _smooth(points)[-1][1]
        cards.append((short(value) if math.isfinite(value) else str(value), f"{name}, lately"))
    return cards[:8]


def _curves(history: History) -> Charts:
    """A chart per name: the mean over a window, and the values themselves faint behind it."""
    rules = [(float(step), "resumed") for step in history.resumed]
    rules += [(float(step), f"stage {stage}") for step, stage in history.stages[1:]]
    drawings = []
    for index, (name, points) in enumerate(history.series().items()):
        mean = _smooth(points)
        noisy = mean != points
        series = [Series(name, _thin(mean), marks=len(mean) < 30, colour=index)]
        if noisy:
            series.insert(0, Series(name, _thin(points), marks=False, faint=True, colour=index))
        log = _by_powers(name, [value for _, value in points])
        axis = Axis(f"{name}, logarithmic" if log else name, log)
        drawings.append((name, plot(series, Axis("step"), axis, title=f"{name} over steps", rules=rules, names=False)))
    return Charts(drawings, f"Means over {WINDOW:.0%} of the steps; every logged value behind them.")


def _by_powers(name: str, values: Sequence[float]) -> bool:
    good = [value for value in values if math.isfinite(value)]
    return (
        bool(good)
        and any(part in name.lower() for part in LOG_NAMES)
        and min(good) > 0
        and max(good) / min(good) >= LOG_SPAN
    )


def _smooth(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Means over the window that ends at each step; values that are not finite have none."""
    width = int(WINDOW * len(points))
    if width < 2:
        return points
    # Sums up to each place, so that a long journal costs no more than its length.
    sums = [0.0, *accumulate(value if math.isfinite(value) else 0.0 for _, value in points)]
    counts = [0, *accumulate(int(math.isfinite(value)) for _, value in points)]
    means = []
    for end in range(1, len(points) + 1):
        start = max(0, end - width)
        if counts[end] > counts[start]:
            means.append((points[end - 1][0], (sums[end] - sums[start]) / (counts[end] - counts[start])))
    return means or points


def _thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Every n-th point and the last, so that a long run stays a small page."""
    step = -(-len(points) // MOST_POINTS)
    return points if step < 2 else [*points[:-1:step], points[-1]]


def _shown(samples: Sequence[Path]) -> Iterator[Part]:
    """The latest pictures, each in a line of its own, and the latest sounds side by side."""
    sounds = []
    for path in sorted(samples, key=lambda each: each.name, reverse=True)[:LATEST]:
        kind = KINDS.get(path.suffix.lower())
        try:
            file = Media(path.read_bytes(), kind or "")
        except OSError:
            continue  # an old one that the run has just removed
        if kind is None:
            continue
        title = re.sub(r"^step-(\d+)", lambda found: f"Step {int(found[1]):,}", path.stem)
        if kind.startswith("image/"):
            yield Panels(title, [Panel(path.name, (), file, crisp=True)])
        else:
            sounds.append(Panel(title, (path.name,), sound=file))
    if sounds:
        yield Panels("To listen to", sounds)


def _told(facts: Mapping[str, str], history: History) -> list[Part]:
    lines = [(name, value) for name, value in facts.items() if name != "name" and not _as_it_stands(name, value)]
    if history.resumed:
        lines.append(("resumed at step", ", ".join(f"{step:,}" for step in history.resumed)))
    if len(history.stages) > 1:
        lines.append(("stages", ", ".join(f"{stage} from step {step:,}" for step, stage in history.stages)))
    whole = [Code(value, name) for name, value in facts.items() if name != "name" and _as_it_stands(name, value)]
    return [Facts(lines), *whole]


def _as_it_stands(name: str, value: str) -> bool:
    return name == "command" or "\n" in value.strip()
