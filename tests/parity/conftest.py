"""A test per golden case; `tests/conftest.py` declares the options that choose them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.golden import find_cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_file" not in metafunc.fixturenames:
        return
    folder = Path(metafunc.config.getoption("--golden"))
    files = find_cases(folder, metafunc.config.getoption("--slug")) if folder.is_dir() else []
    if not files:
        reason = f"no golden cases at {folder}"
        metafunc.parametrize("case_file", [pytest.param(None, marks=pytest.mark.skip(reason=reason))], ids=["none"])
        return
    metafunc.parametrize("case_file", files, ids=[f"{file.parent.name}/{file.stem}" for file in files])
