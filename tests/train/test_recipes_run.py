"""The tiny recipes run from the command line: the loss falls, codes are used, and what comes out encodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import smalti
from smalti.audio.io import write_audio
from smalti.cli.main import app
from tests.train.runs import journal, pictures

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = ("vqgan-tiny", "llamagen-tiny", "simvq-image-tiny", "simvq-audio-tiny", "wavtokenizer-tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and harmonic tones with vibrato that take turns with noise."""
    folder = pictures(tmp_path_factory.mktemp("data"))
    time = torch.arange(12_000) / 8_000
    generator = torch.Generator().manual_seed(0)
    sounding = (torch.sin(2 * torch.pi * 2 * time) > 0).float()
    for index in range(6):
        phase = 2 * torch.pi * (100 + 25 * index) * time + torch.sin(2 * torch.pi * 5 * time)
        tone = sum(torch.sin(part * phase) / part for part in range(1, 9))
        noise = 0.3 * torch.randn(len(time), generator=generator)
        write_audio(folder / f"{index}.wav", (0.2 * tone * sounding + noise * (1 - sounding))[None].clamp(-1, 1), 8_000)
    return folder


def train(name: str, data: Path, out: Path, *settings: str) -> list[dict[str, float]]:
    options = [option for setting in settings for option in ("--set", setting)]
    command = ["train", str(RECIPES / f"{name}.toml"), "--data", str(data), "--out", str(out), "--accelerator", "cpu"]
    result = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return journal(out)


@pytest.mark.parametrize("name", TINY)
def test_every_tiny_recipe_to_its_end(name: str, data: Path, tmp_path: Path) -> None:
    lines = train(name, data, tmp_path / "run")
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert lines[-1]["perplexity"] > 2.0
    assert lines[-1]["discriminator_loss"] > 0
    tokenizer = smalti.load(tmp_path / "run" / "tokenizer")
    x = torch.rand(1, 3, 32, 32) if tokenizer.modality == "image" else torch.rand(1, 1, 4000) - 0.5
    assert tokenizer.decode(tokenizer.encode(x)).shape == x.shape


def test_programs_get_the_journal_and_people_get_one_line_of_what_is_wrong(data: Path, tmp_path: Path) -> None:
    command = ["train", str(RECIPES / "vqgan-tiny.toml"), "--data", str(data), "--out", str(tmp_path / "run"), "--json"]
    few = ["--set", "stages.0.steps=2", "--set", "watch.log=1", "--accelerator", "cpu"]
    result = CliRunner().invoke(app, [*command, *few], catch_exceptions=False)
    decoder, text, lines = json.JSONDecoder(), result.stdout.strip(), []
    while text:
        line, end = decoder.raw_decode(text)
        lines.append(line)
        text = text[end:].strip()
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
