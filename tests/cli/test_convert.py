"""`smalti convert`: official files in, Smalti folders out, and nothing at all where something is wrong."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import smalti as package
from smalti.audio.wavtokenizer import WavTokenizer
from smalti.image.llamagen import LlamaGen, LlamaGenAR
from smalti.image.simvq import SimVQImage
from tests.audio import test_simvq as audio_simvq
from tests.audio import test_wavtokenizer as wavtokenizer
from tests.cli.conftest import Smalti
from tests.image import test_llamagen as llamagen
from tests.image import test_simvq as image_simvq


@pytest.fixture
def wav_file(tmp_path: Path) -> Path:
    torch.save({"state_dict": wavtokenizer.official()}, tmp_path / "wavtokenizer_large_unify_600_24k.ckpt")
    return tmp_path / "wavtokenizer_large_unify_600_24k.ckpt"


@pytest.fixture
def llama_file(tmp_path: Path) -> Path:
    live, averaged = llamagen.random_tokenizer(), llamagen.random_tokenizer()
    with torch.no_grad():
        averaged.quantizer.alphabet.vectors.weight.add_(1)  # type: ignore[union-attr, operator]
    state = {"model": llamagen.official(live), "ema": llamagen.official(averaged)}
    torch.save(state, tmp_path / "vq_ds16_c2i.pt")
    return tmp_path / "vq_ds16_c2i.pt"


# --- what comes out --------------------------------------------------------------------------------------------------


def test_the_folder_loads_as_the_system_and_gives_the_same_codes(
    smalti: Smalti, wav_file: Path, tmp_path: Path
) -> None:
    ran = smalti("convert", wav_file, "--system", "wavtokenizer", "-o", tmp_path / "out")
    assert ran.code == 0 and not ran.err
    loaded, direct = package.load(tmp_path / "out"), WavTokenizer.from_official(None, wavtokenizer.official())
    assert isinstance(loaded, WavTokenizer)
    x = torch.randn(1, 1, 500)
    assert torch.equal(loaded.encode(x).codes, direct.encode(x).codes)


def test_it_says_which_copy_was_taken_and_whose_licence_it_has(
    smalti: Smalti, llama_file: Path, wav_file: Path, tmp_path: Path
) -> None:
    ran = smalti("convert", llama_file, "--system", "llamagen", "-o", tmp_path / "out")
    assert ran.code == 0 and "took ema of vq_ds16_c2i.pt" in ran.out
    rows = package.load(tmp_path / "out").state_dict()["quantizer.alphabet.vectors.weight"]
    assert torch.equal(rows, llamagen.random_tokenizer().state_dict()["quantizer.alphabet.vectors.weight"] + 1)
    ran = smalti("convert", wav_file, "--system", "wavtokenizer", "-o", tmp_path / "wav", "--json")
    assert ran.json["source"] == "state_dict of wavtokenizer_large_unify_600_24k.ckpt"
    assert ran.json["licence"] == "MIT" == json.loads((tmp_path / "wav" / "config.json").read_text())["licence"]


def test_averages_beside_live_tensors_are_said(smalti: Smalti, tmp_path: Path) -> None:
    state = audio_simvq.averaged(audio_simvq.official(), 0.1)
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    ran = smalti("convert", tmp_path / "last.ckpt", "--system", "simvq/audio", "-o", tmp_path / "out")
    assert ran.code == 0 and "took the moving averages (model_ema.*)" in ran.out


def test_it_says_what_to_do_next(smalti: Smalti, llama_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "a folder"
    ran = smalti("convert", llama_file, "--system", "llamagen", "-o", out)
    assert f"smalti encode FILES -o STORE --tokenizer {shlex.quote(str(out))}" in ran.out
    assert "smalti bench reconstruct" in ran.out and "check it" not in ran.out


def test_a_stated_check_can_be_run_as_it_is_printed(smalti: Smalti, wav_file: Path, tmp_path: Path) -> None:
    ran = smalti("convert", wav_file, "--system", "wavtokenizer", "-o", tmp_path / "out")
    assert "1323, 1442, 3524, 2056, 3229, 1723, 2785, 1389, 3144, 1723" in ran.out
    (line,) = [line.strip() for line in ran.out.splitlines() if line.strip().startswith("python -c ")]
    command = [sys.executable, *shlex.split(line)[1:]]
    checked = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert checked == "False\n"  # these are no real weights


def test_a_name_is_not_taken_for_the_folder(
    smalti: Smalti, wav_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = smalti("convert", wav_file, "--system", "wavtokenizer", "-o", "wavtokenizer")
    assert ran.code == 0 and "--tokenizer ./wavtokenizer" in ran.out


def test_generators_are_converted_too(smalti: Smalti, tmp_path: Path) -> None:
    state = llamagen.ar_state(width=32, layers=2, heads=4, kv_heads=4, hidden=48, ids=20)
    torch.save({"model": state}, tmp_path / "c2i.pt")
    (tmp_path / "config.yaml").write_text("n_head: 4\nblock_size: 9\n")
    ran = smalti(
        "convert",
        tmp_path / "c2i.pt",
        "-s",
        "llamagen/ar",
        "-o",
        tmp_path / "out",
        "--config",
        tmp_path / "config.yaml",
    )
    assert ran.code == 0 and ".generate(4, seed=0)" in ran.out
    generator = package.load(tmp_path / "out")
    assert isinstance(generator, LlamaGenAR) and generator.generate(1, seed=0).codes.shape == (1, 3, 3, 1)


@pytest.mark.parametrize("name", ["config.yaml", "config.json"])
def test_a_configuration_is_yaml_or_json(smalti: Smalti, tmp_path: Path, name: str) -> None:
    torch.save({"state_dict": image_simvq.official(image_simvq.random_model())}, tmp_path / "simvq.ckpt")
    settings = {"model": {"init_args": image_simvq.CONFIG}}
    (tmp_path / name).write_text(json.dumps(settings))  # JSON is YAML
    ran = smalti(
        "convert", tmp_path / "simvq.ckpt", "-s", "simvq/image", "-o", tmp_path / "out", "--config", tmp_path / name
    )
    assert ran.code == 0 and isinstance(package.load(tmp_path / "out"), SimVQImage)


def test_an_earlier_folder_is_replaced(smalti: Smalti, wav_file: Path, llama_file: Path, tmp_path: Path) -> None:
    assert smalti("convert", wav_file, "-s", "wavtokenizer", "-o", tmp_path / "out").code == 0
    assert smalti("convert", llama_file, "-s", "llamagen", "-o", tmp_path / "out").code == 0
    assert isinstance(package.load(tmp_path / "out"), LlamaGen)


# --- what is refused -------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.pt", "-s", "llamagen"), "gone.pt does not exist"),
        (("vq_ds16_c2i.pt", "-s", "vqgan"), "vq_ds16_c2i.pt does not fit vqgan"),
        (("vq_ds16_c2i.pt", "-s", "wavtokenizer"), "does not fit wavtokenizer"),
        (("vq_ds16_c2i.pt", "-s", "llamagen/ar"), "does not fit llamagen/ar"),
        (("vq_ds16_c2i.pt", "-s", "simvq"), "simvq/audio or simvq/image"),
        (("vq_ds16_c2i.pt", "-s", "lamagen"), "did you mean llamagen"),
        (("vq_ds16_c2i.pt", "-s", "titok"), "no system is called"),
        (("vq_ds16_c2i.pt", "-s", "llamagen", "--config", "gone.yaml"), "gone.yaml can't be read as a configuration"),
        (("vq_ds16_c2i.pt", "-s", "llamagen", "--config", "vq_ds16_c2i.pt"), "can't be read as a configuration"),
        (("vq_ds16_c2i.pt", "-s", "llamagen", "--config", "list.yaml"), "a configuration is a mapping"),
        (("vq_ds16_c2i.pt", "-s", "llamagen", "--config", "odd.yaml"), "does not fit llamagen"),
        (("list.yaml", "-s", "llamagen"), "can't be read"),
        (("evil.pt", "-s", "llamagen"), "never runs what a checkpoint holds"),
    ],
)
def test_mistakes_are_code_2_one_line_and_no_folder(
    smalti: Smalti,
    llama_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(llama_file.parent)
    Path("list.yaml").write_text("- one\n- two\n")
    Path("odd.yaml").write_text("encoder_ch_mult: nonsense\n")
    Path("evil.pt").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    before = sorted(os.listdir())
    ran = smalti("convert", *arguments, "-o", "out")
    assert ran.code == 2 and message in ran.err, ran.err
    assert len(ran.err.splitlines()) == 1 and not ran.out
    assert sorted(os.listdir()) == before  # no folder, no leftover, nothing executed


def test_something_else_at_that_place_stays(smalti: Smalti, llama_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    ran = smalti("convert", llama_file, "-s", "llamagen", "-o", tmp_path / "mine")
    assert ran.code == 2 and "not a saved Smalti folder" in ran.err
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear diary"


def test_a_place_that_can_not_be_written_is_said(smalti: Smalti, llama_file: Path) -> None:
    ran = smalti("convert", llama_file, "-s", "llamagen", "-o", llama_file / "inside" / "out")
    assert ran.code == 2 and "can't be written" in ran.err
