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


def test_every_test_on_the_page_exists_in_the_file_named_before_it() -> None:
    missing = []
    for row in PAGE.splitlines():
        source = ""
        for file, test in re.findall(r"([\w/]*\btest_\w+\.py)|::(test_\w+)", row):
            if file:
                path = ROOT / (file if "/" in file else f"tests/quantize/{file}")
                source = path.read_text(encoding="utf-8") if path.is_file() else ""
            if not source or (test and f"def {test}(" not in source):
                missing.append(file or f"::{test}")
    assert not missing
