"""Image files that Pillow does not write: PNGs of any bit depth, made chunk by chunk."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

GREY, RGB = 0, 2


def png(width: int, height: int, depth: int, colour: int, rows: Iterable[bytes], extra: bytes = b"") -> bytes:
    """A PNG from its unfiltered rows."""
    compressor = zlib.compressobj(1)
    data = b"".join(compressor.compress(b"\0" + row) for row in rows) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A white 1-bit PNG of side x side pixels in a few kilobytes."""
    row = b"\xff" * ((side + 7) // 8)
    return png(side, side, 1, GREY, (row for _ in range(side)))


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    """What Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth random uint8 pixels, (height, width, channels)."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(np.ascontiguousarray(coarse[:, :, index])).resize((width, height), Image.Resampling.BICUBIC)
        for index in range(channels)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)
