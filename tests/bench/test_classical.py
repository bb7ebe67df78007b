"""The classical codec at the same bytes: it fits, it could not do better, and it is the file that it says it is."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from fractions import Fraction
from importlib.resources import files

import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from smalti.audio.io import read_audio, resample
from smalti.audio.metrics import STOI
from smalti.bench.classical import CODEC2, PICTURE_CODECS, Coded, PictureLadder, codec2, highest, opus, pictures
from smalti.bench.classical.sound import CODEC2_HELP
from smalti.bench.reconstruction import criteria
from smalti.errors import ConfigError, UnavailableError
from smalti.image.io import to_tensor
from tests.bench.conftest import tone
from tests.image.files import noise

PSNR = criteria("image")[0]
CODECS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(codec.missing), reason=codec.missing))
    for name, codec in PICTURE_CODECS.items()
]


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """Smooth shapes with some grain."""
    grain = torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(0)) * 0.02
    return (to_tensor(Image.fromarray(noise(96, 128))) + grain).clamp(0, 1)


@given(steps=st.lists(st.integers(1, 50), min_size=1, max_size=40), budget=st.integers(0, 1000))
def test_the_highest_setting_that_fits_is_found(steps: list[int], budget: int) -> None:
    sizes = [sum(steps[: index + 1]) for index in range(len(steps))]
    setting, data = highest(range(len(sizes)), budget, lambda index: bytes(sizes[index]))
    expected = max((index for index, size in enumerate(sizes) if size <= budget), default=0)
    assert (setting, len(data)) == (expected, sizes[expected])


@pytest.mark.parametrize("codec", CODECS)
def test_a_picture_fits_the_budget_and_one_setting_more_would_not(photo: Tensor, codec: str) -> None:
    ladder = PictureLadder(photo, codec)
    settings, encode = PICTURE_CODECS[codec].settings, PICTURE_CODECS[codec].encode
    image = Image.fromarray((photo.permute(1, 2, 0).numpy() * 255).round().astype("uint8"))
    for budget in (1500, 4000):
        full, best = ladder.first_and_best(budget)
        for coded in (full, best):
            assert coded.fits and len(coded.data) <= budget and coded.codec == codec
            assert coded.decoded.shape == photo.shape
        (setting,) = (each for each in settings if PICTURE_CODECS[codec].describe(each) == full.setting)
        assert len(encode(image, setting)) == len(full.data)
        if setting != settings[-1]:
            assert len(encode(image, setting + 1)) > budget


@pytest.mark.parametrize("codec", CODECS)
def test_the_best_scale_is_at_least_as_good_as_full_size(photo: Tensor, codec: str) -> None:
    full, best = pictures(photo, 1200, codec)
    assert PSNR.value(photo, best.decoded) >= PSNR.value(photo, full.decoded)
    every = [pictures(photo, 1200, codec, [Fraction(1, n)])[0] for n in (1, 2, 4)]
    assert PSNR.value(photo, best.decoded) >= max(PSNR.value(photo, each.decoded) for each in every) - 1e-9


@pytest.mark.parametrize("codec", CODECS)
def test_a_picture_is_a_whole_file_of_its_format(photo: Tensor, codec: str) -> None:
    full, _ = pictures(photo, 2000, codec)
    image = Image.open(io.BytesIO(full.data))
    assert image.format == codec.upper().replace(" ", "") and image.size == (128, 96)
    assert torch.equal(to_tensor(image.convert("RGB")), full.decoded)


@pytest.mark.parametrize("codec", CODECS)
def test_the_smallest_file_is_given_where_none_fits(photo: Tensor, codec: str) -> None:
    full, best = pictures(photo, 10, codec)
    assert not full.fits and full.setting == PICTURE_CODECS[codec].describe(PICTURE_CODECS[codec].settings[0])
    assert len(best.data) <= len(full.data)


def test_a_file_that_fits_is_preferred_to_one_that_does_not(photo: Tensor) -> None:
    smallest = pictures(photo, 10, "JPEG")[0].data
    full, best = pictures(photo, len(smallest) - 1, "JPEG")
    assert not full.fits and best.fits


@pytest.mark.parametrize("codec", CODECS)
def test_budgets_do_not_depend_on_those_before_them(photo: Tensor, codec: str) -> None:
    ladder = PictureLadder(photo, codec)
    asked = {budget: ladder.first_and_best(budget) for budget in (3000, 900, 1500)}
    for one, other in zip(asked[900], pictures(photo, 900, codec), strict=True):
        assert (one.setting, one.data) == (other.setting, other.data) and torch.equal(one.decoded, other.decoded)


def test_a_codec_that_this_pillow_lacks_says_so(photo: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    without = replace(PICTURE_CODECS["AVIF"], feature="no such feature")
    monkeypatch.setitem(PICTURE_CODECS, "AVIF", without)  # type: ignore[arg-type]
    with pytest.warns(UserWarning), pytest.raises(UnavailableError, match=r"AVIF.*pip install"):
        pictures(photo, 1000, "AVIF")


def test_a_single_pixel_is_a_picture() -> None:
    for codec in ("WebP", "JPEG 2000"):
        full, best = pictures(torch.rand(3, 1, 1), 100_000, codec)
        assert full.decoded.shape == best.decoded.shape == (3, 1, 1)


def test_other_codecs_are_refused_by_name(photo: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"GIF.*JPEG, JPEG 2000, WebP"):
        pictures(photo, 1000, "GIF")


def check_opus(coded: Coded, waveform: Tensor) -> None:
    assert soundfile.info(io.BytesIO(coded.data)).subtype == "OPUS"
    assert coded.decoded.shape == (1, waveform.shape[-1])


def test_opus_fits_where_it_can() -> None:
    waveform = tone(1.5)
    coded = opus(waveform, 16_000, 4000)
    check_opus(coded, waveform)
    assert coded.fits and len(coded.data) > 3000
    better = opus(waveform, 16_000, 12_000)
    distance = criteria("audio", 16_000)[0]
    assert distance.value(waveform, better.decoded) < distance.value(waveform, coded.decoded)


def test_opus_at_its_lowest_rate_says_how_many_bytes_it_took() -> None:
    waveform = tone(1.5).repeat(2, 1)
    coded = opus(waveform, 16_000, 200)
    check_opus(coded, waveform)
    assert not coded.fits and coded.setting.startswith("6 kbit/s")


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100])
def test_opus_takes_any_rate(rate: int) -> None:
    waveform = tone(0.6, rate)
    check_opus(opus(waveform, rate, 10), waveform)


# --- Codec2 ----------------------------------------------------------------------------------------------------------

needs_codec2 = pytest.mark.skipif(shutil.which("c2enc") is None, reason=CODEC2_HELP)


@needs_codec2
def test_codec2_takes_the_bytes_of_its_mode() -> None:
    waveform = tone(1.21)  # 31 frames of 40 ms, the last one a part
    for name, mode in CODEC2.items():
        size = -(-(31 if mode.frame == 320 else 61) * mode.bits // 8)
        coded = codec2(waveform, 16_000, size)
        assert coded.setting == f"mode {name}" and len(coded.data) == size and coded.fits
        assert coded.decoded.shape == waveform.shape
        assert mode.bit_rate == float(name.removesuffix("C"))


@needs_codec2
def test_codec2_below_its_lowest_mode_says_how_many_bytes_it_took() -> None:
    coded = codec2(tone(1.2).repeat(2, 1), 16_000, 10)
    assert not coded.fits and coded.setting == "mode 700C" and len(coded.data) == 105


@needs_codec2
@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_codec2_takes_any_rate(rate: int) -> None:
    waveform = tone(0.6, rate)
    assert codec2(waveform, rate, 1000).decoded.shape == waveform.shape


@needs_codec2
@pytest.mark.parametrize("mode", ["700C", "1300", "3200"])
def test_codec2_is_in_time(mode: str) -> None:
    waveform, rate = read_audio(str(files("smalti.bench") / "assets" / "speech.flac"))
    waveform = resample(waveform[:, : 4 * rate], rate, 8_000)
    decoded = codec2(waveform, 8_000, int(CODEC2[mode].bit_rate * 4 / 8)).decoded
    value = STOI(8_000).values(waveform[None], decoded[None])
    for shift in (-160, 160):
        assert value > STOI(8_000).values(waveform[None], decoded.roll(shift, -1)[None]), shift


def test_without_codec2_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(UnavailableError, match="apt install codec2"):
        codec2(tone(0.2), 16_000, 100)
