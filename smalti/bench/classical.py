"""The classical codec at the same bytes: what JPEG, WebP or Opus make of the bytes that tokens take.

    picture ──scaled down?──► codec, highest quality of at most BUDGET bytes ──► decoded, scaled back ──► compared
    speech  ──another rate?─► Opus, highest bit rate of at most BUDGET bytes ──► decoded, rate restored ► compared

Whole files are counted, headers too. Where even a codec's smallest file is larger than the budget, that file is given,
and says so by its size. Few bytes are better spent on fewer pixels, as everybody who shrinks pictures knows, so each
codec may also choose its best scale (or sample rate).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from PIL import Image
from torch import Tensor

from smalti.audio.io import read_audio, resample, to_channels
from smalti.bench.reconstruction import criteria
from smalti.errors import ConfigError, require
from smalti.image.io import to_image, to_tensor

SCALES = (Fraction(1), Fraction(3, 4), Fraction(1, 2), Fraction(3, 8), Fraction(1, 4), Fraction(1, 8))
QUALITIES = range(1, 101)  # of Pillow's JPEG and WebP

SLACK = 1.05  # files this much larger than the smallest count as being as small
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)  # Hz; Opus has no others
OPUS_BIT_RATES = range(6_000, 256_001, 500)  # libsndfile's lowest and highest, bits a second of one channel


@dataclass(frozen=True)
class Coded:
    """A file of a classical codec, and what it decodes to.

    Args:
        codec: "JPEG", "WebP", "Opus".
        setting: what was chosen, for people.
        data: the whole file.
        budget: bytes that it was meant to have at most.
        decoded: of the original's extent: (3,H,W) in [0,1], or (1,T).
    """

    codec: str
    setting: str
    data: bytes
    budget: int
    decoded: Tensor

    @property
    def fits(self) -> bool:
        return len(self.data) <= self.budget


# --- pictures --------------------------------------------------------------------------------------------------------


def pictures(pixels: Tensor, budget: int, codec: str, scales: Sequence[Fraction] = SCALES) -> tuple[Coded, Coded]:
    """A picture in at most so many bytes, as well as the codec can.

    Args:
        pixels: (3,H,W), uint8 or floating in [0,1].
        budget: bytes.
        codec: one of `PICTURE_CODECS`.
        scales: sizes to try, as shares of the original's, the largest first.

    Returns:
        at the first scale, and at the one with the highest PSNR; they may be the same.

    Raises:
        ConfigError: for another codec.
    """
    if codec not in PICTURE_CODECS:
        raise ConfigError(f"{codec!r} is no classical codec of pictures: choose one of {', '.join(PICTURE_CODECS)}")
    image, psnr = to_image(pixels), criteria("image")[0]
    reference = to_tensor(image)
    first = best = _at_scale(image, budget, codec, scales[0])
    highest = psnr.value(reference, best.decoded)
    for scale in scales[1:]:
        coded = _at_scale(image, budget, codec, scale)
        value = psnr.value(reference, coded.decoded)
        if best.fits and value < highest:
            break  # quality over scales has one peak
        best, highest = coded, value
    return first, best


def _at_scale(image: Image.Image, budget: int, codec: str, scale: Fraction) -> Coded:
    width, height = image.size
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
    quality, data = _highest(QUALITIES, budget, lambda quality: PICTURE_CODECS[codec](small, quality))
    decoded = Image.open(io.BytesIO(data)).convert("RGB").resize(image.size, Image.Resampling.LANCZOS)
    setting = f"quality {quality}" + (f" at {scale} of the size" if scale != 1 else "")
    return Coded(codec, setting, data, budget, to_tensor(decoded))


def _jpeg(image: Image.Image, quality: int) -> bytes:
    return min((_save(image, "JPEG", quality=quality, optimize=True, progressive=p) for p in (False, True)), key=len)


def _webp(image: Image.Image, quality: int) -> bytes:
    return _save(image, "WEBP", quality=quality)


PICTURE_CODECS: Mapping[str, Callable[[Image.Image, int], bytes]] = {"JPEG": _jpeg, "WebP": _webp}


def _save(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# --- sound -----------------------------------------------------------------------------------------------------------


def opus(waveform: Tensor, rate: int, budget: int) -> Coded:
    """Sound as Opus in Ogg in at most so many bytes; its lowest bit rate is 6 kbit/s.

    Args:
        waveform: (channels,T) in [-1,1]; channels are averaged.
        rate: Hz.
        budget: bytes.

    Returns:
        of all sample rates of Opus up to the first that holds the whole sound, the one that is closest to the original
        in mel distance.
    """
    mono = to_channels(waveform, 1)
    enough = next((index for index, each in enumerate(OPUS_RATES) if each >= rate), len(OPUS_RATES) - 1)
    distance = criteria("audio", rate)[0]
    attempts = [_at_rate(mono, rate, budget, own) for own in OPUS_RATES[: enough + 1]]
    return min(_smallest(attempts), key=lambda coded: distance.value(mono, coded.decoded))


def _at_rate(waveform: Tensor, rate: int, budget: int, own: int) -> Coded:
    samples = resample(waveform, rate, own)
    bit_rate, data = _highest(OPUS_BIT_RATES, budget, lambda bits: _opus(samples, own, bits))
    decoded, _ = read_audio(data)
    restored = resample(decoded, own, rate)
    missing = max(0, waveform.shape[-1] - restored.shape[-1])
    restored = torch.nn.functional.pad(restored[..., : waveform.shape[-1]], (0, missing))
    return Coded("Opus", f"{bit_rate / 1000:g} kbit/s at {own / 1000:g} kHz", data, budget, restored)


def _opus(samples: Tensor, rate: int, bit_rate: int) -> bytes:
    soundfile = require("soundfile", "audio")
    level = (OPUS_BIT_RATES[-1] - bit_rate) / (OPUS_BIT_RATES[-1] - OPUS_BIT_RATES[0])  # 1 is the lowest bit rate
    buffer = io.BytesIO()
    frames = samples.t().contiguous().numpy()
    soundfile.write(buffer, frames, rate, format="OGG", subtype="OPUS", compression_level=level)
    return buffer.getvalue()


def _smallest(attempts: Sequence[Coded]) -> list[Coded]:
    """The files that fit; where none does, the smallest and those that are hardly larger."""
    least = min(len(coded.data) for coded in attempts)
    limit = attempts[0].budget if least <= attempts[0].budget else SLACK * least
    return [coded for coded in attempts if len(coded.data) <= limit]


# --- both ------------------------------------------------------------------------------------------------------------


def _highest(settings: range, budget: int, encode: Callable[[int], bytes]) -> tuple[int, bytes]:
    """The highest setting whose file fits the budget, and the file; the lowest one where none fits.

    Sizes grow with the setting but for small steps back, so that a neighbour a few bytes better may be missed.
    """
    best = settings[0], encode(settings[0])
    low, high = 1, len(settings) - 1
    while len(best[1]) <= budget and low <= high:
        middle = (low + high) // 2
        data = encode(settings[middle])
        if len(data) <= budget:
            best, low = (settings[middle], data), middle + 1
        else:
            high = middle - 1
    return best
