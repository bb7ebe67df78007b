"""Tiny tokenizers with random weights, and small files."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.audio.io import write_audio
from smalti.audio.speech import SpeechCodec
from smalti.bench import reconstruction
from smalti.image.photo import PhotoTokenizer
from tests.image.files import noise


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Encoding into a store sets the number of threads for the whole process."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="package")
def quick_judges() -> Iterator[None]:
    """DNSMOS and the recogniser take seconds for every sound; tests/audio/test_judges.py has them."""
    slow = ("speechmos", "pocketsphinx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "find_spec", lambda name: None if name in slow else find_spec(name))
        yield


@pytest.fixture(scope="session")
def photo_tokenizer() -> PhotoTokenizer:
    torch.manual_seed(0)
    return PhotoTokenizer.Config.tiny().build().eval()  # type: ignore[return-value]


@pytest.fixture(scope="session")
def codec() -> SpeechCodec:
    torch.manual_seed(0)
    return SpeechCodec.Config.tiny().build().eval()  # type: ignore[return-value]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures and a file that is none. Nobody writes here."""
    folder = tmp_path_factory.mktemp("photos")
    for seed, (height, width) in enumerate(((48, 64), (41, 53))):
        Image.fromarray(noise(height, width, seed=seed)).save(folder / f"{seed}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def tone(seconds: float, rate: int = 16_000) -> torch.Tensor:
    """(1,T): a sound with some of everything, so that all metrics have a value."""
    time = np.arange(round(seconds * rate)) / rate
    rng = np.random.default_rng(0)
    voice = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 12)) * (1 + np.sin(2 * np.pi * 3 * time))
    return torch.from_numpy(0.1 * voice + 0.01 * rng.standard_normal(len(time))).float()[None]


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound, and silence. Nobody writes here."""
    folder = tmp_path_factory.mktemp("sounds")
    write_audio(folder / "tone.wav", tone(1.0), 16_000)
    write_audio(folder / "silence.wav", torch.zeros(1, 8_000), 16_000)
    return folder
