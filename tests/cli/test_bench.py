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
    ran = smalti("bench", "reconstruct", "-t", photo_folder, "-t", other, "--data", pictures, "--no-page")
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
    ran = smalti("bench", "reconstruct", "-t", photo_folder, "--data", pictures, "--no-page")
    assert ran.code == 1 and "broken.png: " in ran.out and "not an image" in ran.out
    ran = smalti("bench", "reconstruct", "-t", photo_folder, "--data", pictures, "--json")
    assert ran.code == 1 and ran.json[0]["samples"] == 3
    assert [failed["id"] for failed in ran.json[0]["failed"]] == ["broken.png"]


def test_nothing_but_bad_files_is_code_2(smalti: Smalti, tmp_path: Path, photo_folder: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    ran = smalti("bench", "reconstruct", "-t", photo_folder, "--data", tmp_path)
    assert ran.code == 2 and "nothing" in ran.err and "broken.png" in ran.out


def test_audio_has_its_own_criteria(smalti: Smalti, sounds: Path, speech_folder: Path) -> None:
    ran = smalti("bench", "reconstruct", "-t", speech_folder, "--data", sounds, "--rate", 16_000, "--no-page")
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


def test_classical_codecs_beside_a_tokenizer(smalti: Smalti, pictures: Path, photo_folder: Path) -> None:
    both = smalti("bench", "classical", "-t", photo_folder, "--data", pictures, "--size", 16, "--crop", 16)
    assert both.code == 2 and "give one" in " ".join(both.err.split())
    ran = smalti("bench", "classical", "-t", photo_folder, "--data", pictures, "--size", 16, "--limit", 1)
    assert ran.code == 0
    for expected in ("JPEG, full size", "JPEG 2000, at its best scale", "WebP", "AVIF", "†", "PSNR dB", "1 "):
        assert expected in ran.out


def test_classical_rows_are_json(smalti: Smalti, pictures: Path) -> None:
    ran = smalti("bench", "classical", "--data", pictures, "--bytes", 300, "-b", 700, "--limit", 1, "--json")
    rows = [row for row in ran.json if "missing" not in row]
    assert ran.code == 0 and {row["budget"] for row in rows} == {"300 bytes", "700 bytes"}
    assert all(row["samples"] == 1 and row["bytes"] > 0 for row in rows)


def test_sounds_have_opus(smalti: Smalti, sounds: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "sounds.html"
    ran = smalti("bench", "classical", "--data", sounds, "--kbps", 8, "--page", page, "--rate", 8_000)
    assert ran.code == 0 and "Opus" in ran.out and "kbit/s" in ran.out and str(page) in ran.out
    assert "<audio" in page.read_text() and "smalti bench classical" in page.read_text()


def test_reconstruct_ends_in_a_page(smalti: Smalti, pictures: Path, photo_folder: Path, tmp_path: Path) -> None:
    plain = smalti("bench", "reconstruct", "-t", photo_folder, "--data", pictures, "--size", 16, "--limit", 1, "--json")
    page = tmp_path / "page.html"
    ran = smalti(
        "bench", "reconstruct", "-t", photo_folder, "--data", pictures, "--size", 16, "--limit", 1, "--json",
        "--page", page, "--shown", 1,
    )  # fmt: skip
    assert ran.code == 0 and ran.json[0]["quality"] == plain.json[0]["quality"]
    html = page.read_text()
    assert html.count("<svg") == 2 and "perplexity" in html and "WebP" in html


def test_the_page_is_about_some_files_and_the_rows_about_all(
    smalti: Smalti, pictures: Path, photo_folder: Path
) -> None:
    given = ("bench", "reconstruct", "-t", photo_folder, "--data", pictures, "--size", 16)
    ran = smalti(*given, "--page-files", 1)
    assert ran.code == 0 and "open in a browser" in ran.out and "3 " in ran.out
    assert "1 file of" in Path("bench.html").read_text()
    Path("bench.html").unlink()
    for more in ("--no-page", "--json"):
        assert smalti(*given, more).code == 0 and not Path("bench.html").exists()
    both = smalti(*given, "--no-page", "--page", "x.html")
    assert both.code == 2 and "give one of them" in " ".join(both.err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "{pictures}"), "at how many bytes"),
        (("--data", "{pictures}", "--kbps", "1"), "sounds"),
        (("--data", "{photo}", "--bytes", "9"), "what is to be compared"),
        (("--data", "gone", "--bytes", "9"), "gone does not exist"),
    ],
)
def test_wrong_use_of_classical_is_code_2(
    smalti: Smalti, pictures: Path, photo_folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    given = [argument.format(pictures=pictures, photo=photo_folder) for argument in arguments]
    ran = smalti("bench", "classical", *given)
    assert ran.code == 2 and message in ran.err


def test_a_run_becomes_a_page(smalti: Smalti, tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    ran = smalti("bench", "training", tmp_path, "--page", tmp_path / "run.html")
    assert ran.code == 0 and "<svg" in (tmp_path / "run.html").read_text()
    assert smalti("bench", "training", tmp_path / "gone", "--page", tmp_path / "x.html").code == 2
