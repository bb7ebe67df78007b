"""Options of the whole suite (pytest reads them from the top-level conftest only), and one thread per process."""

from __future__ import annotations

import os
from pathlib import Path

# Triton asks for it while it is imported. Kernels run in its interpreter, on a CPU; TRITON_INTERPRET=0 on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

DEFAULT_GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity")
    group.addoption(
        "--golden", default=str(DEFAULT_GOLDEN), help="folder of golden cases (SLUG/CASE.safetensors + .json)"
    )
    group.addoption("--slug", default=None, help="only the cases of this slug")
    group.addoption("--part", default=None, choices=["quantizer"], help="only the cases of this part, run alone")


def pytest_configure(config: pytest.Config) -> None:
    # Test processes run side by side; more threads each would only wait for one another.
    torch.set_num_threads(1)
