"""Comparisons at equal bytes: budgets are kept or said to be broken, means are means, and pages hold it all."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.audio.io import write_audio
from smalti.audio.speech import SpeechCodec
from smalti.bench import comparison, reconstruction
from smalti.bench.classical import PICTURE_CODECS, SOUND_CODECS
from smalti.bench.comparison import ORIGINAL, OWN, Comparison, Plan, Row, compare, modality_of
from smalti.bench.comparison_page import comparison_page
from smalti.bench.reconstruction import criteria, unit
from smalti.bench.transcripts import read_transcripts
from smalti.errors import ConfigError, InputError
from smalti.image.io import read_image
from smalti.image.photo import PhotoTokenizer
from smalti.store.media import Square
from smalti.store.plan import Input, by_suffix, find_inputs
from tests.bench.conftest import tone
from tests.bench.test_report import Outline
from tests.image.files import noise

QUICK = {name: PICTURE_CODECS[name] for name in ("JPEG", "WebP")}


@pytest.fixture(autouse=True)
def quick_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "PICTURE_CODECS", QUICK)


def inputs_of(folder: Path) -> list[Input]:
    return find_inputs([folder], by_suffix({".png", ".wav"})).inputs


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(2):
        Image.fromarray(noise(64, 96, seed=seed)).save(folder / f"{seed}.png")
    return folder


def row_of(found: Comparison, codec: str, way: str = "", budget: str = "") -> Row:
    (row,) = (each for each in found.rows if (each.codec, each.way) == (codec, way) and budget in each.budget)
    return row


def test_classical_codecs_get_the_bytes_of_the_tokenizer(pictures: Path, photo_tokenizer: PhotoTokenizer) -> None:
    found = compare("image", inputs_of(pictures), [(photo_tokenizer, "tiny")], Plan(square=Square(64)))
    own = row_of(found, "tiny")
    assert own.sizes == [16 * 16] * 2 and own.bits == pytest.approx(0.5)  # a byte per 4 x 4 pixels
    for codec in QUICK:
        for way in ("full size", "at its best scale"):
            row = row_of(found, codec, way, "the bytes of tiny")
            assert len(row.sizes) == 2 and row.over == sum(size > 256 for size in row.sizes)
    assert next(row.kind for row in found.budgets["the bytes of tiny"]) == "tokenizer"
    assert own.mean("PSNR") == found.tallies[0].row()["quality"][0]["value"]


def test_values_are_those_of_the_files(pictures: Path) -> None:
    found = compare("image", inputs_of(pictures), [], Plan((900, 1500), shown=1))
    psnr = criteria("image")[0]
    for name in ("900 bytes", "1,500 bytes"):
        row = row_of(found, "WebP", "full size", name)
        expected = []
        for file, size in zip(("0.png", "1.png"), row.sizes, strict=True):
            pixels = read_image(pictures / file)
            coded = comparison.PictureLadder(pixels, "WebP").at(int(name.split()[0].replace(",", "")))["full size"]
            assert len(coded.data) == size
            expected.append(psnr.value(pixels, coded.decoded))
        assert row.mean("PSNR") == pytest.approx(np.mean(expected)) and row.bytes == np.mean(row.sizes)
    (example,) = found.examples
    assert example.id == "0.png" and [each.label for each in example.versions] == list(QUICK)


def test_what_can_not_get_down_to_the_budget_says_so(pictures: Path) -> None:
    found = compare("image", inputs_of(pictures), [], Plan((20,)))
    row = row_of(found, "JPEG", "full size")
    assert row.over == 2 and row.bytes > 20 and row.data(found.judges)["over_budget"] == 2
    assert "†" in comparison_page([found], "x", "y").html()


def test_a_tokenizer_stands_beside_the_smallest_budget_that_it_keeps(
    pictures: Path, photo_tokenizer: PhotoTokenizer
) -> None:
    def budget(*sizes: int) -> str:
        plan = Plan(sizes, square=Square(64))
        return row_of(compare("image", inputs_of(pictures)[:1], [(photo_tokenizer, "tiny")], plan), "tiny").budget

    assert budget(1000, 256) == "256 bytes" and budget(255) == OWN


def test_files_that_can_not_be_read_are_named_and_the_rest_compared(
    photos: Path, photo_tokenizer: PhotoTokenizer
) -> None:
    for tokenizers in ([(photo_tokenizer, "tiny")], []):
        found = compare("image", inputs_of(photos), tokenizers, Plan((500,)))
        assert [each.id for each in found.failed] == ["broken.png"]
        assert all(len(row.sizes) == 2 for row in found.rows)


def test_curves_rise(pictures: Path, photo_tokenizer: PhotoTokenizer) -> None:
    found = compare("image", inputs_of(pictures), [(photo_tokenizer, "tiny")], Plan(square=Square(64), curves=True))
    for rows in found.curves.values():
        assert len(rows) == 4  # half, once, twice and four times its bits
        values = [row.mean("PSNR") or 0.0 for row in rows]
        assert values == sorted(values)


def test_sounds_are_compared_at_bit_rates(tmp_path: Path, codec: SpeechCodec) -> None:
    write_audio(tmp_path / "tone.wav", tone(1.0), 16_000)
    found = compare("audio", inputs_of(tmp_path), [(codec, "tiny")], Plan(kbps=(40, 3.2)))
    assert row_of(found, "tiny").budget == "3.2 kbit/s" and list(found.budgets) == ["40 kbit/s", "3.2 kbit/s"]
    assert row_of(found, ORIGINAL, budget="3.2").mean("STOI") == pytest.approx(1)
    low, high = (row_of(found, "Opus", budget=name) for name in ("3.2 kbit/s", "40 kbit/s"))
    assert low.over == 1 and high.over == 0 and high.bits <= 40.1
    assert row_of(found, ORIGINAL, budget="3.2").sizes == [32_000]
    if "Codec2" not in found.missing:
        assert row_of(found, "Codec2", budget="3.2").settings == ["mode 3200"]


def test_a_codec_that_is_missing_has_a_row_that_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = replace(SOUND_CODECS["Codec2"], absent=lambda: "apt install codec2")
    monkeypatch.setattr(comparison, "SOUND_CODECS", {**SOUND_CODECS, "Codec2": absent})
    write_audio(tmp_path / "tone.wav", tone(0.6), 16_000)
    found = compare("audio", inputs_of(tmp_path), [], Plan(kbps=(8,)))
    assert found.data()[-1] == {"codec": "Codec2", "kind": "classical", "missing": "apt install codec2"}
    assert "apt install codec2" in comparison_page([found], "x", "y").html()


def test_a_page_holds_plots_tables_examples_and_its_command(
    pictures: Path, tmp_path: Path, photo_tokenizer: PhotoTokenizer, codec: SpeechCodec
) -> None:
    write_audio(tmp_path / "tone.wav", tone(0.6), 16_000)
    plan = Plan(square=Square(64), curves=True, shown=2)
    found = compare("image", inputs_of(pictures), [(photo_tokenizer, "<i>tiny")], plan)
    heard = compare("audio", inputs_of(tmp_path), [(codec, "tiny speech")], replace(plan, shown=1))
    html = comparison_page([found, heard], "some/folder", "smalti bench classical <data>").html()
    outline = Outline()
    outline.feed(html)
    assert not outline.open and all(reference.startswith("data:") for reference in outline.references)
    assert "<i>tiny" not in html and "smalti bench classical &lt;data&gt;" in html
    labels = [judge.label for judge in heard.judges if judge.label in ("STOI", "PESQ", "DNSMOS")]
    assert html.count("<svg") == 2 + len(labels)
    assert html.count("<audio") == 1 + len(heard.examples[0].versions)
    assert html.count("<img") == 2 * (1 + 1 + len(QUICK)) + 1 + len(heard.examples[0].versions)


def test_rows_are_plain_json(pictures: Path) -> None:
    found = compare("image", inputs_of(pictures), [], Plan((900,)))
    rows = json.loads(json.dumps(found.data(), allow_nan=False))
    assert rows[0]["bits"]["value"] == pytest.approx(8 * rows[0]["bytes"] / (64 * 96))
    assert {entry["name"] for entry in rows[0]["quality"]} == {"PSNR", "SSIM"}


def test_settings_are_the_commonest_and_how_many_others() -> None:
    row = Row("WebP", "", "classical", "", unit("image"))
    for setting in ("a", "b", "a"):
        row.add(1, 1.0, {}, setting)
    assert row.setting == "a and 1 other"


def test_what_can_not_be_compared_is_refused(pictures: Path, codec: SpeechCodec) -> None:
    for modality, tokenizers, plan, message in (
        ("image", [], Plan(), "--bytes"),
        ("image", [], Plan(kbps=(1,)), "sounds"),
        ("image", [(codec, "speech")], Plan(), "audio"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare(modality, inputs_of(pictures), tokenizers, plan)
    assert modality_of(["a.PNG", "b.txt"]) == "image" and modality_of(["a.flac"]) == "audio"
    for names in (["a.png", "b.wav"], ["c.txt"], []):
        with pytest.raises(InputError, match="what is to be compared"):
            modality_of(names)


def test_transcripts_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("file", "text", "x"), ("a/b.wav", "Hello", ""), ("c.wav", "", "")])
    assert read_transcripts(file) == {"a/b.wav": "Hello", "b.wav": "Hello"}
    file.write_text("name,words\n")
    with pytest.raises(InputError, match="columns file and text"):
        read_transcripts(file)
    with pytest.raises(InputError, match="can't be read"):
        read_transcripts(tmp_path / "gone.csv")


def test_transcripts_reach_the_criterion(tmp_path: Path, codec: SpeechCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoken:
        protocol = "spoken"

        def values(self, texts: list[str], reconstruction: torch.Tensor) -> torch.Tensor:
            return torch.tensor([float(len(texts[0]))])

    criterion = reconstruction.Criterion("WER", "", "lower", Spoken(), reads=True)  # type: ignore[arg-type]
    judged = lambda modality, rate=0, transcripts=False: criteria(modality, rate)[:1] + (criterion,) * transcripts  # noqa: E731
    for module in (comparison, reconstruction):
        monkeypatch.setattr(module, "criteria", judged)
    for name in ("one.wav", "two.wav"):
        write_audio(tmp_path / name, tone(0.3), 16_000)
    found = compare("audio", inputs_of(tmp_path), [(codec, "tiny")], Plan(transcripts={"one.wav": "four"}))
    assert row_of(found, "tiny").values["WER"] == [4.0] and row_of(found, "Opus").values["WER"] == [4.0]
    assert {each.id for _, each in found.unscored if each.label == "WER"} == {"two.wav"}
