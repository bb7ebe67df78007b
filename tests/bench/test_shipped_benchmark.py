"""benchmarks/shipped.py: the sets hold what the lists name, and rows are those of bench."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import shipped
from benchmarks.shipped import Held, examined, held_out_photos, held_out_speech, kodak, listed, show
from smalti.image.photo import PhotoTokenizer
from smalti.store.media import Square
from tests.image.files import noise

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data sets at {DATA}")


@needs_data
def test_the_sets_are_those_that_training_leaves_out() -> None:
    photos, speech = held_out_photos(DATA), held_out_speech(DATA)
    every = sorted((DATA / "imagenet_sample" / "train").glob("*.jpg"))
    assert photos == every[::18] and all(path.is_file() for path in photos)
    assert len(speech) == 16 and {path.name.split("-")[0] for path in speech} == {"1688", "3005"}
    assert len(kodak(DATA)) == 18


def test_lists_have_no_comments() -> None:
    assert listed("held-out-speakers.txt") == ["libri-1688", "libri-3005"]
    assert not any("#" in line or line != line.strip() for line in listed("held-out-photos.txt"))


def test_a_row_is_that_of_bench(
    tmp_path: Path, photo_tokenizer: PhotoTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(noise(40, 48)).save(tmp_path / "a.png")
    monkeypatch.setattr(shipped.systems, "load", lambda name: photo_tokenizer)
    row = examined("tiny", Held("photos", lambda data: [data / "a.png"], Square(32)), tmp_path)
    assert row["set"] == "photos" and row["samples"] == 1 and row["bits"]["nominal"] == pytest.approx(8 / 16)
    assert "tiny on 1 of photos: 0.5 bits per pixel" in show(row)
