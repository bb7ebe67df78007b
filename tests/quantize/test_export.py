"""Encoding compiles as one graph and exports, for every quantizer that has a name, and gives the same codes then."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from smalti.quantize import Quantizer, create
from tests.quantize.test_contract import OPTIONS, SCALE_OPTIONS

POSITIONS = {"multi-scale": (4, 4), "multi-rate": (16,)}  # of the names whose scales say how many axes there are


class Encode(nn.Module):
    """What is exported."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: Tensor) -> Tensor:
        return self.quantizer.encode(z)


def named(name: str) -> Quantizer:
    torch.manual_seed(0)
    return create(name, **{**OPTIONS, **SCALE_OPTIONS}[name]).eval()


def latents(batch: int, quantizer: Quantizer, name: str) -> Tensor:
    return torch.randn(batch, *POSITIONS.get(name, (11,)), quantizer.dim)


@pytest.mark.parametrize("name", sorted([*OPTIONS, *SCALE_OPTIONS]))
def test_encode_compiles_as_one_graph(name: str) -> None:
    quantizer = named(name)
    z = latents(3, quantizer, name)
    torch.compiler.reset()
    compiled = torch.compile(quantizer.encode, backend="eager", fullgraph=True)
    assert torch.equal(compiled(z), quantizer.encode(z))


@pytest.mark.parametrize("name", sorted([*OPTIONS, *SCALE_OPTIONS]))
def test_encode_exports_for_any_batch(name: str) -> None:
    quantizer = named(name)
    batch = torch.export.Dim("batch", min=2, max=512)
    program = torch.export.export(Encode(quantizer), (latents(3, quantizer, name),), dynamic_shapes=({0: batch},))
    z = latents(7, quantizer, name)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(z), quantizer.encode(z))


def test_exported_programs_run_without_smalti(tmp_path: Path) -> None:
    z = torch.randn(4, 6, 8)
    for name in ("residual", "qinco", "beam-residual", "simvq", "lsq"):
        quantizer = create(name, **{**OPTIONS[name], "dim": 8}).eval()
        torch.export.save(torch.export.export(Encode(quantizer), (z,)), tmp_path / f"{name}.pt2")
        torch.save([z, quantizer.encode(z)], tmp_path / f"{name}.pt")
    check = """
import sys, pathlib, torch
for file in pathlib.Path(".").glob("*.pt2"):
    z, codes = torch.load(file.with_suffix(".pt"), weights_only=True)
    assert torch.equal(torch.export.load(file).module()(z), codes), file
assert not any(name.split(".")[0] == "smalti" for name in sys.modules)
"""
    subprocess.run([sys.executable, "-I", "-c", check], check=True, cwd=tmp_path)
