"""The classical codec at the same bytes: it fits, it could not do better, and it is the file that it says it is."""

from __future__ import annotations

import io
from fractions import Fraction

import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from smalti.bench.classical import PICTURE_CODECS, Coded, _highest, opus, pictures
from smalti.bench.reconstruction import criteria
from smalti.errors import ConfigError
from smalti.image.io import to_tensor
from tests.bench.conftest import tone
from tests.image.files import noise

PSNR = criteria("image")[0]


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """Smooth shapes with some grain."""
    grain = torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(0)) * 0.02
    return (to_tensor(Image.fromarray(noise(96, 128))) + grain).clamp(0, 1)


@given(steps=st.lists(st.integers(1, 50), min_size=1, max_size=40), budget=st.integers(0, 1000))
def test_the_highest_setting_that_fits_is_found(steps: list[int], budget: int) -> None:
    sizes = [sum(steps[: index + 1]) for index in range(len(steps))]
    setting, data = _highest(range(len(sizes)), budget, lambda index: bytes(sizes[index]))
    expected = max((index for index, size in enumerate(sizes) if size <= budget), default=0)
    assert (setting, len(data)) == (expected, sizes[expected])


@pytest.mark.parametrize("codec", PICTURE_CODECS)
@pytest.mark.parametrize("budget", [900, 1500, 4000])
def test_a_picture_fits_the_budget_and_one_quality_more_would_not(photo: Tensor, codec: str, budget: int) -> None:
    full, best = pictures(photo, budget, codec)
    for coded in (full, best):
        assert coded.fits and len(coded.data) <= budget and coded.codec == codec
        assert coded.decoded.shape == photo.shape
    quality = int(full.setting.removeprefix("quality "))
    image = Image.fromarray((photo.permute(1, 2, 0).numpy() * 255).round().astype("uint8"))
    assert len(PICTURE_CODECS[codec](image, quality)) == len(full.data)
    if quality < 100:
        assert len(PICTURE_CODECS[codec](image, quality + 1)) > budget


@pytest.mark.parametrize("codec", PICTURE_CODECS)
def test_the_best_scale_is_at_least_as_good_as_full_size(photo: Tensor, codec: str) -> None:
    full, best = pictures(photo, 900, codec)
    assert PSNR.value(photo, best.decoded) >= PSNR.value(photo, full.decoded)
    every = [pictures(photo, 900, codec, [Fraction(1, n)])[0] for n in (1, 2, 4)]
    assert PSNR.value(photo, best.decoded) >= max(PSNR.value(photo, each.decoded) for each in every) - 1e-9


@pytest.mark.parametrize("codec", PICTURE_CODECS)
def test_a_picture_is_a_whole_file_of_its_format(photo: Tensor, codec: str) -> None:
    full, _ = pictures(photo, 2000, codec)
    image = Image.open(io.BytesIO(full.data))
    assert image.format == codec.upper() and image.size == (128, 96)
    assert torch.equal(to_tensor(image.convert("RGB")), full.decoded)


@pytest.mark.parametrize("codec", PICTURE_CODECS)
def test_the_smallest_file_is_given_where_none_fits(photo: Tensor, codec: str) -> None:
    full, best = pictures(photo, 10, codec)
    assert not full.fits and full.setting == "quality 1"
    assert len(best.data) < len(full.data)


def test_a_single_pixel_is_a_picture() -> None:
    full, best = pictures(torch.rand(3, 1, 1), 100_000, "WebP")
    assert full.decoded.shape == best.decoded.shape == (3, 1, 1)


def test_other_codecs_are_refused_by_name(photo: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"GIF.*JPEG, WebP"):
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
