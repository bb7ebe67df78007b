"""Audio containers by their content, and the damage that each of them lets one see before anything is decoded.

libsndfile reads a truncated WAV or a damaged Ogg without a word, as a shorter sound. So the container is read first:

    WAV    the size of the data chunk against the file's; there is no checksum, so a changed sample goes unseen
    FLAC   nothing here: every frame has a checksum and the header counts the samples, so the decoder sees it
    Ogg    the checksum of every page, one stream only, and a last page that says it is the last
    MP3    the Xing header counts the samples, where there is one; without it a truncated file is a shorter sound
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import BinaryIO, Literal

from smalti.errors import InputError

Container = Literal["WAV", "FLAC", "OGG", "MP3"]

_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check_container(file: BinaryIO, what: str) -> tuple[Container, bool]:
    """What the file is by its content, and whether it counts its samples, after the checks that its container allows.

    Args:
        file: open and seekable; it is at its start afterwards.
        what: what to call it in messages.

    Raises:
        InputError: if it is none of the four, empty, truncated or damaged.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise InputError(f"{what} is empty")
    file.seek(0)
    head = file.read(12)
    found: tuple[Container, bool]
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        _check_wav(file, size, what)
        found = "WAV", True
    elif head[:4] == b"OggS":
        _check_ogg(file, what)
        found = "OGG", True
    else:
        frame = _behind_tag(file, head)
        if frame[:4] == b"fLaC":
            found = "FLAC", True
        elif len(frame) >= 4 and frame[0] == 0xFF and frame[1] & 0xE0 == 0xE0 and frame[1] & 0x06:
            # Without a Xing header, which stands behind 9 to 34 bytes of side information, libsndfile only estimates.
            found = "MP3", any(frame[place : place + 4] in (b"Xing", b"Info") for place in (13, 15, 21, 23, 36, 38))
        else:
            raise InputError(f"{what} is not WAV, FLAC, Ogg or MP3: it begins with {head[:8]!r}")
    file.seek(0)
    return found


def _behind_tag(file: BinaryIO, head: bytes) -> bytes:
    """The first bytes behind an ID3 tag, which FLAC and MP3 files may begin with; its size is in bytes of 7 bits."""
    tagged = head[:3] == b"ID3" and len(head) >= 10
    file.seek(10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) if tagged else 0)
    return file.read(42)


def _check_wav(file: BinaryIO, size: int, what: str) -> None:
    """Refuses a data chunk that is longer than the file."""
    wide = None
    file.seek(12)
    while len(header := file.read(8)) == 8:
        name, length = header[:4], struct.unpack("<I", header[4:])[0]
        if name == b"ds64" and length >= 16:  # RF64 keeps sizes over 4 GB here
            wide = struct.unpack("<QQ", file.read(16))[1]
            length -= 16
        elif name == b"data":
            promised = wide if wide is not None and length == 0xFFFFFFFF else length
            present = size - file.tell()
            if promised > present:
                raise InputError(f"{what} is truncated: it promises {promised} bytes of sound and has {present}")
            return
        file.seek(length + length % 2, os.SEEK_CUR)
    raise InputError(f"{what} is truncated: it has no data chunk")


def _check_ogg(file: BinaryIO, what: str) -> None:
    """Refuses a page with a wrong checksum, more than one stream, and a last page that does not say it is the last."""
    serials = set()
    last = False
    file.seek(0)
    while (page := file.read(27))[:4] == b"OggS":
        lacing = file.read(page[26]) if len(page) == 27 else b""
        body = file.read(sum(lacing))
        if len(page) < 27 or len(lacing) < page[26] or len(body) < sum(lacing):
            raise InputError(f"{what} is truncated: its last page is not whole")
        blank = page[:22] + bytes(4) + page[26:]
        if _ogg_checksum(blank + lacing + body) != struct.unpack("<I", page[22:26])[0]:
            raise InputError(f"{what} is damaged: a page does not have its checksum")
        serials.add(page[14:18])
        last = bool(page[5] & 4)
    if len(serials) > 1:
        raise InputError(f"{what} holds {len(serials)} streams: give them one by one")
    if not last:
        raise InputError(f"{what} is truncated or damaged: its stream has no last page")


def _ogg_checksum(data: bytes) -> int:
    """CRC-32 of the same polynomial as zlib's, but most significant bit first, from 0 and not inverted."""
    mirrored = zlib.crc32(data.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
