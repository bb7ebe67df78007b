"""`smalti demo` as a user meets it; what it does is tested in tests/bench/test_demo.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Smalti


def test_it_prints_the_tables_and_where_the_page_is(
    smalti: Smalti, pictures: Path, sounds: Path, photo_folder: Path, speech_folder: Path, tmp_path: Path
) -> None:
    tokenizers = ("--image-tokenizer", photo_folder, "--audio-tokenizer", speech_folder)
    ran = smalti("demo", "--images", pictures, "--audio", sounds, "--out", tmp_path / "out", *tokenizers)
    page = tmp_path / "out" / "report" / "index.html"
    assert ran.code == 0 and page.is_file()
    assert f"open in a browser: {page}" in ran.out
    for expected in ("Photos", "Speech", "WebP, at its best scale", "Opus", "PSNR dB", "STOI"):
        assert expected in ran.out


def test_its_json_says_what_was_skipped(
    smalti: Smalti, pictures: Path, sounds: Path, photo_folder: Path, speech_folder: Path, tmp_path: Path
) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    tokenizers = ("--image-tokenizer", photo_folder, "--audio-tokenizer", speech_folder)
    ran = smalti("demo", "--images", pictures, "--audio", sounds, "-o", tmp_path / "out", *tokenizers, "--json")
    assert ran.code == 1
    (problem,) = ran.json["problems"]
    assert problem.startswith("broken.png was skipped")
    assert [row["codec"] for row in ran.json["tables"]["Speech"]] == [str(speech_folder), "Opus"]
    assert Path(ran.json["page"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images", "gone"), "gone does not exist"),
        (("--images", "{sounds}"), "holds no file with an image suffix"),
        (("--image-tokenizer", "no-such-thing"), "no system is called"),
        (("--limit", "0"), "--limit"),
    ],
)
def test_wrong_use_is_code_2(
    smalti: Smalti, sounds: Path, photo_folder: Path, speech_folder: Path, tmp_path: Path,
    arguments: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    tokenizers = ("--image-tokenizer", photo_folder, "--audio-tokenizer", speech_folder)
    given = [argument.format(sounds=sounds) for argument in arguments]
    ran = smalti("demo", *tokenizers, "--out", tmp_path / "out", *given)
    assert ran.code == 2 and message in ran.err and not (tmp_path / "out").exists()
