"""Audio files to tensors and back, through libsndfile; and resampling, through soxr.

    file ──content decides the decoder──► container checked ──► decoded in blocks ──► (C,T) float32 and its rate
    file ◄──written whole, then renamed── WAV, FLAC, Ogg Vorbis, MP3 ◄─────────────── (C,T)

libsndfile reads a truncated WAV or a damaged Ogg without a word, as a shorter sound. So containers are checked first,
as far as each of them allows:

    WAV    the size of the data chunk against the file's; there is no checksum, so a changed sample goes unseen
    FLAC   every frame has a checksum, and the header counts the samples
    Ogg    the checksum of every page, one stream only, and a last page that says it is the last
    MP3    the count of the Xing header, where there is one; without it a truncated file is a shorter sound

Floating samples outside [-1,1] are kept as they are; NaN and infinity are refused.
"""

from __future__ import annotations

import io
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from smalti.errors import InputError, require

Container = Literal["WAV", "FLAC", "OGG", "MP3"]
Format = Literal["wav", "flac", "ogg", "mp3"]
Bits = Literal[16, 24, 32]
Source = str | os.PathLike[str] | bytes | BinaryIO

SUFFIXES = frozenset({".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3"})
MAX_SAMPLES = 2**30  # over all channels: 4 GiB of float32, six hours of 48 kHz mono. A claim above it is refused unread.
MIN_RATE, MAX_RATE = 1_000, 1_000_000  # Hz; what lies outside is a damaged header, not sound
RESAMPLER = "HQ"  # soxr's quality: 20 bits, the pass band to 0.913 of the lower Nyquist frequency

_BLOCK = 2**20  # frames decoded at once
_WRITE_BLOCK = 2**16  # frames encoded at once; libvorbis overflows its stack on millions
_WRITTEN: dict[str, Format] = {".wav": "wav", ".flac": "flac", ".ogg": "ogg", ".mp3": "mp3"}
_SUBTYPES: dict[tuple[Format, Bits], str] = {
    ("wav", 16): "PCM_16",
    ("wav", 24): "PCM_24",
    ("wav", 32): "FLOAT",
    ("flac", 16): "PCM_16",
    ("flac", 24): "PCM_24",
}
_UNCOUNTED = 2**63 - 1  # what libsndfile gives for a FLAC whose header leaves the count open
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def read_audio(source: Source, *, max_samples: int = MAX_SAMPLES) -> tuple[Tensor, int]:
    """Reads an audio file.

    Args:
        source: a path, the file's bytes, or a binary file.
        max_samples: over all channels; files that claim or hold more are refused.

    Returns:
        (channels, time), float32, full scale 1; and the sample rate in Hz.

    Raises:
        InputError: if it is not WAV, FLAC, Ogg or MP3, is empty, truncated, damaged or too large, or holds NaN.
    """
    soundfile = require("soundfile", "audio")
    with _opened(source) as (file, what):
        container = _check_container(file, what)
        try:
            with soundfile.SoundFile(file) as sound:
                return _decode(sound, container, what, max_samples), int(sound.samplerate)
        except soundfile.SoundFileError as error:
            reason = getattr(error, "error_string", "") or "its data are damaged"
            raise InputError(f"{what} can't be read as {container}: {reason}") from None


def encode_audio(samples: Tensor, rate: int, format: Format = "wav", bits: Bits = 16) -> bytes:
    """The bytes of an audio file.

    Args:
        samples: (channels, time), floating; cut at ±1, except in floating WAV.
        rate: samples per second.
        format: "wav", "flac", "ogg" (Vorbis) or "mp3".
        bits: of WAV and FLAC; 32 is floating WAV. Samples are rounded to the nearest step, and k/2^(bits-1) is stored
            exactly.

    Raises:
        InputError: if samples are no finite audio, or the format can't hold such channels, rate or bits.
    """
    soundfile = require("soundfile", "audio")
    if samples.ndim != 2 or not samples.is_floating_point() or samples.numel() == 0:
        raise InputError(f"audio must be floating, (channels, time), got {samples.dtype} {tuple(samples.shape)}")
    if not bool(torch.isfinite(samples).all()):
        raise InputError("audio with NaN or infinity can't be written")
    lossy = format in ("ogg", "mp3")
    if not lossy and (format, bits) not in _SUBTYPES:
        raise InputError(f"{format!r} is not written with {bits} bits: choose one of {sorted(_SUBTYPES)}, ogg or mp3")
    frames = _to_steps(samples.detach().cpu().float().t().contiguous(), 32 if lossy else bits, lossy)
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(
            buffer, "w", rate, len(samples), _SUBTYPES.get((format, bits)) if not lossy else None, format=format.upper()
        ) as sound:
            for start in range(0, len(frames), _WRITE_BLOCK):
                sound.write(frames[start : start + _WRITE_BLOCK])
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        raise InputError(f"{len(samples)} channels at {rate} Hz can't be written as {format}: {error}") from None
    return buffer.getvalue()


def write_audio(path: str | os.PathLike[str], samples: Tensor, rate: int, *, bits: Bits = 16) -> Path:
    """Writes an audio file whose format is that of the path's suffix. It appears whole or not at all.

    Args:
        path: ends in .wav, .flac, .ogg or .mp3.
        samples, rate, bits: as in `encode_audio`.

    Raises:
        InputError: for another suffix, or what `encode_audio` refuses.
    """
    target = Path(path)
    if target.suffix.lower() not in _WRITTEN:
        raise InputError(f"{target.name!r}: audio is written as {', '.join(_WRITTEN)}")
    data = encode_audio(samples, rate, _WRITTEN[target.suffix.lower()], bits)
    staged = target.with_name(f".smalti-{secrets.token_hex(8)}")  # short: the target's name may already be the longest
    try:
        staged.write_bytes(data)
        os.replace(staged, target)
    finally:
        staged.unlink(missing_ok=True)
    return target


def resample(samples: Tensor, rate_from: int, rate_to: int) -> Tensor:
    """Another sample rate, band-limited.

    Args:
        samples: (..., time), floating. Each row is resampled by itself, so a row's result never depends on its batch.
        rate_from, rate_to: Hz.

    Returns:
        (..., resampled_length(time, rate_from, rate_to)), float32.

    Raises:
        InputError: if a rate is not one of sound, the result is too large, or a gradient is asked for.
    """
    for rate in (rate_from, rate_to):
        _check_rate(rate, "resampling")
    if rate_from == rate_to:
        return samples.float()
    if samples.requires_grad and torch.is_grad_enabled():
        raise InputError(f"resampling has no gradient: give audio at {rate_to} Hz")
    length = resampled_length(samples.shape[-1], rate_from, rate_to)
    if samples[..., 0].numel() * length > MAX_SAMPLES:
        raise InputError(f"resampling from {rate_from} to {rate_to} Hz would give more than {MAX_SAMPLES} samples")
    soxr = require("soxr", "audio")
    rows = samples.detach().cpu().float().reshape(-1, samples.shape[-1]).numpy()
    out = np.zeros((len(rows), length), dtype=np.float32)
    for row, target in zip(rows, out, strict=True):
        found = soxr.resample(row, rate_from, rate_to, RESAMPLER)[:length]  # soxr's own length is one off at times
        target[: len(found)] = found
    return torch.from_numpy(out).reshape(*samples.shape[:-1], length).to(samples.device)


def resampled_length(length: int, rate_from: int, rate_to: int) -> int:
    """length * rate_to / rate_from, rounded, halves up; at least one sample remains of any."""
    return max(1, (2 * length * rate_to + rate_from) // (2 * rate_from)) if length else 0


def to_channels(samples: Tensor, channels: int) -> Tensor:
    """Any number of channels to one by their mean, one to any by repetition; other mixes have no one meaning.

    Args:
        samples: (..., channels, time).
        channels: how many are wanted.

    Raises:
        InputError: if neither number is 1 and they differ.
    """
    given = samples.shape[-2]
    if given == channels:
        return samples
    if channels == 1:
        return samples.mean(-2, keepdim=True)
    if given == 1:
        return samples.expand(*samples.shape[:-2], channels, -1)
    raise InputError(f"{given} channels can't be mixed to {channels}: choose which to keep, or mix them to one first")


# --- inside a file ---------------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: Source) -> Iterator[tuple[BinaryIO, str]]:
    """The file, and what to call it."""
    if isinstance(source, bytes):
        yield io.BytesIO(source), "the audio"
    elif isinstance(source, str | os.PathLike):
        what = repr(os.fspath(source))
        try:
            file = open(source, "rb")  # noqa: SIM115  (closed below; only opening may fail for the file's sake)
        except FileNotFoundError:
            raise InputError(f"{what} does not exist") from None
        except OSError as error:
            raise InputError(f"{what} can't be opened: {error.strerror or error}") from None
        with file:
            yield file, what
    else:
        yield source, "the audio"


def _check_container(file: BinaryIO, what: str) -> Container:
    """What the file is by its content, after the checks that its container allows; the file is then at its start."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    start = 0
    if head[:3] == b"ID3" and len(head) >= 10:  # a tag that any format may begin with; its size is in 7-bit bytes
        start = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
        file.seek(start)
        head = file.read(12)
    file.seek(start)
    container: Container
    if size == 0:
        raise InputError(f"{what} is empty")
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        container = "WAV"
        _check_wav(file, size, what)
    elif head[:4] == b"fLaC":
        container = "FLAC"
    elif head[:4] == b"OggS":
        container = "OGG"
        _check_ogg(file, what)
    elif len(head) >= 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06:
        container = "MP3"
    else:
        raise InputError(f"{what} is not WAV, FLAC, Ogg or MP3: it begins with {head[:8]!r}")
    file.seek(0)
    return container


def _check_wav(file: BinaryIO, size: int, what: str) -> None:
    """Refuses a data chunk that is longer than the file."""
    wide = None
    file.seek(12, os.SEEK_CUR)
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


def _decode(sound: Any, container: Container, what: str, max_samples: int) -> Tensor:
    """All frames of an open `soundfile.SoundFile`: (channels, time)."""
    claimed, channels = int(sound.frames), int(sound.channels)
    _check_rate(sound.samplerate, what)
    if claimed == _UNCOUNTED:
        raise InputError(f"{what} does not say how many samples it has, so nothing tells whether it is whole")
    if claimed * channels > max_samples:
        raise InputError(f"{what} claims {claimed} x {channels} samples, more than the {max_samples} that are read")
    counted = container != "MP3" or _has_frame_count(sound.name)
    blocks, decoded = [], 0
    while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
        decoded += len(block)
        if decoded * channels > max_samples:
            raise InputError(f"{what} holds more than the {max_samples} samples that are read")
        if not np.isfinite(block).all():
            raise InputError(f"{what} holds NaN or infinity")
        blocks.append(np.ascontiguousarray(block.T))
    if counted and decoded != claimed:
        raise InputError(f"{what} is truncated: it promises {claimed} samples and has {decoded}")
    if decoded == 0:
        raise InputError(f"{what} holds no samples")
    return torch.from_numpy(blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1))


def _has_frame_count(file: BinaryIO) -> bool:
    """Whether the first MP3 frame is a Xing header; without one libsndfile only estimates the number of samples."""
    place = file.tell()
    file.seek(0)
    head = file.read(2**16)
    file.seek(place)
    return b"Xing" in head or b"Info" in head


def _check_rate(rate: int, what: str) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"{what}: a sample rate of {rate} Hz is not one of sound ({MIN_RATE} to {MAX_RATE})")


def _to_steps(frames: Tensor, bits: Bits, cut: bool) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    """Samples as libsndfile stores them without another rounding: int16, int32 whose upper 24 bits count, or float32."""
    if bits == 32:
        return (frames.clamp(-1, 1) if cut else frames).numpy()
    full = 2 ** (bits - 1)
    steps = (frames.double() * full).round().clamp(-full, full - 1).to(torch.int32)
    return steps.to(torch.int16).numpy() if bits == 16 else (steps * 256).numpy()
