"""Tokens as pictures: drawn with a font, disturbed by a fixed amount, and read as bits from the middle outwards.

    "ab" ──draw──► (G, 2G) ──rotate, shift, noise, blur──► ink or paper ──resize──► (G, G) ──polar order──► (G*G,) bits

The disturbance is called an augmentation in the source, but its generators begin anew for every token: it is one fixed
function of a picture, the same for all tokens of one width. Scripts with few strokes get more of it.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageFont
from PIL.ImageDraw import Draw
from pydantic import Field

import smalti.config
from smalti.errors import InputError, UnavailableError

ByteArray = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
IndexArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

INK, PAPER = 0, 255
THRESHOLD = 128
# Latin to its extensions A and B, Greek, Cyrillic and its supplement, Armenian.
SEPARATORS = "\n\r\x1c\x1d\x1e\x85\u2029"  # Raqm ends a paragraph there and has nothing to draw
EASY_SCRIPTS = (range(0x250), range(0x370, 0x590))
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/Library/Fonts",
                "~/Library/Fonts", "C:/Windows/Fonts")  # fmt: skip
FONTS = ("unifont*.otf", "unifont*.ttf", "Unifont*.otf", "Unifont*.ttf", "DejaVuSans.ttf")


class Disturbance(smalti.config.Config):
    """How pictures are disturbed. Defaults: the published vocabulary of 131072.

    Args:
        rotation: largest angle, in degrees, for easy scripts.
        shift: largest shift to each side, in pixels, for easy scripts.
        noise: share of pixels that become ink, for easy scripts.
        other_noise: the same for other scripts, which are neither turned, shifted nor blurred.
        blur: radius, in pixels, for easy scripts; 0 is off.
        seed: of the generators, which begin anew for every token.
    """

    rotation: float = Field(7.0, ge=0, le=180)
    shift: int = Field(3, ge=0)
    noise: float = Field(0.03, ge=0, le=1)
    other_noise: float = Field(0.001, ge=0, le=1)
    blur: float = Field(0.5, ge=0)
    seed: int = Field(42, ge=0, lt=2**32)


class Drawing(smalti.config.Config):
    """How tokens are drawn.

    Args:
        size: height of a picture, width of a character's cell, and size of the font, in pixels.
        font: path of a .ttf or .otf file. None looks for GNU Unifont, which published tables are drawn with, and then
            for DejaVu Sans (`find_font`).
        baseline_align: all characters stand on one line, and the font is so small that the line fits. The published
            way centres each character by its own outline, so that an accent moves its letter.
        disturbance: see there.
    """

    size: int = Field(32, ge=4)
    font: str | None = None
    baseline_align: bool = False
    disturbance: Disturbance = Disturbance()


@dataclass(frozen=True)
class _Moves:
    """The disturbance of all pictures of one shape."""

    angle: float
    shift: tuple[int, int]
    noise: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    blur: float


class GlyphPainter:
    """Draws tokens and reads their bits.

    Pillow lays characters out with Raqm where it has it, which shows vowel signs that stand alone on a dotted circle,
    as in the published pictures. Bits depend on that, on the font file and a little on Pillow's version. Separators of
    lines and paragraphs, of which Raqm has no picture, get the font's own; a line feed gets that of U+240A.

    Args:
        drawing: how.

    Raises:
        InputError: if the font can't be read.
        UnavailableError: if none was named and none is found.
    """

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        self.font_path = Path(drawing.font) if drawing.font is not None else find_font()
        self._moves = lru_cache(maxsize=None)(self._draw_moves)
        self._font = self._open(drawing.size)
        if drawing.baseline_align:
            self._font = self._open(max(1, drawing.size**2 // sum(self._font.getmetrics())))
        self._simple = self._open(int(self._font.size), ImageFont.Layout.BASIC)

    def raster(self, token: str) -> ByteArray:
        """The undisturbed picture (G, G * characters): 0 is ink, 255 paper, and what is between is between.

        Raises:
            InputError: if the token is empty.
        """
        if not token:
            raise InputError("an empty token can't be drawn")
        size = self.drawing.size
        image = Image.new("L", (size * len(token), size), PAPER)
        pen = Draw(image)
        for index, character in enumerate(token):
            font = self._simple if character in SEPARATORS else self._font
            character = "\u240a" if character == "\n" else character  # Pillow would begin another line
            left, top, right, bottom = font.getbbox(character)
            x = index * size + int(size - (right - left)) // 2
            y = int(size - (bottom - top)) // 2 - int(top)
            if self.drawing.baseline_align:
                x, y = x - int(left), (size - sum(self._font.getmetrics())) // 2
            pen.text((x, y), character, font=font, fill=INK)
        return np.asarray(image)

    def disturbed(self, raster: ByteArray, easy: bool) -> ByteArray:
        """The disturbed picture (G, G): 1 is ink.

        Args:
            raster: (G, G * characters), as `raster` gives it.
            easy: whether it shows an easy script.
        """
        size = self.drawing.size
        moves = self._moves(raster.shape[1], easy)
        image = Image.fromarray(raster)
        if moves.angle:
            image = image.rotate(moves.angle, expand=False, fillcolor=PAPER)
        if moves.shift != (0, 0):
            moved = Image.new("L", image.size, PAPER)
            moved.paste(image, moves.shift)
            image = moved
        noisy = np.asarray(image).copy()
        noisy[moves.noise] = INK
        if moves.blur:
            noisy = np.asarray(Image.fromarray(noisy).filter(ImageFilter.GaussianBlur(moves.blur)))
        ink = (noisy < THRESHOLD).astype(np.uint8)
        return ink if ink.shape[1] == size else ink[:, _nearest(ink.shape[1], size)]

    def bits(self, tokens: Iterable[str]) -> ByteArray:
        """(tokens, G * G): 1 is ink; the pixels in the order of `polar_order`."""
        return self.bits_of_rasters((self.raster(token), token) for token in tokens)

    def bits_of_rasters(self, rasters: Iterable[tuple[ByteArray, str]]) -> ByteArray:
        """The bits of pictures that were drawn elsewhere, each with its token.

        Raises:
            InputError: if a picture is not G high and G wide per character.
        """
        size, rows = self.drawing.size, []
        for raster, token in rasters:
            if raster.dtype != np.uint8 or raster.shape != (size, size * len(token)):
                raise InputError(
                    f"the picture of {token!r} must be uint8 ({size}, {size * len(token)}), "
                    f"got {raster.dtype} {raster.shape}"
                )
            rows.append(self.disturbed(raster, is_easy(token)).reshape(-1)[self._order])
        return np.stack(rows) if rows else np.zeros((0, size * size), np.uint8)

    @cached_property
    def _order(self) -> IndexArray:
        return polar_order(self.drawing.size)

    def _open(self, size: int, layout: ImageFont.Layout | None = None) -> ImageFont.FreeTypeFont:
        try:
            return ImageFont.truetype(str(self.font_path), size, layout_engine=layout)
        except OSError as error:
            raise InputError(f"{self.font_path} can't be used as a font: {error}") from None

    def _draw_moves(self, width: int, easy: bool) -> _Moves:
        rules = self.drawing.disturbance
        rotation, shift, noise, blur = (
            (rules.rotation, rules.shift, rules.noise, rules.blur) if easy else (0.0, 0, rules.other_noise, 0.0)
        )
        draw, grain = random.Random(rules.seed), np.random.RandomState(rules.seed)
        angle = draw.uniform(-rotation, rotation)
        moved = draw.randint(-shift, shift), draw.randint(-shift, shift)
        return _Moves(angle, moved, grain.rand(self.drawing.size, width) < noise, blur)


def is_easy(token: str) -> bool:
    """Whether all characters of a token belong to scripts that are disturbed more."""
    return all(any(ord(character) in script for script in EASY_SCRIPTS) for character in token)


def polar_order(size: int) -> IndexArray:
    """Pixels (y * size + x) by their distance from the middle, then angle, column and row."""
    y, x = np.divmod(np.arange(size * size), size)
    dx, dy = x - size / 2, y - size / 2
    return np.lexsort((y, x, np.arctan2(dy, dx), dx**2 + dy**2))


def find_font() -> Path:
    """GNU Unifont where it is installed, else DejaVu Sans (matplotlib brings one).

    Raises:
        UnavailableError: if there is neither.
    """
    folders = [Path(folder).expanduser() for folder in FONT_FOLDERS]
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin:
        folders.insert(0, Path(matplotlib.origin).parent / "mpl-data" / "fonts")
    for pattern in FONTS:
        for folder in folders:
            found = sorted(folder.rglob(pattern)) if folder.is_dir() else []
            if found:
                return found[0]
    raise UnavailableError(
        "neither GNU Unifont nor DejaVu Sans is installed here: name a font, Drawing(font='path of a .ttf or .otf')"
    )


def split_rasters(concatenated: Sequence[int] | Any, widths: Iterable[int], size: int) -> list[ByteArray]:
    """Pictures that are stored one after another, row by row.

    Args:
        concatenated: all pixels, uint8.
        widths: how many characters wide each picture is.
        size: its height.
    """
    counts = [size * size * int(width) for width in widths]
    flat = np.asarray(concatenated, np.uint8).reshape(-1)
    parts = np.split(flat, np.cumsum(counts)[:-1])
    return [part.reshape(size, -1) for part in parts]


def _nearest(width: int, size: int) -> IndexArray:
    """The column that each of `size` columns shows, as Pillow resizes pictures of ink and paper."""
    return ((np.arange(size) + 0.5) * (width / size)).astype(np.int64)
