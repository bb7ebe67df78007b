"""The command as a user runs it, and tiny saved tokenizers and files to run it on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from smalti.audio.io import write_audio
from smalti.audio.speech import SpeechCodec
from smalti.bench import reconstruction
from smalti.cli import main as cli
from smalti.image.photo import PhotoTokenizer
from tests.image.files import noise


@dataclass(frozen=True)
class Ran:
    """What a command gave: its exit code, stdout and stderr. Reading its JSON checks that stdout holds nothing else."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Smalti = Callable[..., Ran]


@pytest.fixture
def smalti(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> Smalti:
    """Runs `smalti ARGUMENTS` by its entry point, in an empty folder; a traceback anywhere fails the test."""
    monkeypatch.chdir(tmp_path_factory.mktemp("working"))

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["smalti", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return Ran(code, captured.out, captured.err)

    return run


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
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return PhotoTokenizer.Config.tiny().build().save(tmp_path_factory.mktemp("tokenizers") / "photo")  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def speech_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return SpeechCodec.Config.tiny().build().save(tmp_path_factory.mktemp("tokenizers") / "speech")  # type: ignore[attr-defined]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(noise(20 + index, 27, seed=index)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A second of noise."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    waveform = 0.2 * torch.randn(1, 8_000, generator=torch.Generator().manual_seed(0))
    write_audio(folder / "noise.wav", waveform, 8_000)
    return folder
