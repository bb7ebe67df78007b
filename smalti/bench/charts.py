"""Line charts for pages, as SVG that takes its colours from the page: rate against distortion, loss against steps.

    Series ──► Axis: linear or logarithmic, round ticks ──► marks and lines ──► names beside their last point

Every series has a shape of its own beside its colour, for readers who see few colours and for printers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 330
LEFT, TOP, BOTTOM = 58, 16, 42
NAMED, UNNAMED = 168, 14  # pixels right of the chart
COLOURS = 8  # classes s0 to s7 of the page's style
LINE = 15  # pixels between two names
TICKS = 6  # about so many on an axis


@dataclass(frozen=True)
class Series:
    """A named line, or a named set of points.

    Args:
        name: beside its last point.
        points: (x, y), in the order of the line.
        line: connect them.
        marks: show where they are.
        faint: in the background, as raw values behind their mean; without a name.
        colour: 0 to 7; by default the series' place among those that are not faint.
    """

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    marks: bool = True
    faint: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Axis:
    """An axis: what it shows, and whether by powers of ten."""

    label: str
    log: bool = False


@dataclass(frozen=True)
class Scale:
    """Values of an axis to pixels, from `low` at pixel `start` to `high` at `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    @property
    def ticks(self) -> list[float]:
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)


def plot(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    title: str,
    rules: Sequence[tuple[float, str]] = (),
    names: bool = True,
) -> str:  # fmt: skip
    """A chart.

    Args:
        series: at least one with a point; values that are not finite, or not positive on a logarithmic axis, are left
            out.
        x, y: the axes.
        title: what it shows, for readers who hear it.
        rules: (x, name) of vertical lines, such as where a run was resumed.
        names: beside the last points; without them the chart is as wide as its frame.
    """
    series = [_drawable(each, x.log, y.log) for each in series]
    named = [each for each in series if not each.faint and each.points]
    points = [point for each in series for point in each.points]
    if not points:
        return (
            f'<svg viewBox="0 0 {WIDTH} 60" role="img"><text x="12" y="34">{escape(title)}: no value yet</text></svg>'
        )
    across = _scale([p[0] for p in points], LEFT, WIDTH - (NAMED if names else UNNAMED), x.log)
    up = _scale([p[1] for p in points], HEIGHT - BOTTOM, TOP, y.log)
    colours = {id(each): (i if each.colour is None else each.colour) % COLOURS for i, each in enumerate(named)}
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts += _grid(across, up, x, y)
    parts += _rules(rules, across)
    for each in series:
        colour = colours.get(id(each), (each.colour or 0) % COLOURS)
        parts += _drawn(each, [(across(a), up(b)) for a, b in each.points], colour)
    ends = [(each, across(each.points[-1][0]), up(each.points[-1][1]), colours[id(each)]) for each in named]
    parts += _names(ends) if names else []
    return "".join([*parts, "</svg>"])


def _drawable(series: Series, log_x: bool, log_y: bool) -> Series:
    def good(value: float, log: bool) -> bool:
        return math.isfinite(value) and (value > 0 or not log)

    kept = [point for point in series.points if good(point[0], log_x) and good(point[1], log_y)]
    return Series(series.name, kept, series.line, series.marks, series.faint, series.colour)


def _scale(values: Sequence[float], start: float, end: float, log: bool) -> Scale:
    """An axis that ends a little beyond the values."""
    low, high = min(values), max(values)
    if log:
        margin = max((high / low) ** 0.04, 1.02)
        return Scale(low / margin, high * margin, start, end, log)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - margin, high + margin, start, end, log)


def _ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; with their doubles and halves where there are few of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            step = -(-len(ticks) // (TICKS + 2))
            return ticks[::step]
    return ticks or [low, high]


def _grid(across: Scale, up: Scale, x: Axis, y: Axis) -> list[str]:
    parts = []
    for tick in across.ticks:
        place = across(tick)
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_text(tick)}</text>')
    for tick in up.ticks:
        place = up(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{across.end:.0f}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{place + 4:.1f}" text-anchor="end">{_text(tick)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="axis" x="{(LEFT + across.end) / 2:.0f}" y="{HEIGHT - 7}" text-anchor="middle">'
        f"{escape(x.label)}</text>"
    )
    parts.append(
        f'<text class="axis" x="14" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 14 {middle:.0f})">'
        f"{escape(y.label)}</text>"
    )
    return parts


def _rules(rules: Sequence[tuple[float, str]], across: Scale) -> list[str]:
    parts = []
    for value, name in rules:
        if across.low <= value <= across.high and (value > 0 or not across.log):
            place = across(value)
            parts.append(
                f'<line class="rule" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
                f"<title>{escape(name)}</title></line>"
                f'<text x="{place + 3:.1f}" y="{TOP + 9}">{escape(name)}</text>'
            )
    return parts


def _drawn(series: Series, places: Sequence[tuple[float, float]], colour: int) -> list[str]:
    parts = []
    if series.line and len(places) > 1:
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline class="curve s{colour}{" faint" if series.faint else ""}" points="{line}"/>')
    if series.marks or len(places) == 1:
        for (a, b), (x, y) in zip(places, series.points, strict=True):
            said = f"<title>{escape(series.name)}: {_text(x)}, {_text(y)}</title>"
            parts.append(_mark(a, b, colour, 4.5 if series.line else 6.5, said))
    return parts


def _mark(x: float, y: float, colour: int, size: float, inside: str = "") -> str:
    """A shape of its own for each colour."""
    corners = {0: 0, 1: 4, 2: 3, 3: 4, 4: 3, 5: 5, 6: 6, 7: 4}[colour]
    if not corners:
        return f'<circle class="mark s{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{0.85 * size:.1f}">{inside}</circle>'
    turn = {1: math.pi / 4, 2: math.pi / 2, 3: 0.0, 4: -math.pi / 2, 5: math.pi / 2, 6: 0.0, 7: 0.0}[colour]
    wide = 0.6 if colour == 7 else 1.0
    corner = [turn + 2 * math.pi * i / corners for i in range(corners)]
    path = " ".join(f"{x + wide * size * math.cos(a):.1f},{y - size * math.sin(a):.1f}" for a in corner)
    return f'<polygon class="mark s{colour}" points="{path}">{inside}</polygon>'


def _names(ends: Sequence[tuple[Series, float, float, int]]) -> list[str]:
    """Names right of the chart, as near to their last points as they fit below each other, and lines to there."""
    ordered = sorted(ends, key=lambda end: end[2])
    places = [end[2] for end in ordered]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + LINE)
    lowest = float(HEIGHT - BOTTOM)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], lowest)
        lowest = places[i] - LINE
    parts: list[str] = []
    edge = WIDTH - NAMED + 10
    for (series, x, y, colour), place in zip(ordered, places, strict=True):
        parts.append(f'<polyline class="leader" points="{x + 5:.1f},{y:.1f} {edge - 4},{place:.1f}"/>')
        parts.append(_mark(edge + 4, place, colour, 4.5))
        parts.append(
            f'<text class="s{colour}" x="{edge + 14}" y="{place + 4:.1f}">{escape(_short(series.name))}</text>'
        )
    return parts


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:10] + "…" + name[-13:]


def _text(value: float) -> str:
    """A number without more digits than it needs."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        mantissa, power = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
