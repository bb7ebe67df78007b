"""Judges of speech that nobody trains for: DNSMOS as speechmos computes it, word error rates counted by hand."""

from __future__ import annotations

import importlib.util
from importlib.resources import files

import numpy as np
import pytest
import torch
from torch import Tensor

from smalti.audio import metrics
from smalti.audio.io import read_audio, resample
from smalti.audio.metrics import DNSMOS, Recogniser, RelativeWER, TranscriptWER
from smalti.errors import ConfigError, InputError, MissingDependencyError

RATE = 16_000


def has(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


needs_dnsmos = pytest.mark.skipif(not has("speechmos", "onnxruntime"), reason="speechmos, onnxruntime not installed")
needs_words = pytest.mark.skipif(not has("pocketsphinx", "jiwer"), reason="pocketsphinx, jiwer not installed")


def buzz(seconds: float, noise: float) -> Tensor:
    """(1,1,T): a swelling vowel, and noise."""
    time = np.arange(round(seconds * RATE)) / RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 12)) * (1 + np.sin(2 * np.pi * 3 * time))
    sound = 0.1 * voice + noise * np.random.default_rng(0).standard_normal(len(time))
    return torch.from_numpy(np.clip(sound, -1, 1)).float()[None, None]


# What speechmos 0.0.1.1 with librosa 0.11 gave for these sounds: (seconds, noise) -> overall, signal, background. The
# first is repeated until it fills a window, the last has two windows.
SPEECHMOS = {
    (2.0, 0.0): (2.278897, 2.817143, 3.402640),
    (2.0, 0.05): (1.404242, 2.841451, 1.494645),
    (11.5, 0.01): (1.852761, 3.021072, 2.125306),
}


@needs_dnsmos
@pytest.mark.parametrize("case", SPEECHMOS)
def test_dnsmos_is_that_of_speechmos(case: tuple[float, float]) -> None:
    sound = buzz(*case)
    parts = ("overall", "signal", "background")[: 3 if case == (2.0, 0.05) else 1]  # a window takes a second or so
    values = [float(DNSMOS(RATE, part=part).values(sound, sound)) for part in parts]
    assert values == pytest.approx(SPEECHMOS[case][: len(parts)], abs=2e-4)


@needs_dnsmos
@pytest.mark.skipif(not has("librosa"), reason="speechmos itself needs librosa, which no extra installs")
def test_dnsmos_is_what_speechmos_says_today() -> None:
    from speechmos import dnsmos

    sound = buzz(3.3, 0.02)
    expected = dnsmos.run(sound[0, 0].double().numpy(), RATE)
    assert float(DNSMOS(RATE).values(sound, sound)) == pytest.approx(float(expected["ovrl_mos"]), abs=2e-4)


@pytest.fixture(scope="module")
def speech() -> Tensor:
    """(1,1,T): the clip of the demo, at 16 kHz."""
    waveform, rate = read_audio(str(files("smalti.bench") / "assets" / "speech.flac"))
    return resample(waveform, rate, RATE)[None, :, : 6 * RATE]


def noisy(speech: Tensor, level: float) -> Tensor:
    return speech + level * torch.randn(speech.shape, generator=torch.Generator().manual_seed(0))


@needs_dnsmos
def test_dnsmos_dislikes_noise_and_hears_the_reconstruction_alone(speech: Tensor) -> None:
    metric = DNSMOS(RATE)
    values = [float(metric.values(noisy(speech, 1.0), noisy(speech, level))) for level in (0.0, 0.01, 0.1)]
    assert values == sorted(values, reverse=True) and values[0] > values[2] + 0.3


def test_dnsmos_names_its_part() -> None:
    protocols = {DNSMOS(rate, part=part).protocol for rate in (8_000, RATE) for part in ("overall", "background")}
    assert len(protocols) == 4 and "dnsmos-p835-overall/16000Hz/mono/per-sample-mean" in protocols
    with pytest.raises(ConfigError, match="overall"):
        DNSMOS(RATE, part="all")  # type: ignore[arg-type]


@pytest.fixture
def dictated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recogniser whose sounds say a word per sample, by its level in tenths."""
    spoken = {0: "", 1: "the", 2: "cat", 3: "sat", 4: "down"}

    def words(self: Recogniser, waveform: Tensor) -> str:
        return " ".join(filter(None, (spoken[round(10 * float(level))] for level in waveform)))

    monkeypatch.setattr(Recogniser, "words", words)


def sounds(*levels: list[int]) -> Tensor:
    return torch.tensor(levels).float()[:, None] / 10


@needs_words
@pytest.mark.usefixtures("dictated")
def test_word_errors_are_those_counted_by_hand() -> None:
    original = sounds([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 0, 1])
    heard = sounds([1, 2, 3, 4], [1, 3, 3, 4], [1, 3, 0, 0], [0, 0, 0, 0], [1, 2, 3, 4])
    # nothing wrong; a word replaced; two of four gone; all gone; three words too many beside one
    assert RelativeWER(RATE).values(original, heard).tolist() == [0, 0.25, 0.5, 1, 3]


@needs_words
@pytest.mark.usefixtures("dictated")
def test_a_transcript_is_compared_as_words_and_the_mean_is_over_samples() -> None:
    metric = TranscriptWER(RATE)
    metric.update(["The cat -- sat 'down'!"], sounds([1, 2, 3, 4]))
    metric.update(["the cat", "Down."], sounds([1, 3], [4, 0]))
    assert metric.compute() == pytest.approx((0 + 0.5 + 0) / 3)
    other = TranscriptWER(RATE)
    other.update(["cat"], sounds([1]))
    metric.merge(other)
    assert metric.compute() == pytest.approx(1.5 / 4)
    for texts in (["!"], ["one", "two"]):
        with pytest.raises(InputError):
            metric.values(texts, sounds([1]))
    with pytest.raises(ConfigError):
        metric.merge(TranscriptWER(8_000))


@needs_words
@pytest.mark.usefixtures("dictated")
def test_an_original_without_words_has_no_value() -> None:
    with pytest.raises(InputError, match="no word"):
        RelativeWER(RATE).values(sounds([0, 0]), sounds([1, 2]))


@needs_words
def test_words_do_not_depend_on_what_was_heard_before(speech: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recogniser, "_heard", {})
    recogniser, short = Recogniser(), speech[0, 0, : 2 * RATE]
    first = recogniser.words(short)
    recogniser.words(speech[0, 0, 3 * RATE :])
    monkeypatch.setattr(Recogniser, "_heard", {})
    assert recogniser.words(short) == first != ""


@needs_words
def test_an_untouched_sound_loses_no_word_and_noise_takes_some(speech: Tensor) -> None:
    metric = RelativeWER(RATE)
    assert float(metric.values(speech, speech)) == 0
    assert float(metric.values(speech, noisy(speech, 0.5))) > 0.5
    assert "pocketsphinx-" in metric.protocol and " " not in metric.protocol


@pytest.mark.parametrize("metric", [DNSMOS, RelativeWER])
def test_a_missing_package_names_the_extra(metric: type[DNSMOS], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str, extra: str) -> None:
        raise MissingDependencyError(f"{module}: pip install 'smalti[{extra}]'")

    monkeypatch.setattr(metrics, "require", absent)
    metrics._dnsmos.cache_clear()
    metrics._pocketsphinx.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"smalti\[bench\]"):
        metric(RATE).values(buzz(0.2, 0.1), buzz(0.2, 0.1))
