"""Audio files to tensors and back, through libsndfile; and resampling, through soxr.

    file ──content decides the decoder──► container checked ──► decoded in blocks ──► (C,T) float32 and its rate
    file ◄──written whole, then renamed── WAV, FLAC, Ogg Vorbis, MP3 ◄─────────────── (C,T)

The container is checked first (`container.py`), because libsndfile reads damaged files as shorter sounds. Floating
samples outside [-1,1] are kept as they are; NaN and infinity are refused.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from smalti.audio.container import check_container
from smalti.errors import InputError, require

Format = Literal["wav", "flac", "ogg", "mp3"]
Bits = Literal[16, 24, 32]
Source = str | os.PathLike[str] | bytes | BinaryIO

SUFFIXES = frozenset({".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3"})
MAX_SAMPLES = 2**30  # over all channels: 4 GiB of float32, six hours of 48 kHz mono
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
        container, counted = check_container(file, what)
        try:
            with soundfile.SoundFile(_nameless(file)) as sound:
                return _decode(sound, counted, what, max_samples), int(sound.samplerate)
        except soundfile.SoundFileError as error:
            reason = getattr(error, "error_string", "") or "its data are damaged"
            raise InputError(f"{what} can't be read as {container}: {reason}") from None


def rate_and_seconds(source: Source) -> tuple[int, float]:
    """Sample rate in Hz and length of an audio file as its header has them, without decoding it.

    Raises:
        InputError: as `read_audio` does for what a header shows.
    """
    soundfile = require("soundfile", "audio")
    with _opened(source) as (file, what):
        container, _ = check_container(file, what)
        try:
            with soundfile.SoundFile(_nameless(file)) as sound:
                return int(sound.samplerate), sound.frames / sound.samplerate
        except soundfile.SoundFileError:
            raise InputError(f"{what} can't be read as {container}: its header is damaged") from None


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


def _nameless(file: BinaryIO) -> SimpleNamespace:
    """The file without its name, whose suffix would otherwise choose the decoder."""
    methods = ("read", "readinto", "seek", "tell")
    return SimpleNamespace(**{name: getattr(file, name) for name in methods if hasattr(file, name)})


def _decode(sound: Any, counted: bool, what: str, max_samples: int) -> Tensor:
    """All frames of an open `soundfile.SoundFile`: (channels, time); as many as it claims where that is a count."""
    claimed, channels = int(sound.frames), int(sound.channels)
    _check_rate(sound.samplerate, what)
    if claimed == _UNCOUNTED:
        raise InputError(f"{what} does not say how many samples it has, so nothing tells whether it is whole")
    if claimed * channels > max_samples:
        raise InputError(f"{what} claims {claimed} x {channels} samples, more than the {max_samples} that are read")
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


def _check_rate(rate: int, what: str) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"{what}: a sample rate of {rate} Hz is not one of sound ({MIN_RATE} to {MAX_RATE})")


def _to_steps(frames: Tensor, bits: Bits, cut: bool) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    """Samples as libsndfile stores them without rounding again: int16, the upper 24 bits of int32, or float32."""
    if bits == 32:
        return (frames.clamp(-1, 1) if cut else frames).numpy()
    full = 2 ** (bits - 1)
    steps = (frames.double() * full).round().clamp(-full, full - 1).to(torch.int32)
    return steps.to(torch.int16).numpy() if bits == 16 else (steps * 256).numpy()
