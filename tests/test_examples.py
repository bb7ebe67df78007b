"""The examples run."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.image.io import read_image

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_new_pictures_are_drawn_from_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{index}.png")
    example = runpy.run_path(str(EXAMPLES / "draw_from_tokens.py"))
    example["main"](tmp_path / "photos", tmp_path / "out", 2)
    assert "four pictures" in capsys.readouterr().out
    assert all(read_image(tmp_path / "out" / f"drawn{i}.png").shape == (3, 64, 64) for i in range(4))
