"""Measuring reconstructions: every number against one that is computed another way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from smalti.audio.io import read_audio, write_audio
from smalti.audio.speech import SpeechCodec
from smalti.bench import reconstruction
from smalti.bench.reconstruction import criteria, measure
from smalti.errors import InputError, MissingDependencyError, UnavailableError
from smalti.image.io import read_image, write_image
from smalti.image.photo import PhotoTokenizer
from smalti.store.media import Square, media
from smalti.store.plan import Input, by_suffix, find_inputs
from tests.bench.conftest import tone


def inputs_of(folder: Path) -> list[Input]:
    return find_inputs([folder], by_suffix({".png", ".wav"})).inputs


def test_quality_is_that_of_scikit_image(photos: Path, photo_tokenizer: PhotoTokenizer) -> None:
    row = measure(photo_tokenizer, inputs_of(photos), reference="tiny").row()
    psnr, ssim = [], []
    for file in ("0.png", "1.png"):
        original = np.asarray(Image.open(photos / file))
        decoded = photo_tokenizer.decode(photo_tokenizer.encode(read_image(photos / file)[None]))[0]
        pixels = (decoded.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        psnr.append(peak_signal_noise_ratio(original, pixels))
        ssim.append(
            structural_similarity(
                original, pixels, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
        )
    values = {entry["name"]: entry["value"] for entry in row["quality"]}
    assert values["PSNR"] == pytest.approx(np.mean(psnr), rel=1e-6)
    assert values["SSIM"] == pytest.approx(np.mean(ssim), rel=1e-6)
    assert [entry["samples"] for entry in row["quality"]] == [2, 2]


def test_bits_are_those_of_the_codes(photos: Path, photo_tokenizer: PhotoTokenizer) -> None:
    row = measure(photo_tokenizer, inputs_of(photos), reference="tiny").row()
    files = [photo_tokenizer.encode(read_image(photos / file)[None]).codes.numpy() for file in ("0.png", "1.png")]
    codes = np.concatenate([each.reshape(-1, each.shape[-1]) for each in files])  # (positions, slots of 16 codes)
    counts = [np.unique(slot, return_counts=True)[1] for slot in codes.T]
    entropy = sum(-(count / len(codes) * np.log2(count / len(codes))).sum() for count in counts)
    pixels = 48 * 64 + 41 * 53
    assert row["bits"]["unit"] == "bits per pixel"
    assert row["bits"]["nominal"] == pytest.approx(4 * codes.size / pixels)
    assert row["bits"]["entropy"] == pytest.approx(entropy * len(codes) / pixels)
    assert row["codebook"]["codes"]["slots"][0]["used"] == len(counts[0])


def test_a_file_that_is_none_is_reported_and_the_rest_measured(photos: Path, photo_tokenizer: PhotoTokenizer) -> None:
    done: list[int] = []
    row = measure(photo_tokenizer, inputs_of(photos), reference="tiny", report=done.append).row()
    assert row["samples"] == 2 and done == [1, 2, 3]
    (failed,) = row["failed"]
    assert failed["id"] == "broken.png" and "not an image" in failed["error"]


def test_rows_are_plain_json(photos: Path, sounds: Path, photo_tokenizer: PhotoTokenizer, codec: SpeechCodec) -> None:
    rows = [
        measure(photo_tokenizer, inputs_of(photos), reference="tiny").row(),
        measure(codec, inputs_of(sounds), reference="tiny").row(),
        measure(photo_tokenizer, [Input("gone.png", photos / "gone.png")], reference="tiny").row(),
    ]
    assert json.loads(json.dumps(rows, allow_nan=False)) == json.loads(json.dumps(rows))
    assert rows[2]["samples"] == 0 and rows[2]["bits"]["nominal"] is None


def test_speed_is_work_over_time(photos: Path, photo_tokenizer: PhotoTokenizer) -> None:
    tally = measure(photo_tokenizer, inputs_of(photos), reference="tiny")
    speed = tally.row()["speed"]
    assert speed["encode"]["per_second"] == pytest.approx(2 / tally.encode.seconds)
    assert speed["decode"]["cpu_seconds"] == pytest.approx(tally.decode.cpu_seconds / 2)


def test_size_crops_before_encoding(photos: Path, photo_tokenizer: PhotoTokenizer) -> None:
    tally = measure(photo_tokenizer, inputs_of(photos), reference="tiny", square=Square(32))
    assert tally.extent == 2 * 32 * 32 and tally.bits == 2 * 8 * 8 * 8  # two slots of 16 codes


def test_silence_has_no_value_where_it_has_none(sounds: Path, codec: SpeechCodec) -> None:
    tally = measure(codec, inputs_of(sounds), reference="tiny")
    row = tally.row()
    reasons = {each["label"]: each["reason"] for each in row["unscored"] if each["id"] == "silence.wav"}
    assert reasons["STOI"] == "the reference is silent" and "SI-SDR" in reasons
    samples = {entry["name"]: entry["samples"] for entry in row["quality"]}
    assert samples["mel distance"] == 2 and samples["STOI"] == 1 and samples["SI-SDR"] == 1
    assert row["bits"]["unit"] == "kbit/s"
    assert row["bits"]["nominal"] == pytest.approx(2 * 4 * 400 / 1000)  # two slots of 12 codes, 400 times a second


def test_rates_have_protocols_of_their_own_unless_one_is_asked_for(tmp_path: Path, codec: SpeechCodec) -> None:
    for rate in (16_000, 22_050):
        write_audio(tmp_path / f"{rate}.wav", tone(0.8, rate), rate)
    row = measure(codec, inputs_of(tmp_path), reference="tiny").row()
    stoi = [entry for entry in row["quality"] if entry["name"] == "STOI"]
    assert [entry["samples"] for entry in stoi] == [1, 1]
    assert len({entry["protocol"] for entry in stoi}) == 2
    row = measure(codec, inputs_of(tmp_path), reference="tiny", rate=16_000).row()
    assert [entry["samples"] for entry in row["quality"] if entry["name"] == "STOI"] == [2]


def test_what_is_scored_is_what_decode_gives(sounds: Path, codec: SpeechCodec) -> None:
    tally = measure(codec, [Input("tone.wav", sounds / "tone.wav")], reference="tiny")
    waveform, rate = read_audio(sounds / "tone.wav")
    decoded = codec.decode(codec.encode(waveform[None], sample_rate=rate))[0]
    for criterion in criteria("audio", rate):
        expected = pytest.approx(criterion.value(waveform, decoded), rel=1e-9)
        assert tally.scores[criterion.metric.protocol].mean == expected


def test_identical_pictures_are_capped_and_not_infinite() -> None:
    pixels = torch.rand(3, 20, 20)
    values = {criterion.label: criterion.value(pixels, pixels) for criterion in criteria("image")}
    assert values == {"PSNR": 100.0, "SSIM": pytest.approx(1.0)}


def test_judges_of_speech_are_criteria_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def labels(*installed: str, transcripts: bool = False) -> set[str]:
        monkeypatch.setattr(reconstruction, "find_spec", lambda name: name if name in installed else None)
        return {criterion.label for criterion in criteria("audio", 16_000, transcripts=transcripts)}

    always = labels()
    assert {"STOI", "eSTOI", "mel distance"} <= always
    assert labels("pesq") - always == {"PESQ"}
    assert labels("speechmos", "onnxruntime") - always == {"DNSMOS"} and labels("speechmos") == always
    assert labels("pocketsphinx", "jiwer") - always == {"rel. WER"} and labels("pocketsphinx") == always
    assert labels("pocketsphinx", "jiwer", transcripts=True) - always == {"rel. WER", "WER"}


def test_a_criterion_that_reads_compares_with_the_transcript() -> None:
    class Spoken:
        def values(self, texts: list[str], reconstruction: torch.Tensor) -> torch.Tensor:
            return torch.tensor([float(len(texts[0]))])

    criterion = reconstruction.Criterion("WER", "", "lower", Spoken(), reads=True)  # type: ignore[arg-type]
    sound = torch.zeros(1, 10)
    assert criterion.value(sound, sound, "four") == 4
    with pytest.raises(InputError, match="no transcript"):
        criterion.value(sound, sound)


def test_a_missing_package_is_no_fault_of_the_file(
    photos: Path, photo_tokenizer: PhotoTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: object, **options: object) -> None:
        raise MissingDependencyError("pip install something")

    monkeypatch.setattr("smalti.image.io.read_image", missing)
    with pytest.raises(MissingDependencyError, match="something"):
        measure(photo_tokenizer, inputs_of(photos), reference="tiny")


def test_other_modalities_are_refused_by_name() -> None:
    with pytest.raises(UnavailableError, match="eeg"):
        criteria("eeg")


def test_a_square_is_cut_from_the_middle_with_or_without_scaling(tmp_path: Path) -> None:
    pixels = torch.zeros(3, 60, 100)
    pixels[:, :, 50:] = 1.0
    file = tmp_path / "half.png"
    write_image(file, pixels)
    whole = media("image").read(file, Square(30)).tensor()
    middle = media("image").read(file, Square(30, scaled=False)).tensor()
    assert whole.shape == middle.shape == (3, 30, 30)
    assert torch.equal(middle, pixels[:, 15:45, 35:65])
    assert whole[0, 0, :14].max() < 0.5 < whole[0, 0, 16:].min()
