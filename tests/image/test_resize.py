"""Sizes and crops: extents against the rules' own words, pixels against plain averages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from smalti.errors import ConfigError, InputError
from smalti.image.resize import (
    CentreCrop,
    HalvingCentreCrop,
    HalvingRandomCrop,
    RandomCrop,
    Resize,
    ResizeShorter,
    Rule,
    apply_rules,
)
from tests.image.files import noise


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(noise(height, width))


def block_means(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor blocks as Pillow takes them: rows first, then columns, each rounded to bytes."""
    height, width, channels = pixels.shape
    rows = np.floor(pixels.reshape(height, width // factor, factor, channels).mean(2) + 0.5)
    return np.floor(rows.reshape(height // factor, factor, width // factor, channels).mean(1) + 0.5)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_the_shorter_side_gets_the_size_and_the_longer_its_share(width: int, height: int, size: int) -> None:
    resized = ResizeShorter(size=size)(Image.new("L", (width, height)))
    assert min(resized.size) == size
    assert max(resized.size) == size * max(width, height) // min(width, height)
    assert (resized.width <= resized.height) == (width <= height) or resized.width == resized.height


def test_rounding_of_the_longer_side_is_a_choice() -> None:
    image = picture(500, 333)
    assert ResizeShorter(size=256)(image).size == (384, 256)  # 384.38
    image = picture(375, 250)
    assert ResizeShorter(size=33)(image).size == (49, 33)  # 49.5
    assert ResizeShorter(size=33, rounding="nearest")(image).size == (50, 33)


def test_resize_to_an_extent() -> None:
    assert Resize(height=10, width=20, filter="lanczos")(picture(31, 17)).size == (20, 10)


def test_box_filter_averages_whole_blocks() -> None:
    pixels = noise(16, 24)
    shrunk = Resize(height=4, width=6, filter="box")(Image.fromarray(pixels))
    assert np.array_equal(np.asarray(shrunk), block_means(pixels, 4))


@pytest.mark.parametrize(("width", "height", "left", "top"), [(10, 8, 3, 2), (11, 8, 4, 2), (9, 7, 2, 2), (4, 4, 0, 0)])
def test_centre_crop_takes_the_middle(width: int, height: int, left: int, top: int) -> None:
    image = picture(width, height)
    assert np.array_equal(np.asarray(CentreCrop(size=4)(image)), np.asarray(image)[top : top + 4, left : left + 4])


def test_random_crops_cover_every_place_and_follow_the_generator() -> None:
    pixels = np.arange(6 * 5, dtype=np.uint8).reshape(5, 6)
    crop = RandomCrop(size=4)
    generator = torch.Generator().manual_seed(0)
    corners = {int(np.asarray(crop(Image.fromarray(pixels), generator))[0, 0]) for _ in range(200)}
    assert corners == {0, 1, 2, 6, 7, 8}
    again = [crop(Image.fromarray(pixels), torch.Generator().manual_seed(3)) for _ in range(2)]
    assert np.array_equal(np.asarray(again[0]), np.asarray(again[1]))


def test_halving_averages_2x2_blocks_until_less_than_twice_the_size() -> None:
    pixels = noise(64, 96)
    cropped = HalvingCentreCrop(size=16)(Image.fromarray(pixels))
    assert np.array_equal(np.asarray(cropped), block_means(block_means(pixels, 2), 2)[:, 4:20])


@given(st.integers(3, 300), st.integers(3, 300), st.integers(1, 48), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_halving_crops_fit_every_picture(width: int, height: int, size: int, seed: int) -> None:
    image = Image.new("RGB", (width, height))
    assert HalvingCentreCrop(size=size)(image).size == (size, size)
    assert HalvingRandomCrop(size=size)(image, torch.Generator().manual_seed(seed)).size == (size, size)


@pytest.mark.parametrize("rule", [CentreCrop(size=9), RandomCrop(size=9)])
def test_a_crop_larger_than_the_picture_is_refused(rule: CentreCrop | RandomCrop) -> None:
    with pytest.raises(InputError, match="8x20 is smaller than the crop of 9x9"):
        rule(picture(8, 20))


@pytest.mark.parametrize("rule", [ResizeShorter(size=256), HalvingCentreCrop(size=256)])
def test_a_strip_that_would_be_enlarged_beyond_all_memory_is_refused(rule: ResizeShorter | HalvingCentreCrop) -> None:
    with pytest.raises(InputError, match="would become 256x"):
        rule(Image.new("L", (1, 10_000_000)))


def test_rules_are_configurations_chosen_by_type() -> None:
    rules = TypeAdapter(list[Rule]).validate_python(
        [{"type": "resize-shorter", "size": 20}, {"type": "centre-crop", "size": 16}]
    )
    assert apply_rules(picture(50, 40), rules).size == (16, 16)
    with pytest.raises(ConfigError, match="size"):
        CentreCrop(size=0)
