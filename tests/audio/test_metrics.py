"""Metrics on waveforms: golden values of the packages and formulas they come from, and what always holds."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smalti.audio.losses import multi_scale_mel_distance
from smalti.audio.metrics import (
    PESQ,
    SISDR,
    STOI,
    LogMelDistance,
    MelDistance,
    MultiResolutionSTFTDistance,
    STFTDistance,
    WaveformMetric,
)
from smalti.errors import ConfigError, InputError, MissingDependencyError
from tests.conftest import DEFAULT_GOLDEN
from tests.parity.golden import Case, compare, read_case

HAS_PESQ = importlib.util.find_spec("pesq") is not None
CASE = DEFAULT_GOLDEN / "discrete-audio-tokens" / "metrics.json"

# Outputs of the golden case that this module defines. The case gives no rate for the mel loss of Vocos: it was computed
# as if the signal were at 24 kHz.
GOLDEN: dict[str, WaveformMetric] = {
    "mel_distance_db": MelDistance(16_000),
    "stft_distance_db": STFTDistance(16_000),
    "mel_l1_vocos": LogMelDistance(24_000),
    "si_sdr": SISDR(16_000),
    "stoi": STOI(16_000),
    "estoi": STOI(16_000, extended=True),
    "pesq_wb": PESQ(16_000),
    "pesq_nb": PESQ(16_000, band="narrow"),
}
EVERY: list[Callable[[int], WaveformMetric]] = [
    MelDistance,
    STFTDistance,
    LogMelDistance,
    MultiResolutionSTFTDistance,
    SISDR,
    STOI,
]


@pytest.fixture(scope="module")
def golden() -> Case:
    if not CASE.exists():
        pytest.skip(f"no golden case at {CASE}")
    return read_case(CASE)


def waveforms(case: Case, name: str) -> Tensor:
    return (case.inputs[name].double() / 32768)[None, None]


@pytest.mark.parametrize("name", GOLDEN)
def test_values_are_those_of_the_packages(golden: Case, name: str) -> None:
    if name.startswith("pesq") and not HAS_PESQ:
        pytest.skip("the extra `pesq` is not installed")
    reference = waveforms(golden, "ref_int16")
    for degraded in (each for each in golden.inputs if each.startswith("deg_")):
        output = f"{degraded.removeprefix('deg_int16_')}/{name}"
        value = GOLDEN[name].values(reference, waveforms(golden, degraded))[0]
        comparison = compare(output, value, golden.outputs[output].double(), golden.rule(output))
        assert comparison.passed, str(comparison)


def test_the_loss_over_scales_is_codec_superbs(golden: Case) -> None:
    reference = waveforms(golden, "ref_int16")
    for degraded in (each for each in golden.inputs if each.startswith("deg_")):
        output = f"{degraded.removeprefix('deg_int16_')}/mel_loss_dac2"
        value = multi_scale_mel_distance(reference, waveforms(golden, degraded), 16_000)[0].double()
        comparison = compare(output, value, golden.outputs[output].double(), golden.rule(output))
        assert comparison.passed, str(comparison)


def speech_like(batch: int = 3, rate: int = 16_000) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    envelope = torch.sin(torch.arange(rate) * 8 * torch.pi / rate).square()
    x = torch.randn(batch, 1, rate, generator=draw) * envelope / 5
    return x, x + torch.randn(batch, 1, rate, generator=draw) / 50


@pytest.mark.parametrize("metric", EVERY)
def test_parts_merge_into_the_value_of_the_whole(metric: Callable[[int], WaveformMetric]) -> None:
    x, y = speech_like()
    whole, one, other = metric(16_000), metric(16_000), metric(16_000)
    whole.update(x, y)
    one.update(x[:1], y[:1])
    other.update(x[1:], y[1:])
    one.merge(other)
    assert one.compute() == pytest.approx(whole.compute(), rel=1e-9)
    with pytest.raises(ConfigError):
        one.merge(metric(8_000))


@pytest.mark.parametrize("metric", EVERY)
def test_protocols_are_one_word_each(metric: Callable[[int], WaveformMetric]) -> None:
    assert " " not in metric(16_000).protocol
    assert metric(16_000).protocol != metric(48_000).protocol


def test_protocols_differ() -> None:
    protocols = {each.protocol for each in GOLDEN.values()} | {MultiResolutionSTFTDistance(16_000).protocol}
    assert len(protocols) == len(GOLDEN) + 1
    assert json.dumps(sorted(protocols))


def test_an_identical_reconstruction_has_the_best_values() -> None:
    x, _ = speech_like(1)
    assert float(SISDR(16_000).values(x, x)) > 60
    assert float(STOI(16_000).values(x, x)) == pytest.approx(1)
    assert float(MelDistance(16_000).values(x, x)) == 0


def test_si_sdr_of_orthogonal_noise_is_its_level() -> None:
    x = torch.sin(torch.arange(1_000) * 2 * torch.pi / 10)[None, None]
    noise = torch.cos(torch.arange(1_000) * 2 * torch.pi / 10)[None, None] / 10
    assert float(SISDR(16_000).values(x, 3 * (x + noise))) == pytest.approx(20, abs=1e-4)


def test_the_longer_waveform_is_cut_and_channels_are_averaged() -> None:
    x, y = speech_like(1)
    metric = SISDR(16_000)
    assert torch.equal(metric.values(x, torch.cat([y, y], -1)), metric.values(x, y))
    stereo = torch.cat([1.5 * x, 0.5 * x], dim=1)
    torch.testing.assert_close(metric.values(stereo, y), metric.values(x, y))


def test_other_rates_are_resampled() -> None:
    x, y = speech_like(1, rate=24_000)
    assert float(MelDistance(24_000).values(x, y)) > 0
    assert "from-24000Hz" in MelDistance(24_000).protocol


def test_silent_and_short_references_have_no_value() -> None:
    silence = torch.zeros(1, 1, 16_000)
    for metric in (SISDR(16_000), STOI(16_000)):
        with pytest.raises(InputError, match="silent"):
            metric.values(silence, silence)
        assert metric.count == 0
    with pytest.raises(InputError, match=r"0\.4 s"):
        STOI(16_000).values(torch.randn(1, 1, 2_000), torch.randn(1, 1, 2_000))


def test_pesq_refuses_silence_or_says_that_it_is_not_installed() -> None:
    silence = torch.zeros(1, 1, 16_000)
    expected = (InputError, "silent") if HAS_PESQ else (MissingDependencyError, r"smalti\[pesq\]")
    with pytest.raises(expected[0], match=expected[1]):
        PESQ(16_000).values(silence, silence)
    with pytest.raises(ConfigError):
        PESQ(16_000, band="full")  # type: ignore[arg-type]


def test_what_is_no_pair_of_waveforms_is_refused() -> None:
    good = torch.randn(2, 1, 100)
    for bad in (good[0], good[..., :0], good.int(), good[:1], torch.full_like(good, float("nan"))):
        with pytest.raises(InputError):
            SISDR(16_000).values(good, bad)


def test_nothing_gathered_has_no_value() -> None:
    with pytest.raises(InputError, match="nothing"):
        SISDR(16_000).compute()
