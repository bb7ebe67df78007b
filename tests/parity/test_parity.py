"""Every golden case through the public API, compared by the rule that the case states.

pytest tests/parity -rA [--golden DIR] [--slug NAME] [--part quantizer]
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.parity.golden import compare_case, read_case


def adapter(slug: str) -> ModuleType:
    name = f"tests.parity.adapters.{slug.replace('-', '_')}"
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{slug}: planned, there is no adapter yet")
    return importlib.import_module(name)


def check(file: Path, part: str | None) -> None:
    module = adapter(file.parent.name)
    if not part and not hasattr(module, "run"):
        pytest.skip(f"{file.parent.name}: planned, only its quantizer is there yet")
    case = read_case(file)
    expected = case.quantizer_outputs() if part else sorted(case.outputs)
    if part and not expected:
        pytest.skip("this case does not test the quantizer alone")
    torch.manual_seed(0)
    given: dict[str, Tensor] = module.run_quantizer(case) if part else module.run(case)
    # What a case can't say, because a tensor that decides it was not stored: the adapter proves it from the state.
    missing: dict[str, str] = module.incomplete(case) if hasattr(module, "incomplete") else {}
    lines = list(compare_case(case, given, expected, missing))
    print(f"\n{case.slug}/{case.name}" + "".join(f"\n  {line}" for line in lines))  # noqa: T201  (the report itself)
    failed = [str(line) for line in lines if not line.passed]
    assert not failed, "\n".join(failed)


def test_whole(case_file: Path, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--part"):
        pytest.skip("only the quantizer is asked for")
    check(case_file, None)


def test_quantizer(case_file: Path) -> None:
    check(case_file, "quantizer")
