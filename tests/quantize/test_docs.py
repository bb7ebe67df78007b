"""The page on quantizers names all of them, and no test that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from smalti.quantize import NAMES
from smalti.quantize.named import ALIASES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quantizers.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")]


def test_every_name_has_a_line() -> None:
    firsts = " ".join(row.split("|")[1] for row in ROWS)
    assert not [name for name in NAMES if f"`{name}`" not in firsts]


def test_aliases_lead_to_names_and_hide_none() -> None:
    assert set(ALIASES.values()) <= set(NAMES)
    assert not set(ALIASES) & set(NAMES)


def test_every_test_on_the_page_exists() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"test_\w+\.py", PAGE)) <= set(sources)
    everything = "\n".join(sources.values())
    assert not [name for name in re.findall(r"::(test_\w+)", PAGE) if f"def {name}" not in everything]
