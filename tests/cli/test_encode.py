"""`smalti encode`, `decode` and `verify`: exit codes, messages and JSON, as a user and a script meet them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from smalti.audio.io import read_audio
from smalti.image.io import read_image
from smalti.image.photo import PhotoTokenizer
from smalti.store import TokenStore
from tests.cli.conftest import Smalti

QUICK = ("--workers", 0, "--threads", 1)


@pytest.fixture
def store(smalti: Smalti, pictures: Path, tmp_path: Path, photo_folder: Path) -> Path:
    assert smalti("encode", pictures, "-o", tmp_path / "store", "-t", photo_folder, *QUICK).code == 0
    return tmp_path / "store"


# --- encode ----------------------------------------------------------------------------------------------------------


def test_encoding_says_what_was_done(smalti: Smalti, pictures: Path, tmp_path: Path, photo_folder: Path) -> None:
    (pictures / "notes.txt").write_text("no picture, and not taken for one")
    ran = smalti("encode", pictures, "-o", tmp_path / "store", "-t", photo_folder, *QUICK)
    assert ran.code == 0 and not ran.err
    assert ran.out.strip().startswith("3 encoded, 0 failed, 0 already there, 1 skipped; ")
    assert "of the time" in ran.out


def test_its_json_is_the_summary(smalti: Smalti, pictures: Path, tmp_path: Path, photo_folder: Path) -> None:
    ran = smalti("encode", pictures, "-o", tmp_path / "store", "-t", photo_folder, *QUICK, "--json")
    assert ran.code == 0
    assert {key: ran.json[key] for key in ("encoded", "failed", "already", "skipped")} == {
        "encoded": 3, "failed": 0, "already": 0, "skipped": 0,
    }  # fmt: skip
    assert ran.json["store"] == str(tmp_path / "store") and 0 <= ran.json["model_share"] <= 1


def test_the_same_command_again_finds_everything_there(
    smalti: Smalti, store: Path, pictures: Path, photo_folder: Path
) -> None:
    ran = smalti("encode", pictures, "-o", store, "-t", photo_folder, *QUICK)
    assert ran.code == 0 and ran.out.strip().startswith("0 encoded, 0 failed, 3 already there")


def test_bad_files_are_code_1_and_the_rest_is_encoded(
    smalti: Smalti, pictures: Path, tmp_path: Path, photo_folder: Path
) -> None:
    (pictures / "broken.jpg").write_bytes(b"")
    command = ("encode", pictures, "-o", tmp_path / "store", "-t", photo_folder, *QUICK)
    ran = smalti(*command)
    assert ran.code == 1 and "3 encoded, 1 failed" in ran.out and "errors.jsonl" in ran.out
    (error,) = map(json.loads, (tmp_path / "store" / "errors.jsonl").read_text().splitlines())
    assert error["id"] == "broken.jpg" and "empty" in error["error"]
    (pictures / "broken.jpg").unlink()
    shutil.copy(pictures / "0.png", pictures / "broken.jpg")
    assert smalti(*command).code == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": ["gone"]}, "gone does not exist"),
        ({"tokenizer": "no-such-thing"}, "no system is called"),
        ({"tokenizer": "vqgan/mingpt"}, "mingpt"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_what_can_not_begin_is_code_2_and_one_line(
    smalti: Smalti, pictures: Path, tmp_path: Path, photo_folder: Path, change: dict[str, object], message: str
) -> None:
    given = {"paths": [pictures], "tokenizer": photo_folder, "device": "cpu", **change}
    ran = smalti(
        "encode", *given["paths"], "-o", tmp_path / "store", "-t", given["tokenizer"], "--device", given["device"]
    )
    assert ran.code == 2 and message in ran.err and ran.err.startswith("smalti: ")
    assert len(ran.err.splitlines()) == 1 and not (tmp_path / "store").exists()


def test_a_folder_without_media_is_code_2(smalti: Smalti, tmp_path: Path, photo_folder: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text")
    ran = smalti("encode", tmp_path / "texts", "-o", tmp_path / "store", "-t", photo_folder, *QUICK)
    assert ran.code == 2 and "nothing to encode" in ran.err


def test_another_tokenizer_can_not_go_on_with_a_store(
    smalti: Smalti, store: Path, sounds: Path, speech_folder: Path
) -> None:
    ran = smalti("encode", sounds, "-o", store, "-t", speech_folder, *QUICK)
    assert ran.code == 2 and "another tokenizer" in ran.err


def test_missing_options_are_code_2_and_named(smalti: Smalti, pictures: Path) -> None:
    ran = smalti("encode", pictures)
    assert ran.code == 2 and "--out" in ran.err


# --- decode ----------------------------------------------------------------------------------------------------------


def test_decoding_writes_what_the_codes_say(smalti: Smalti, store: Path, tmp_path: Path, photo_folder: Path) -> None:
    ran = smalti("decode", store, "-o", tmp_path / "back")
    assert ran.code == 0 and ran.out.strip() == f"3 files written to {tmp_path / 'back'}, 0 failed"
    tokenizer = PhotoTokenizer.load(photo_folder)
    for name in ("0.png", "1.png", "2.png"):
        expected = tokenizer.decode(TokenStore(store)[name])[0]
        assert (read_image(tmp_path / "back" / name) - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_some_of_them_in_another_format(smalti: Smalti, store: Path, tmp_path: Path) -> None:
    ran = smalti("decode", store, "-o", tmp_path / "back", "--select", "[01]*", "--suffix", "webp", "--json")
    assert ran.code == 0 and ran.json["failed"] == []
    assert sorted(ran.json["written"]) == [str(tmp_path / "back" / name) for name in ("0.webp", "1.webp")]


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--select", "nothing*"), "nothing*"), (("--suffix", "wav"), "wav"), (("-t", "no-such-thing"), "no system")],
)
def test_what_can_not_be_decoded_is_code_2(
    smalti: Smalti, store: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    ran = smalti("decode", store, "-o", tmp_path / "back", *options)
    assert ran.code == 2 and message in ran.err and not (tmp_path / "back").exists()


def test_a_tokenizer_that_is_gone_is_named(smalti: Smalti, pictures: Path, tmp_path: Path, photo_folder: Path) -> None:
    moved = shutil.copytree(photo_folder, tmp_path / "moved")
    smalti("encode", pictures, "-o", tmp_path / "store", "-t", moved, *QUICK)
    shutil.rmtree(moved)
    ran = smalti("decode", tmp_path / "store", "-o", tmp_path / "back")
    assert ran.code == 2 and "moved" in ran.err
    assert smalti("decode", tmp_path / "store", "-o", tmp_path / "back", "-t", photo_folder).code == 0


def test_sounds_come_back_at_their_rate_and_length(
    smalti: Smalti, sounds: Path, tmp_path: Path, speech_folder: Path
) -> None:
    assert smalti("encode", sounds, "-o", tmp_path / "store", "-t", speech_folder, *QUICK).code == 0
    assert smalti("decode", tmp_path / "store", "-o", tmp_path / "back").code == 0
    waveform, rate = read_audio(tmp_path / "back" / "noise.wav")
    assert waveform.shape == (1, 8_000) and rate == 8_000


# --- verify ----------------------------------------------------------------------------------------------------------


def test_a_sound_store_is_code_0(smalti: Smalti, store: Path) -> None:
    ran = smalti("verify", store, "--again", 2)
    assert ran.code == 0
    assert "1 shards, 3 samples: sound" in ran.out and "2 samples encoded anew: 0 of " in ran.out


def test_its_findings_are_json(smalti: Smalti, store: Path) -> None:
    ran = smalti("verify", store, "--again", 3, "--json")
    assert ran.code == 0 and ran.json["sound"] and ran.json["problems"] == []
    assert ran.json["again"]["samples"] == 3 and ran.json["again"]["differing"] == 0
    assert smalti("verify", store, "--json").json["again"] is None


def test_damage_is_code_1_and_names_the_shard(smalti: Smalti, store: Path) -> None:
    (shard,) = (store / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    ran = smalti("verify", store)
    assert ran.code == 1 and shard.name in ran.out and "NOT sound" in ran.out
    ran = smalti("verify", store, "--json")
    assert ran.code == 1 and not ran.json["sound"]


def test_files_that_changed_are_code_1(smalti: Smalti, store: Path, pictures: Path) -> None:
    shutil.copy(pictures / "1.png", pictures / "0.png")
    (pictures / "2.png").unlink()
    ran = smalti("verify", store, "--again", 3)
    assert ran.code == 1 and "2.png" in ran.out and ": 0 of" not in ran.out


def test_what_is_no_store_is_code_2(smalti: Smalti, tmp_path: Path) -> None:
    ran = smalti("verify", tmp_path)
    assert ran.code == 2 and "is not a token store" in ran.err
