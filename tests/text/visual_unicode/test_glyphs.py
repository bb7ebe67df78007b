"""Pictures of tokens: where ink is, what the disturbance does, the order of bits, and what looks alike."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from smalti.errors import InputError, UnavailableError
from smalti.text.visual_unicode import Disturbance, Drawing, GlyphPainter, find_font
from smalti.text.visual_unicode import glyphs as drawing
from smalti.text.visual_unicode.glyphs import is_easy, polar_order, split_rasters
from tests.text.visual_unicode.material import FONT

SMALL = Disturbance(rotation=4, shift=2, noise=0.01)  # of the published vocabulary of 65536
PRINTABLE = [chr(code) for code in range(33, 127)]


@pytest.fixture(scope="module")
def painter() -> GlyphPainter:
    return GlyphPainter(Drawing(font=FONT, disturbance=SMALL))


def test_every_character_has_a_cell_and_is_centred_in_it(painter: GlyphPainter) -> None:
    picture = painter.raster("o.W")
    assert picture.shape == (32, 96) and picture.dtype == np.uint8
    for index in range(3):
        rows = np.nonzero((picture[:, 32 * index : 32 * index + 32] < 128).any(1))[0]
        assert abs((rows[0] + rows[-1]) / 2 - 15.5) <= 1.5
    assert np.array_equal(picture[:, 32:64], painter.raster("."))


def disturbed_step_by_step(raster: np.ndarray[Any, Any], limits: tuple[float, int, float, bool]) -> Any:
    """The published function, written down as the sheet describes it."""
    rotation, shift, noise, blur = limits
    random.seed(42)
    np.random.seed(42)
    image = Image.fromarray(raster)
    image = image.rotate(random.uniform(-rotation, rotation), expand=0, fillcolor=255)
    paper = Image.new("L", image.size, 255)
    paper.paste(image, (random.randint(-shift, shift), random.randint(-shift, shift)))
    pixels = np.array(paper)
    pixels[np.random.rand(*pixels.shape) < noise] = 0
    image = Image.fromarray(pixels)
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(radius=0.5))
    image = image.point(lambda value: 0 if value < 128 else 255).convert("1", dither=Image.Dither.NONE)
    return np.array(image.resize((raster.shape[0], raster.shape[0]), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_disturbance_is_the_published_function(size: int) -> None:
    for settings, limits in ((SMALL, (4, 2, 0.01, True)), (Disturbance(), (7, 3, 0.03, True))):
        painter = GlyphPainter(Drawing(size=size, font=FONT, disturbance=settings))
        for token in ("a", "the", "ный", "<pad>", "<unused_65535>"):
            expected = disturbed_step_by_step(painter.raster(token), limits)
            assert np.array_equal(painter.disturbed(painter.raster(token), easy=True), 1 - expected)
        for token in ("ש", "한국", "你好世"):
            expected = disturbed_step_by_step(painter.raster(token), (0, 0, 0.001, False))
            assert np.array_equal(painter.disturbed(painter.raster(token), easy=False), 1 - expected)


def test_scripts_are_told_apart() -> None:
    assert all(map(is_easy, ("a", "ß", "Ȁ", "ω", "Ж", "ԥ", "ա", "the", "<pad>", "\u024f", "\u0370", "\u058f")))
    assert not any(map(is_easy, ("א", "ا", "가", "你", "ɐ", "a가", "\u0590", "\u0250", "\u036f", "\u2019")))


@pytest.mark.parametrize("size", [4, 32, 64])
def test_bits_are_read_from_the_middle_outwards(size: int) -> None:
    keys = [
        (math.hypot(x - size / 2, y - size / 2), math.atan2(y - size / 2, x - size / 2), x, y)
        for y in range(size)
        for x in range(size)
    ]
    assert polar_order(size).tolist() == sorted(range(size * size), key=keys.__getitem__)


def test_bits_are_the_pixels_in_that_order(painter: GlyphPainter) -> None:
    ink = painter.disturbed(painter.raster("g"), easy=True)
    assert np.array_equal(painter.bits(["g"])[0], ink.reshape(-1)[polar_order(32)])
    assert painter.bits([]).shape == (0, 1024)


def cosines(painter: GlyphPainter, tokens: list[str]) -> Any:
    bits = painter.bits(tokens).astype(float)
    centred = bits - bits.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    return centred @ centred.T


def test_what_looks_alike_is_near(painter: GlyphPainter) -> None:
    near = cosines(painter, PRINTABLE)
    np.fill_diagonal(near, -1)
    found = {letter: near[PRINTABLE.index(letter)] for letter in "I8eO"}
    nearest = {letter: PRINTABLE[int(row.argmax())] for letter, row in found.items()}
    assert nearest["I"] == "l" and nearest["8"] == "B" and nearest["e"] == "o" and nearest["O"] in "GD"
    for letter, cosine in (("I", 0.98), ("8", 0.67), ("e", 0.69), ("O", 0.72)):
        assert found[letter].max() == pytest.approx(cosine, abs=0.03)


def test_an_accent_moves_its_letter_unless_letters_stand_on_a_line(painter: GlyphPainter) -> None:
    tokens = [*PRINTABLE, "é"]
    aligned = GlyphPainter(Drawing(font=FONT, disturbance=SMALL, baseline_align=True))
    assert cosines(painter, tokens)[tokens.index("e"), -1] < 0.1
    assert cosines(aligned, tokens)[tokens.index("e"), -1] > 0.8


def test_on_a_line_nothing_is_cut_off() -> None:
    aligned = GlyphPainter(Drawing(font=FONT, baseline_align=True))
    for token in ("Å", "g", "|", "Q"):
        picture = aligned.raster(token)
        assert (picture[0] == 255).all() and (picture[-1] == 255).all()


def test_every_character_can_be_drawn_also_separators_of_lines(painter: GlyphPainter) -> None:
    blank = painter.raster(" ")
    for character in "\n\r\x1c\x1d\x1e\x85\u2029\x00\x7f\u200b":
        assert painter.raster(character).shape == (32, 32)
    assert not np.array_equal(painter.raster("\n"), blank)
    with pytest.raises(InputError, match="empty"):
        painter.raster("")


def test_pictures_of_another_shape_are_refused(painter: GlyphPainter) -> None:
    with pytest.raises(InputError, match=r"\(32, 64\)"):
        painter.bits_of_rasters([(painter.raster("a"), "ab")])
    rasters = [painter.raster("a"), painter.raster("the")]
    apart = split_rasters(np.concatenate([each.reshape(-1) for each in rasters]), [1, 3], 32)
    assert all(np.array_equal(one, other) for one, other in zip(apart, rasters, strict=True))


def test_fonts_are_found_or_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_font().suffix in {".ttf", ".otf"}
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    with pytest.raises(InputError, match="font"):
        GlyphPainter(Drawing(font=str(tmp_path / "broken.ttf")))
    monkeypatch.setattr(drawing, "FONT_FOLDERS", (str(tmp_path),))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(drawing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="name a font"):
        find_font()
    (tmp_path / "unifont-14.otf").write_bytes(b"")
    assert find_font() == tmp_path / "unifont-14.otf"
