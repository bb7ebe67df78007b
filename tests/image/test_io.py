"""Reading and writing image files: every format and mode that people have, and everything that must be refused."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smalti.errors import InputError
from smalti.image.io import (
    MAX_PIXELS,
    encode_image,
    open_image,
    read_image,
    to_image,
    write_image,
)
from smalti.image.resize import CentreCrop
from tests.image.files import GREY, RGB, bomb, chunk, noise, png, saved

PHOTO = noise(20, 30)


def as_array(pixels: torch.Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).numpy()


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_files_give_their_pixels(format: str) -> None:
    pixels = read_image(saved(Image.fromarray(PHOTO), format), dtype=torch.uint8)
    assert pixels.shape == (3, 20, 30)
    assert np.array_equal(as_array(pixels), PHOTO)


def test_webp_lossless_and_jpeg() -> None:
    image = Image.fromarray(PHOTO)
    assert np.array_equal(as_array(read_image(saved(image, "WEBP", lossless=True), dtype=torch.uint8)), PHOTO)
    decoded = as_array(read_image(saved(image, "JPEG", quality=95), dtype=torch.uint8)).astype(int)
    assert np.abs(decoded - PHOTO).mean() < 4


def test_floats_are_the_bytes_over_255() -> None:
    data = saved(Image.fromarray(PHOTO), "PNG")
    assert torch.equal(read_image(data), read_image(data, dtype=torch.uint8).float() / 255)
    assert read_image(data).dtype == torch.float32


def test_paths_bytes_and_files_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "a photo\nwith a newline.png"
    path.write_bytes(saved(Image.fromarray(PHOTO), "PNG"))
    with path.open("rb") as file:
        from_file = read_image(file)
    assert torch.equal(read_image(path), from_file)
    assert torch.equal(read_image(str(path)), read_image(path.read_bytes()))


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(Image.fromarray(PHOTO), "PNG"))
    assert np.array_equal(as_array(read_image(path, dtype=torch.uint8)), PHOTO)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_one_pixel(value: int) -> None:
    assert torch.equal(
        read_image(saved(Image.new("L", (1, 1), value), "PNG"), dtype=torch.uint8), torch.full((3, 1, 1), value)
    )


# How a picture lies in the file for each EXIF orientation, from the standard's words: which side of the picture the
# file's first row and first column are.
STORED = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.transpose(1, 0, 2),  # left, top
    6: lambda upright: upright[:, ::-1].transpose(1, 0, 2),  # right, top
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: lambda upright: upright[::-1].transpose(1, 0, 2),  # left, bottom
}


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](PHOTO)))
    options = {"lossless": True} if format == "WEBP" else {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
    pixels = as_array(read_image(saved(stored, format, exif=exif, **options), dtype=torch.uint8))
    assert pixels.shape == PHOTO.shape
    assert np.abs(pixels.astype(int) - PHOTO).mean() <= (4 if format == "JPEG" else 0)


def test_damaged_exif_leaves_the_pixels() -> None:
    data = saved(Image.fromarray(PHOTO), "JPEG", quality=90)
    rubbish = b"Exif\0\0II*\0\xff\xff\xff\xff"
    damaged = data[:2] + b"\xff\xe1" + struct.pack(">H", len(rubbish) + 2) + rubbish + data[2:]
    assert torch.equal(read_image(damaged), read_image(data))


def test_grey_becomes_three_equal_channels() -> None:
    grey = PHOTO[:, :, 0]
    pixels = as_array(read_image(saved(Image.fromarray(grey), "PNG"), dtype=torch.uint8))
    assert all(np.array_equal(pixels[:, :, channel], grey) for channel in range(3))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_on_white(mode: str) -> None:
    channels = noise(16, 16, len(mode), seed=1)
    pixels = as_array(read_image(saved(Image.fromarray(channels, mode), "PNG"), dtype=torch.uint8)).astype(int)
    alpha = channels[:, :, -1:] / 255
    expected = channels[:, :, :-1] * alpha + 255 * (1 - alpha)
    assert np.abs(pixels - expected).max() <= 1


def test_palette_with_transparency() -> None:
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) % 3).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    pixels = as_array(read_image(saved(image, "PNG", transparency=1), dtype=torch.uint8))
    colours = {(255, 0, 0), (255, 255, 255), (0, 0, 255)}  # green is the transparent one
    assert {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()} == colours
    assert tuple(pixels[0, 1]) == (255, 255, 255)


def test_a_transparent_colour_of_rgb_and_grey() -> None:
    red = Image.new("RGB", (2, 1), (255, 0, 0))
    red.putpixel((1, 0), (0, 0, 9))
    pixels = as_array(read_image(saved(red, "PNG", transparency=(255, 0, 0)), dtype=torch.uint8))
    assert pixels.tolist() == [[[255, 255, 255], [0, 0, 9]]]


def test_bilevel() -> None:
    image = Image.fromarray(PHOTO[:, :, 0] > 128)
    pixels = as_array(read_image(saved(image, "PNG"), dtype=torch.uint8))
    assert np.array_equal(pixels[:, :, 0] > 0, PHOTO[:, :, 0] > 128)
    assert set(np.unique(pixels)) <= {0, 255}


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk(format: str) -> None:
    ink = noise(16, 16, 4, seed=2)
    ink[:, :, 3] //= 4
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    pixels = as_array(read_image(saved(Image.fromarray(ink, "CMYK"), format, **options), dtype=torch.uint8))
    expected = (255 - ink[:, :, :3].astype(float)) * (255 - ink[:, :, 3:].astype(float)) / 255
    assert np.abs(pixels - expected).mean() < (3 if format == "JPEG" else 1)


def test_16_bit_grey_is_rounded_to_8() -> None:
    values = np.array([[0, 1, 128, 129], [257, 32767, 65406, 65535]], dtype=np.uint16)
    pixels = read_image(png(4, 2, 16, GREY, [row.astype(">u2").tobytes() for row in values]), dtype=torch.uint8)
    assert np.array_equal(as_array(pixels)[:, :, 0], np.round(values / 65535 * 255).astype(np.uint8))
    tiff = read_image(saved(Image.fromarray(values), "TIFF"), dtype=torch.uint8)
    assert torch.equal(tiff, pixels)


def test_16_bit_grey_with_a_transparent_value() -> None:
    values = np.array([[1000, 50000]], dtype=np.uint16)
    data = png(2, 1, 16, GREY, [values.astype(">u2").tobytes()], chunk(b"tRNS", struct.pack(">H", 1000)))
    assert read_image(data, dtype=torch.uint8)[0].tolist() == [[255, round(50000 / 257)]]


def test_16_bit_colour_keeps_the_upper_byte() -> None:
    values = np.array([[[0x1234, 0x80FF, 0xFFFF]]], dtype=np.uint16)
    pixels = read_image(png(1, 1, 16, RGB, [values.astype(">u2").tobytes()]), dtype=torch.uint8)
    assert pixels.flatten().tolist() == [0x12, 0x80, 0xFF]


def test_the_photo_of_a_phones_multi_picture_jpeg_is_read() -> None:
    photo, depth = Image.fromarray(PHOTO), Image.fromarray(PHOTO[:, :, 0])
    data = saved(photo, "MPO", save_all=True, append_images=[depth.convert("RGB")], quality=95)
    assert read_image(data).shape == (3, 20, 30)


def test_rules_are_applied_to_the_upright_picture() -> None:
    assert read_image(saved(Image.fromarray(PHOTO), "PNG"), [CentreCrop(size=8)]).shape == (3, 8, 8)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [12000, 20000])
def test_bombs_are_refused_before_they_are_decoded(side: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side))
    start = time.perf_counter()
    with pytest.raises(InputError, match="pixels"):
        read_image(path)
    assert time.perf_counter() - start < 0.5


def test_the_cap_can_be_lowered() -> None:
    data = saved(Image.fromarray(PHOTO), "PNG")
    assert read_image(data, max_pixels=600).shape == (3, 20, 30)
    with pytest.raises(InputError, match="30x20"):
        read_image(data, max_pixels=599)
    assert 12000**2 > MAX_PIXELS > 108_000_000


def test_a_missing_empty_or_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.png' does not exist"):
        read_image(tmp_path / "nothing.png")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(InputError, match=r"empty\.jpg.* it is empty"):
        read_image(tmp_path / "empty.jpg")
    (tmp_path / "text.png").write_text("hello, I am no picture")
    with pytest.raises(InputError, match=r"text\.png.*JPEG, PNG.*hello"):
        read_image(tmp_path / "text.png")
    with pytest.raises(InputError):
        read_image(tmp_path)
    with pytest.raises(InputError, match="empty"):
        read_image(b"")


@pytest.mark.parametrize("format", ["GIF", "PPM", "EPS", "PDF", "TGA", "ICO"])
def test_other_formats_never_reach_their_decoder(format: str) -> None:
    with pytest.raises(InputError, match="not an image in JPEG, PNG"):
        read_image(saved(Image.fromarray(PHOTO), format))


@pytest.mark.parametrize("format", ["WEBP", "PNG", "TIFF"])
def test_animations_and_pages_are_refused(format: str) -> None:
    frames = [Image.fromarray(noise(8, 8, seed=seed)) for seed in range(3)]
    with pytest.raises(InputError, match="several pictures"):
        read_image(saved(frames[0], format, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_ranges_that_are_not_known_are_refused(mode: str) -> None:
    image = Image.new(mode, (4, 4)) if mode != "LAB" else Image.frombytes("LAB", (4, 4), bytes(48))
    with pytest.raises(InputError, match=f"mode {mode}"):
        read_image(saved(image, "TIFF"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_refused(format: str) -> None:
    data = saved(Image.fromarray(noise(64, 64)), format)
    for share in (0.01, 0.1, 0.5, 0.9):
        with pytest.raises(InputError):
            read_image(data[: int(len(data) * share)])


SAMPLES = [
    saved(Image.fromarray(noise(12, 12)), "JPEG"),
    saved(Image.fromarray(noise(12, 12)), "PNG"),
    saved(Image.fromarray(noise(12, 12)), "WEBP"),
    saved(Image.fromarray(noise(12, 12)), "TIFF", compression="tiff_lzw"),
    saved(Image.fromarray(noise(12, 12)).convert("P"), "PNG"),
    saved(Image.fromarray(noise(12, 12)), "BMP"),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8))
def test_damaged_bytes_give_pixels_or_an_input_error(data: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        pixels = read_image(bytes(damaged), max_pixels=10**6)
    except InputError:
        return
    assert pixels.ndim == 3 and pixels.shape[0] == 3
    assert bool(((pixels >= 0) & (pixels <= 1)).all())


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".webp", ".PNG"])
def test_lossless_writing_is_the_inverse_of_reading(suffix: str, tmp_path: Path) -> None:
    pixels = torch.from_numpy(PHOTO).permute(2, 0, 1)
    path = write_image(tmp_path / f"a{suffix}", pixels)
    assert torch.equal(read_image(path, dtype=torch.uint8), pixels)
    assert torch.equal(read_image(write_image(path, pixels / 255), dtype=torch.uint8), pixels)


def test_quality_makes_smaller_jpeg_and_webp_files() -> None:
    pixels = torch.from_numpy(noise(64, 64)).permute(2, 0, 1)
    for format in ("jpeg", "webp"):
        sizes = [len(encode_image(pixels, format, quality)) for quality in (10, 50, 95)]
        assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_floats_are_rounded_and_clamped() -> None:
    values = torch.tensor([-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 254.6 / 255, 1.7])
    image = to_image(values.expand(3, 1, 6))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(1, 3, 4, 4),
        torch.zeros(4, 4, 4),
        torch.zeros(3, 0, 4),
        torch.full((3, 2, 2), torch.nan),
        torch.zeros(3, 2, 2, dtype=torch.int64),
    ],
)
def test_what_is_no_image_is_not_written(pixels: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_image(tmp_path / "a.png", pixels)
    assert not list(tmp_path.iterdir())


def test_other_suffixes_and_sizes_beyond_the_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.gif"):
        write_image(tmp_path / "a.gif", torch.zeros(3, 2, 2))
    with pytest.raises(InputError, match="webp"):
        write_image(tmp_path / "a.webp", torch.zeros(3, 1, 17000))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_image(tmp_path / "a.png", torch.zeros(3, 2, 2))
    before = target.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_image(target, torch.ones(3, 2, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert target.read_bytes() == before


def test_the_longest_file_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".png")
    assert open_image(write_image(path, torch.zeros(3, 2, 2))).size == (2, 2)
