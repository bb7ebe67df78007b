"""Charts: values land where their axis says, and nothing that can't be drawn is."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.bench.charts import HEIGHT, LINE, WIDTH, Axis, Series, _log_ticks, _ticks, plot

X, Y = Axis("x"), Axis("y")


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def line(root: ElementTree.Element, index: int = 0) -> list[tuple[float, float]]:
    curves = [each for each in root.findall("polyline") if "curve" in each.attrib["class"]]
    return [tuple(map(float, point.split(","))) for point in curves[index].attrib["points"].split()]  # type: ignore[misc]


def test_equal_steps_are_equal_distances() -> None:
    (a, b), (c, d), (e, f) = line(parsed(plot([Series("s", [(0, 0), (1, 10), (2, 20)])], X, Y, title="t")))
    assert c - a == pytest.approx(e - c, abs=0.11) and b - d == pytest.approx(d - f, abs=0.11) and a < c and b > d


def test_equal_factors_are_equal_distances_on_a_logarithmic_axis() -> None:
    svg = plot([Series("s", [(1, 1), (10, 10), (100, 100)])], Axis("x", True), Axis("y", True), title="t")
    (a, b), (c, d), (e, f) = line(parsed(svg))
    assert c - a == pytest.approx(e - c, abs=0.11) and b - d == pytest.approx(d - f, abs=0.11)


def test_what_can_not_be_drawn_is_left_out() -> None:
    points = [(1.0, 1.0), (2.0, math.nan), (3.0, math.inf), (4.0, -1.0), (5.0, 0.0), (6.0, 2.0)]
    assert len(line(parsed(plot([Series("s", points)], X, Axis("y", True), title="t")))) == 2
    assert "no value yet" in plot([Series("s", [(0, math.nan)])], X, Y, title="t")
    assert "no value yet" in plot([], X, Y, title="t")


@given(
    points=st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)), min_size=1, max_size=8),
    names=st.integers(1, 9),
)
def test_everything_is_inside_and_names_do_not_overlap(points: list[tuple[float, float]], names: int) -> None:
    root = parsed(plot([Series(f"s{i}", points) for i in range(names)], X, Y, title="t", rules=[(0.0, "rule")]))
    for x, y in line(root) if len(points) > 1 else []:
        assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
    places = sorted(
        float(text.attrib["y"]) for text in root.findall("text") if "s" in text.attrib.get("class", "?")[:1]
    )
    assert len(places) == names
    assert all(below - above >= LINE - 0.11 for above, below in pairwise(places))


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6))
def test_ticks_are_round_and_inside(low: float, span: float) -> None:
    ticks = _ticks(low, low + span)
    assert 2 <= len(ticks) <= 9
    step = ticks[1] - ticks[0]
    assert all(low - 1e-6 * step <= tick <= low + span + 1e-6 * step for tick in ticks)


@given(low=st.floats(1e-6, 1e6), factor=st.floats(1.05, 1e9))
def test_logarithmic_ticks_are_inside(low: float, factor: float) -> None:
    ticks = _log_ticks(low, low * factor)
    assert 1 <= len(ticks) <= 9 and all(low <= tick <= low * factor for tick in ticks)


def test_text_from_outside_stays_text() -> None:
    evil = "<script>&\"'"
    root = parsed(plot([Series(evil, [(0, 1), (1, 2)])], Axis(evil), Axis(evil), title=evil, rules=[(0.5, evil)]))
    assert not list(root.iter("script")) and evil in [text.text for text in root.findall("text")]
