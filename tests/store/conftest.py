"""A tiny saved tokenizer and small folders of real and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.image.photo import PhotoTokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return PhotoTokenizer.Config.tiny().build().save(tmp_path_factory.mktemp("tokenizer") / "tiny")  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> PhotoTokenizer:
    return PhotoTokenizer.load(tokenizer_folder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures of several sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(20):
        size = (24 + index % 3, 16 + index % 5, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{index:02d}.png")
    return folder
