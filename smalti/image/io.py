"""Image files to tensors and back, through Pillow, with nothing decoded that was not asked for.

    file ──content decides the format──► size checked ──► decoded ──► upright ──► 8-bit RGB ──rules──► (3,H,W)
    file ◄──written whole, then renamed──────────────── JPEG, PNG, WebP ◄──────────────────────────── (3,H,W)

What comes out is always 8-bit RGB, because that is what published tokenizers were trained on:

    grey, palette, CMYK, YCbCr     converted
    transparent                    laid on white, as a page shows it
    16 bits per channel            rounded to 8 where it is grey; of colours, libpng's upper byte
    EXIF orientation               applied
    colour profiles                ignored, as the published pipelines ignore them: the same pixels, the same codes
    several pictures in one        refused (a video, or pages); of a phone's JPEG with a depth map, the photo
    32-bit and floating, LAB       refused: their range says nothing about white
    damaged, truncated, empty      refused
"""

from __future__ import annotations

import io
import os
import secrets
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from smalti.errors import InputError
from smalti.image.resize import MAX_PIXELS, SizeRule, apply_rules

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # decoders that may touch a file at all
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

JPEG_QUALITY = 95

Source = str | os.PathLike[str] | bytes | BinaryIO
Format = Literal["jpeg", "png", "webp"]

_WRITTEN: dict[str, Format] = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    source: Source,
    rules: Iterable[SizeRule] = (),
    *,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Reads an image file.

    Args:
        source: a path, the file's bytes, or a binary file.
        rules: sizes and crops, applied to the 8-bit picture as published pipelines do.
        dtype: torch.uint8, or a floating type for values in [0,1].
        generator: for random crops.
        max_pixels: larger pictures are refused before they are decoded.

    Returns:
        (3, H, W).

    Raises:
        InputError: if it is no image of `FORMATS`, damaged, too large, of several pictures, or does not fit a rule.
    """
    return to_tensor(apply_rules(open_image(source, max_pixels=max_pixels), rules, generator), dtype)


def open_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads an image file as an upright 8-bit RGB picture of Pillow. Arguments and errors as in `read_image`."""
    what = "the image" if isinstance(source, bytes) or hasattr(source, "read") else repr(os.fspath(source))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs (we have our own cap) and of damaged metadata
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                _check_header(image, what, max_pixels)
                image.load()
                return _to_rgb(_upright(image), what)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{what} does not exist") from None
    except Image.DecompressionBombError:
        raise InputError(f"{what} has more than the {max_pixels:,} pixels that are read") from None
    except UnidentifiedImageError:
        raise InputError(f"{what} is not an image in {', '.join(FORMATS)}: {_first_bytes(source)}") from None
    except Exception as error:  # Pillow's decoders raise whatever their parsing stumbles over
        raise InputError(f"{what} can't be read as an image: {error or type(error).__name__}") from error


def to_tensor(image: Image.Image, dtype: torch.dtype = torch.float32) -> Tensor:
    """An RGB picture of Pillow as (3, H, W): uint8, or floating in [0,1]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels if dtype == torch.uint8 else pixels.to(dtype) / 255


def to_image(pixels: Tensor) -> Image.Image:
    """(3, H, W) as a picture of Pillow; floating values are clamped to [0,1], because decoders overshoot, and rounded.

    Raises:
        InputError: for another shape or type, or values that are not finite.
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise InputError(f"an image must be (3, height, width), got {tuple(pixels.shape)}")
    if pixels.is_floating_point():
        if not bool(torch.isfinite(pixels).all()):
            raise InputError("an image with NaN or infinity can't be written")
        pixels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise InputError(f"an image must be uint8 or floating in [0,1], got {pixels.dtype}")
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def encode_image(pixels: Tensor, format: Format = "png", quality: int | None = None) -> bytes:
    """The bytes of an image file.

    Args:
        pixels: (3, H, W), uint8 or floating in [0,1].
        format: "jpeg", "png" or "webp".
        quality: 1 to 100. JPEG's default is 95; without it WebP is lossless; PNG has none.
    """
    options: dict[str, object]
    match format:
        case "jpeg":
            options = {"quality": JPEG_QUALITY if quality is None else quality}
        case "webp":
            options = {"lossless": True} if quality is None else {"quality": quality}
        case "png":
            options = {}
        case _:
            raise InputError(f"images are written as jpeg, png or webp, not as {format!r}")
    buffer = io.BytesIO()
    try:
        to_image(pixels).save(buffer, format, **options)
    except (OSError, ValueError) as error:  # WebP ends at 16383 pixels a side, JPEG at 65500
        raise InputError(f"an image of {tuple(pixels.shape)} can't be written as {format}: {error}") from error
    return buffer.getvalue()


def write_image(path: str | os.PathLike[str], pixels: Tensor, *, quality: int | None = None) -> Path:
    """Writes an image file whose format is that of the path's suffix. It appears whole or not at all.

    Args:
        path: ends in .png, .jpg, .jpeg or .webp.
        pixels: (3, H, W), uint8 or floating in [0,1].
        quality: as in `encode_image`.

    Raises:
        InputError: for another suffix, or pixels that are no image.
    """
    target = Path(path)
    if target.suffix.lower() not in _WRITTEN:
        raise InputError(f"{target.name!r}: images are written as {', '.join(_WRITTEN)}")
    data = encode_image(pixels, _WRITTEN[target.suffix.lower()], quality)
    staged = target.with_name(f".smalti-{secrets.token_hex(8)}")  # short: the target's name may already be the longest
    try:
        staged.write_bytes(data)
        os.replace(staged, target)
    finally:
        staged.unlink(missing_ok=True)
    return target


# --- inside a file ---------------------------------------------------------------------------------------------------


def _check_header(image: Image.Image, what: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(f"{what} is {width}x{height}: more than the {max_pixels:,} pixels that are read")
    # MPO is a JPEG with further pictures behind it (depth, a second eye); the first is the photo.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise InputError(f"{what} holds several pictures (an animation or pages): give it one by one")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF, which says nothing about the pixels
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, what: str) -> Image.Image:
    if image.mode in ("I", "F", "LAB"):
        raise InputError(
            f"{what} has pixels of mode {image.mode}, whose range is not known: convert it to 8 or 16 bits per channel"
        )
    if image.mode.startswith("I;16"):
        image = _grey_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("RGB")


def _grey_8_bit(image: Image.Image) -> Image.Image:
    grey = np.asarray(image).astype(np.uint32)
    rounded = ((grey * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        rounded[grey == transparent] = 255
    return Image.fromarray(rounded)


def _first_bytes(source: Source) -> str:
    """How the file begins, for the message: that tells a GIF, a PDF or a text file."""
    if isinstance(source, bytes):
        start = source[:8]
    elif hasattr(source, "read"):
        return "its first bytes are of another kind"
    else:
        with open(source, "rb") as file:
            start = file.read(8)
    return f"it begins with {start!r}" if start else "it is empty"
