"""The demo as a whole, with tiny tokenizers: what it writes, what it says, and what a second run does."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path

import pytest
import torch
from PIL import Image

from smalti.audio.io import read_audio
from smalti.audio.speech import SpeechCodec
from smalti.bench import demo
from smalti.bench.demo import Demo, demo_photos, demo_speech, own_files, run_demo
from smalti.bench.exhibit import store_key
from smalti.errors import InputError, MissingDependencyError, UnavailableError
from smalti.image.io import read_image
from smalti.image.photo import PhotoTokenizer
from smalti.store import TokenStore
from tests.image.files import noise


def run(photos: Path, sounds: Path, out: Path, photo_tokenizer: PhotoTokenizer, codec: SpeechCodec) -> Demo:
    tokenizers = [(photo_tokenizer, "tiny-photo"), (codec, "tiny-speech")]
    sources = [own_files(photos, "image", 12), own_files(sounds, "audio", 12)]
    return run_demo(tokenizers, sources, out, lambda doing: None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def ran(photos: Path, sounds: Path, out: Path, photo_tokenizer: PhotoTokenizer, codec: SpeechCodec) -> Demo:
    return run(photos, sounds, out, photo_tokenizer, codec)


def test_the_page_shows_what_went_through_the_store(ran: Demo, out: Path) -> None:
    html = ran.page.read_text()
    for expected in ("tiny-photo", "tiny-speech", "0.png", "1.png", "tone.wav", "silence.wav", "WebP", "JPEG", "Opus",
                     "Verified: it is sound", "gave no other codes", "psnr/uint8", "stoi/16000Hz"):  # fmt: skip
        assert expected in html
    assert html.count("<audio") == 6 and html.count("<polyline") == 4  # a curve for each slot of each
    stores = {path.name.split("-")[0]: TokenStore(path) for path in out.glob("*.store")}
    assert stores["photos"].ids == ["0.png", "1.png"] and len(stores["speech"]) == 2


def test_the_table_compares_at_the_same_bytes(ran: Demo, photos: Path, photo_tokenizer: PhotoTokenizer) -> None:
    (title, photo), (_, speech) = ran.comparisons
    sizes = {row[0]: float(row[1].replace(",", "")) for row in photo.rows}
    tokens = [photo_tokenizer.encode(read_image(photos / name)[None]) for name in ("0.png", "1.png")]
    assert title == "Photos"
    assert sizes["tiny-photo"] == pytest.approx(sum(-(-each.bits // 8) for each in tokens) / 2, abs=0.5)
    assert list(sizes) == ["tiny-photo", "WebP, at its best scale", "WebP, full size", "JPEG, at its best scale",
                           "JPEG, full size"]  # fmt: skip
    assert [row[0] for row in speech.rows] == ["tiny-speech", "Opus"]
    assert "No STOI of silence.wav" in speech.note


def test_bad_files_are_skipped_by_name(ran: Demo) -> None:
    (problem,) = ran.problems
    assert problem.startswith("broken.png was skipped") and "not an image" in problem
    assert "broken.png was skipped" in ran.page.read_text()


def test_a_second_run_encodes_nothing_anew(
    ran: Demo, photos: Path, sounds: Path, out: Path, photo_tokenizer: PhotoTokenizer, codec: SpeechCodec
) -> None:
    first = ran.page.read_text()
    shards = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    again = run(photos, sounds, out, photo_tokenizer, codec)
    assert shards.items() <= {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}.items()
    assert [table for _, table in again.comparisons] == [table for _, table in ran.comparisons]
    assert again.page == ran.page and len(first) == pytest.approx(len(again.page.read_text()), abs=200)


def test_changed_files_and_other_codes_get_a_store_of_their_own(
    tmp_path: Path, photo_tokenizer: PhotoTokenizer
) -> None:
    def key(tokenizer: PhotoTokenizer) -> str:
        return store_key(tokenizer, own_files(tmp_path, "image", 12).paths)

    Image.fromarray(noise(48, 64)).save(tmp_path / "0.png")
    first = key(photo_tokenizer)
    assert key(photo_tokenizer) == first
    Image.fromarray(noise(48, 64, seed=5)).save(tmp_path / "0.png")
    changed = key(photo_tokenizer)
    torch.manual_seed(1)
    other = PhotoTokenizer.Config.tiny().build()
    assert len({first, changed, key(other)}) == 3  # type: ignore[arg-type]


def test_nothing_to_show_is_an_error_that_says_why(tmp_path: Path, photo_tokenizer: PhotoTokenizer) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    source = own_files(tmp_path / "broken.png", "image", 12)
    with pytest.raises(InputError, match=r"of 1 file none could be shown: broken\.png was skipped: .*not an image"):
        run_demo([(photo_tokenizer, "tiny")], [source], tmp_path / "out", lambda doing: None)


def test_a_limit_is_said(photos: Path) -> None:
    source = own_files(photos, "image", 2)
    assert [path.name for path in source.paths] == ["0.png", "1.png"]
    assert source.about.endswith("the first 2 of 3.")
    with pytest.raises(InputError, match="no file with an audio suffix"):
        own_files(photos, "audio", 2)


def test_modalities_without_an_exhibit_are_refused_by_name(tmp_path: Path, photo_tokenizer: PhotoTokenizer) -> None:
    class Odd(PhotoTokenizer):
        modality = "eeg"

    with pytest.raises(UnavailableError, match="eeg"):
        demo.exhibit_of(Odd(photo_tokenizer.config), "odd", demo.Source([], ""), tmp_path)


# --- where the inputs come from --------------------------------------------------------------------------------------


def test_the_photos_lie_in_the_wheel_of_scikit_image() -> None:
    source = demo_photos()
    assert [path.name for path in source.paths] == ["astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg"]
    assert all(min(read_image(path).shape[1:]) >= 300 for path in source.paths)


def test_without_scikit_image_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"smalti\[demo\].*--images"):
        demo_photos()


def test_speech_is_the_recording_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = tmp_path / "assets" / "beckett.wav"
    clip.parent.mkdir()
    clip.write_bytes(b"")
    spec = importlib.machinery.ModuleSpec("moonshine_onnx", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(demo, "find_spec", lambda name: spec)
    assert demo_speech().paths == [clip] and "recording" in demo_speech().about


def test_else_it_is_a_synthetic_clip_that_ships_and_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    source = demo_speech()
    (clip,) = source.paths
    waveform, rate = read_audio(clip)
    assert "synthetic" in source.about and clip.stat().st_size <= 100_000
    assert rate == 16_000 and waveform.shape[-1] > 3 * rate and 0.5 < float(waveform.abs().max()) < 1
