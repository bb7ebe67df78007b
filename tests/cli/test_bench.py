"""`smalti bench reconstruct`: a row per tokenizer, bad files reported, the rest measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from smalti.image.photo import PhotoTokenizer
from tests.cli.conftest import Smalti


def test_a_row_per_tokenizer(smalti: Smalti, pictures: Path, photo_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = PhotoTokenizer.Config.tiny().build().save(tmp_path / "other")  # type: ignore[attr-defined]
    ran = smalti("bench", "reconstruct", "-t", photo_folder, "-t", other, "--data", pictures)
    assert ran.code == 0
    lines = ran.out.splitlines()
    for folder in (photo_folder, other):
        assert sum(line.startswith(str(folder)) for line in lines) == 2  # quality; codebook and speed
    for expected in ("PSNR dB", "SSIM", "bits per pixel", "codes used", "psnr/uint8/per-image-mean"):
        assert expected in ran.out


def test_its_json_is_a_list_of_rows(smalti: Smalti, pictures: Path, photo_folder: Path) -> None:
    ran = smalti("bench", "reconstruct", "-t", photo_folder, "--data", pictures, "--json", "--limit", 2, "--size", 16)
    (row,) = ran.json
    assert ran.code == 0 and row["tokenizer"] == str(photo_folder) and row["samples"] == 2
    assert {entry["name"] for entry in row["quality"]} == {"PSNR", "SSIM"}
    assert row["bits"]["nominal"] == pytest.approx(8 / 16)  # two slots of 16 codes per 4 x 4 pixels
    assert row["speed"]["encode"]["per_second"] > 0 and row["speed"]["device"] == "cpu"


def test_bad_files_are_code_1_and_named(smalti: Smalti, pictures: Path, photo_folder: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    ran = smalti("bench", "reconstruct", "-t", photo_folder, "--data", pictures)
    assert ran.code == 1 and "broken.png: " in ran.out and "not an image" in ran.out
    ran = smalti("bench", "reconstruct", "-t", photo_folder, "--data", pictures, "--json")
    assert ran.code == 1 and ran.json[0]["samples"] == 3
    assert [failed["id"] for failed in ran.json[0]["failed"]] == ["broken.png"]


def test_nothing_but_bad_files_is_code_2(smalti: Smalti, tmp_path: Path, photo_folder: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    ran = smalti("bench", "reconstruct", "-t", photo_folder, "--data", tmp_path)
    assert ran.code == 2 and "nothing" in ran.err and "broken.png" in ran.out


def test_audio_has_its_own_criteria(smalti: Smalti, sounds: Path, speech_folder: Path) -> None:
    ran = smalti("bench", "reconstruct", "-t", speech_folder, "--data", sounds, "--rate", 16_000)
    assert ran.code == 0
    for expected in ("STOI", "SI-SDR", "kbit/s", "stoi/16000Hz"):
        assert expected in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-t", "no-such-thing", "--data", "{pictures}"), "no system is called"),
        (("-t", "{photo}", "--data", "gone"), "gone does not exist"),
        (("-t", "{photo}", "--data", "{photo}"), "holds no file with an image suffix"),
        (("-t", "vqgan/mingpt", "--data", "{pictures}"), "mingpt"),
        (("--data", "{pictures}"), "--tokenizer"),
    ],
)
def test_wrong_use_is_code_2(
    smalti: Smalti, pictures: Path, photo_folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    given = [argument.format(pictures=pictures, photo=photo_folder) for argument in arguments]
    ran = smalti("bench", "reconstruct", *given)
    assert ran.code == 2 and message in ran.err


def test_without_a_sub_command_it_says_what_there_is(smalti: Smalti) -> None:
    ran = smalti("bench")
    assert ran.code == 2 and "reconstruct" in ran.out + ran.err
