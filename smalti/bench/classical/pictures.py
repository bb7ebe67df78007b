"""Pictures in the classical codecs that Pillow writes: JPEG, JPEG 2000, WebP and AVIF, at most so many bytes each.

Each codec gets what helps it at few bytes: JPEG the smaller of baseline and progressive with its own Huffman tables,
JPEG 2000 the irreversible wavelet in luminance and chrominance as a bare codestream (its container costs 85 bytes
more), WebP its slowest method. AVIF keeps its encoder's default speed, whose files are some 5 % larger than those
of the slow ones that take five times as long.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from PIL import Image, features
from torch import Tensor

from smalti.bench.classical.coded import Coded, Ladder, highest
from smalti.bench.reconstruction import criteria
from smalti.errors import ConfigError, UnavailableError
from smalti.image.io import to_image, to_tensor

SCALES = (Fraction(1), Fraction(3, 4), Fraction(1, 2), Fraction(3, 8), Fraction(1, 4), Fraction(1, 8))
FULL, BEST = "full size", "at its best scale"
RATIO_STEPS = 32  # of JPEG 2000's settings, per halving of the bytes


@dataclass(frozen=True)
class PictureCodec:
    """A codec of pictures.

    Args:
        settings: from the smallest files to the largest.
        encode: (picture, setting) to a whole file.
        describe: a setting for people.
        feature: Pillow's name of what it needs; not all builds have everything.
        remedy: what to do where it is missing.
    """

    settings: range
    encode: Callable[[Image.Image, int], bytes]
    describe: Callable[[int], str] = "quality {}".format
    feature: str = ""
    remedy: str = ""

    @property
    def missing(self) -> str:
        """Why it can't be used here, or nothing."""
        return "" if not self.feature or features.check(self.feature) else self.remedy


def _jpeg(image: Image.Image, quality: int) -> bytes:
    return min((_save(image, "JPEG", quality=quality, optimize=True, progressive=p) for p in (False, True)), key=len)


def _webp(image: Image.Image, quality: int) -> bytes:
    return _save(image, "WEBP", quality=quality, method=6)


def _avif(image: Image.Image, quality: int) -> bytes:
    return _save(image, "AVIF", quality=quality, max_threads=1)


def _jpeg_2000(image: Image.Image, setting: int) -> bytes:
    levels = min(6, min(image.size).bit_length())  # halvings of a picture that has too few pixels are an error
    return _save(
        image, "JPEG2000", quality_mode="rates", quality_layers=[_ratio(setting)], irreversible=True, mct=1,
        no_jp2=True, num_resolutions=levels,
    )  # fmt: skip


def _ratio(setting: int) -> float:
    """How many times smaller than its pixels a file of JPEG 2000 should be."""
    return float(2 ** (-setting / RATIO_STEPS))


def _save(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


PICTURE_CODECS: Mapping[str, PictureCodec] = {
    "JPEG": PictureCodec(range(1, 101), _jpeg),
    "JPEG 2000": PictureCodec(
        range(-12 * RATIO_STEPS, 1),
        _jpeg_2000,
        lambda setting: f"ratio {_ratio(setting):.3g}",
        "jpg_2000",
        "this Pillow was built without OpenJPEG: a wheel of Pillow has it",
    ),
    "WebP": PictureCodec(range(101), _webp, feature="webp", remedy="this Pillow was built without WebP"),
    "AVIF": PictureCodec(
        range(101), _avif, feature="avif", remedy="this Pillow can't write AVIF: pip install 'pillow>=11.3'"
    ),
}


class PictureLadder(Ladder):
    """A picture in a codec at any budget, at full size and at its best scale.

    Args:
        pixels: (3,H,W), uint8 or floating in [0,1].
        codec: one of `PICTURE_CODECS`.
        scales: sizes to try, as shares of the original's, the largest first.

    Raises:
        ConfigError: for another codec.
        UnavailableError: if this Pillow lacks it; the message says how to get it.
    """

    def __init__(self, pixels: Tensor, codec: str, scales: Sequence[Fraction] = SCALES) -> None:
        if codec not in PICTURE_CODECS:
            known = ", ".join(PICTURE_CODECS)
            raise ConfigError(f"{codec!r} is no classical codec of pictures: choose one of {known}")
        self.name, self.codec, self.scales = codec, PICTURE_CODECS[codec], scales
        if self.codec.missing:
            raise UnavailableError(f"{codec}: {self.codec.missing}")
        self.image, self._psnr = to_image(pixels), criteria("image")[0]
        self.reference = to_tensor(self.image)
        self._small: dict[Fraction, Image.Image] = {}
        self._files: dict[tuple[Fraction, int], bytes] = {}
        self._decoded: dict[tuple[Fraction, int], tuple[Tensor, float]] = {}

    def at(self, budget: int) -> dict[str, Coded]:
        first, best = self.first_and_best(budget)
        return {FULL: first, BEST: best}

    def first_and_best(self, budget: int) -> tuple[Coded, Coded]:
        """The file at the first scale, and at the scale with the highest PSNR; they may be the same."""
        first, highest_yet = self._at_scale(budget, self.scales[0])
        best = first
        for scale in self.scales[1:]:
            coded, value = self._at_scale(budget, scale)
            if best.fits and value < highest_yet:
                break  # quality over scales has one peak
            # Until one fits, the smallest yet is kept, whatever it looks like.
            if coded.fits or len(coded.data) < len(best.data):
                best, highest_yet = coded, value
        return first, best

    def _at_scale(self, budget: int, scale: Fraction) -> tuple[Coded, float]:
        """The file at a scale, and its PSNR."""
        setting, data = highest(self.codec.settings, budget, lambda setting: self._file(scale, setting))
        decoded, value = self._opened(scale, setting, data)
        text = self.codec.describe(setting) + (f" at {scale} of the size" if scale != 1 else "")
        return Coded(self.name, text, data, budget, decoded), value

    def _file(self, scale: Fraction, setting: int) -> bytes:
        if (scale, setting) not in self._files:
            self._files[scale, setting] = self.codec.encode(self._scaled(scale), setting)
        return self._files[scale, setting]

    def _scaled(self, scale: Fraction) -> Image.Image:
        if scale not in self._small:
            width, height = self.image.size
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            same = size == self.image.size
            self._small[scale] = self.image if same else self.image.resize(size, Image.Resampling.LANCZOS)
        return self._small[scale]

    def _opened(self, scale: Fraction, setting: int, data: bytes) -> tuple[Tensor, float]:
        """What a file decodes to at the original's size, and its PSNR."""
        if (scale, setting) not in self._decoded:
            opened = Image.open(io.BytesIO(data)).convert("RGB")
            decoded = to_tensor(opened.resize(self.image.size, Image.Resampling.LANCZOS))
            self._decoded[scale, setting] = decoded, self._psnr.value(self.reference, decoded)
        return self._decoded[scale, setting]


def pictures(pixels: Tensor, budget: int, codec: str, scales: Sequence[Fraction] = SCALES) -> tuple[Coded, Coded]:
    """A picture in at most so many bytes, as well as the codec can.

    Args:
        pixels, codec, scales: as in `PictureLadder`.
        budget: bytes.

    Returns:
        at the first scale, and at the one with the highest PSNR; they may be the same.

    Raises:
        ConfigError, UnavailableError: as in `PictureLadder`.
    """
    return PictureLadder(pixels, codec, scales).first_and_best(budget)
