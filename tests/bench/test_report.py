"""A page is one file, means what it says, and runs nothing that came from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from smalti.bench.report import Chart, Charts, Code, Facts, Media, Note, Page, Panel, Panels, Section, Swatches, Table
from smalti.errors import InputError

EVIL = '<script>alert("x")</script> & "quotes"'


def page(text: str = "text") -> Page:
    panel = Panel(text, (text,), Media(b"picture", "image/webp"), Media(b"sound", "audio/flac"), crisp=True, wide=True)
    parts = (
        Table((text, "number"), ((text, "1"),), text, strong=True),
        Panels(text, (panel, Panel(text))),
        Chart(text, "<svg></svg>", ((text, text),), text),
        Swatches(text, (("#102030", text),)),
        Charts(((text, "<svg></svg>"),), text),
        Facts(((text, text),)),
        Code(text, text),
        Note(text),
    )
    return Page(text, text, ((text, text),), (Section(text, (text,), parts, (text,)),), (text,))


class Outline(HTMLParser):
    """Checks that every element is closed, and gathers what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.references += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_element_is_closed_and_every_reference_inside() -> None:
    outline = Outline()
    outline.feed(page().html())
    assert not outline.open
    assert outline.references and all(reference.startswith("data:") for reference in outline.references)
    assert not re.search(r"https?://|@import|url\(", page().html())


def test_text_from_outside_stays_text() -> None:
    html = page(EVIL).html()
    assert EVIL not in html and html.count("<script>") == page().html().count("<script>") == 1
    outline = Outline()
    outline.feed(html)
    assert not outline.open


def test_it_appears_whole_under_its_name(tmp_path: Path) -> None:
    written = page("Ünï").write(tmp_path / "report")
    assert written == tmp_path / "report" / "index.html"
    assert "Ünï" in written.read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]


def test_names_that_are_no_text_do_not_stop_it(tmp_path: Path) -> None:
    assert page("caf\udce9.png").write(tmp_path).exists()


def test_a_place_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        page().write(tmp_path / "file" / "report")
