"""A report as one HTML file: it needs no server and no network, reads well in light and dark, and can be mailed.

    Page ── cards, sections ──► Section ── parts: Table, Panels, Chart, Charts, Swatches, Facts, Code ... ──► one file

The parts know nothing of modalities. Pictures and sounds lie inside the file, as data addresses. Where the reader
points into one picture of a row, all of them are enlarged at that place.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path

from smalti.errors import InputError


@dataclass(frozen=True)
class Media:
    """A picture or a sound: its file, and what kind of file it is ("image/webp")."""

    data: bytes
    kind: str

    @property
    def address(self) -> str:
        return f"data:{self.kind};base64,{b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Panel:
    """One thing to look at or to listen to.

    Args:
        title: what it is.
        facts: short lines under it.
        picture, sound: what there is of it.
        crisp: show the picture's pixels as squares.
        wide: take a line of its own.
    """

    title: str
    facts: Sequence[str] = ()
    picture: Media | None = None
    sound: Media | None = None
    crisp: bool = False
    wide: bool = False

    def html(self) -> str:
        parts = []
        if self.picture is not None:
            kind = ' class="crisp"' if self.crisp else ""
            address = self.picture.address
            parts.append(f'<div class="frame"><img{kind} src="{address}" alt="{escape(self.title)}"></div>')
        if self.sound is not None:
            parts.append(f'<audio controls preload="metadata" src="{self.sound.address}"></audio>')
        facts = "".join(f"<span>{escape(fact)}</span>" for fact in self.facts)
        kind = ' class="wide"' if self.wide else ""
        return f"<figure{kind}>{''.join(parts)}<figcaption><b>{escape(self.title)}</b>{facts}</figcaption></figure>"


@dataclass(frozen=True)
class Panels:
    """Panels side by side.

    Args:
        title: what they all show.
        panels: from left to right, in one line on a wide screen.
    """

    title: str
    panels: Sequence[Panel]

    def html(self) -> str:
        figures = "".join(panel.html() for panel in self.panels)
        columns = sum(not panel.wide for panel in self.panels)
        return f'<h3>{escape(self.title)}</h3><div class="panels" style="--columns:{columns}">{figures}</div>'


@dataclass(frozen=True)
class Table:
    """Rows of numbers.

    Args:
        headings: of the columns; the first column is text.
        rows: as many cells each.
        note: a line below.
        strong: the first row is what the others are compared with.
        words: the last column is text too.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: bool = False
    words: bool = False

    def html(self) -> str:
        head = "".join(f"<th>{escape(heading)}</th>" for heading in self.headings)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        names = " ".join(name for name, given in (("strong", self.strong), ("words", self.words)) if given)
        kind = f' class="{names}"' if names else ""
        table = f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f'<div class="scroll">{table}</div>{note}'


@dataclass(frozen=True)
class Chart:
    """A drawing and what it says.

    Args:
        title: what it shows.
        svg: as `smalti.bench.figures` draws it; trusted.
        facts: (name, value) beside it.
        note: a line below.
    """

    title: str
    svg: str
    facts: Sequence[tuple[str, str]] = ()
    note: str = ""

    def html(self) -> str:
        facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in self.facts)
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return f'<h3>{escape(self.title)}</h3><div class="chart">{self.svg}<dl>{facts}</dl></div>{note}'


@dataclass(frozen=True)
class Swatches:
    """The legend of a map.

    Args:
        note: what its colours mean.
        entries: (colour, label).
    """

    note: str
    entries: Sequence[tuple[str, str]]

    def html(self) -> str:
        marks = "".join(
            f'<span class="swatch"><i style="background:{escape(colour)}"></i>{escape(label)}</span>'
            for colour, label in self.entries
        )
        return f'<div class="swatches">{marks}</div><p class="note">{escape(self.note)}</p>'


@dataclass(frozen=True)
class Charts:
    """Drawings side by side.

    Args:
        drawings: (title, SVG), as `smalti.bench.charts` draws it; trusted.
        note: a line below.
    """

    drawings: Sequence[tuple[str, str]]
    note: str = ""

    def html(self) -> str:
        each = "".join(f"<figure><h3>{escape(title)}</h3>{svg}</figure>" for title, svg in self.drawings)
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return f'<div class="charts">{each}</div>{note}'


@dataclass(frozen=True)
class Facts:
    """Names and values below each other."""

    entries: Sequence[tuple[str, str]]

    def html(self) -> str:
        return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in self.entries)}</dl>"


@dataclass(frozen=True)
class Code:
    """Text as it stands in a terminal or a file.

    Args:
        text: with its line breaks.
        title: a heading above; may be empty.
    """

    text: str
    title: str = ""

    def html(self) -> str:
        title = f"<h3>{escape(self.title)}</h3>" if self.title else ""
        return f'{title}<pre tabindex="0"><code>{escape(self.text)}</code></pre>'


@dataclass(frozen=True)
class Pieces:
    """What something was cut into, each piece in a colour of its own.

    Args:
        title: what it was.
        entries: (text, what the reader sees when pointing at it).
    """

    title: str
    entries: Sequence[tuple[str, str]]

    def html(self) -> str:
        pieces = "".join(f'<span title="{escape(hint)}">{escape(text)}</span>' for text, hint in self.entries)
        return f'<h3>{escape(self.title)}</h3><p class="pieces">{pieces}</p>'


@dataclass(frozen=True)
class Note:
    """A paragraph in small print."""

    text: str

    def html(self) -> str:
        return f'<p class="note">{escape(self.text)}</p>'


Part = Note | Table | Panels | Chart | Charts | Swatches | Facts | Code | Pieces


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: its heading.
        lead: paragraphs before the parts.
        parts: from top to bottom.
        problems: what went wrong, in lines that stand out.
    """

    title: str
    lead: Sequence[str] = ()
    parts: Sequence[Part] = ()
    problems: Sequence[str] = ()

    def html(self) -> str:
        lead = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in self.lead)
        problems = "".join(f'<p class="problem">{escape(line)}</p>' for line in self.problems)
        return (
            f"<section><h2>{escape(self.title)}</h2>{lead}{problems}{''.join(p.html() for p in self.parts)}</section>"
        )


@dataclass(frozen=True)
class Page:
    """The report.

    Args:
        title: its heading.
        lead: the first paragraph.
        cards: (value, what it is), the numbers that one should take away.
        sections: from top to bottom.
        foot: lines at the end: protocols, versions, credits.
    """

    title: str
    lead: str
    cards: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()
    foot: Sequence[str] = field(default_factory=list)

    def html(self) -> str:
        assets = files("smalti.bench") / "assets"
        cards = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in self.cards)
        cards = f'<div class="cards">{cards}</div>' if cards else ""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{(assets / 'report.css').read_text()}</style></head>"
            "<body><main>"
            f'<h1>{escape(self.title)}</h1><p class="lead">{escape(self.lead)}</p>'
            f"{cards}{''.join(section.html() for section in self.sections)}"
            f"<footer>{''.join(f'<p>{escape(line)}</p>' for line in self.foot)}</footer></main>"
            f"<script>{(assets / 'report.js').read_text()}</script></body></html>\n"
        )

    def write(self, folder: str | Path) -> Path:
        """Writes FOLDER/index.html, whole or not at all.

        Raises:
            InputError: if it can't be written there.
        """
        return self.save(Path(folder) / "index.html")

    def save(self, target: Path) -> Path:
        """Writes the file, whole or not at all, and its folder where there is none.

        Raises:
            InputError: if it can't be written there.
        """
        staged = target.with_name(f".{target.name}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.write_text(self.html(), encoding="utf-8", errors="replace")
            staged.replace(target)
        except OSError as error:
            with suppress(OSError):
                staged.unlink()
            raise InputError(f"{target} can't be written: {error.strerror or error}") from None
        return target
