"""Sound in the classical codecs: Opus, as libsndfile writes it, and Codec2, where its programs are installed.

Opus is a whole Ogg file; its lowest bit rate is 6 kbit/s, and a file of it may come out a little lower. Codec2 is a
codec of speech by radio at 8 kHz from 700 to 3,200 bit/s; its stream has no header, and its programs fill up each
frame to whole bytes, which is not counted here, because a radio would not send it.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from smalti.audio.io import read_audio, resample, to_channels
from smalti.bench.classical.coded import Coded, Ladder, highest
from smalti.bench.reconstruction import criteria
from smalti.errors import InputError, UnavailableError, require

SLACK = 1.05  # files this much larger than the smallest count as being as small
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)  # Hz; Opus has no others
OPUS_BIT_RATES = range(6_000, 256_001, 500)  # libsndfile's lowest and highest, bits a second of one channel

CODEC2_RATE = 8_000  # Hz
CODEC2_HELP = (
    "Codec2 is not installed: its programs c2enc and c2dec are in Debian's package codec2 (apt install codec2)"
)
PATIENCE = 600  # seconds that its programs may take for a file


@dataclass(frozen=True)
class Mode:
    """A mode of Codec2.

    Args:
        frame: samples that a frame stands for.
        bits: of a frame.
        delay: samples that the decoder's output is late, measured with STOI over 6 clips of LibriSpeech.
    """

    frame: int
    bits: int
    delay: int = 160

    @property
    def bit_rate(self) -> float:
        return CODEC2_RATE * self.bits / self.frame


CODEC2: Mapping[str, Mode] = {
    "700C": Mode(320, 28, delay=240),
    "1200": Mode(320, 48),
    "1300": Mode(320, 52),
    "1400": Mode(320, 56),
    "1600": Mode(320, 64),
    "2400": Mode(160, 48),
    "3200": Mode(160, 64),
}


class OpusLadder(Ladder):
    """A sound in Opus in Ogg, at any budget.

    Of all sample rates of Opus up to the first that holds the whole sound, that one is taken that is closest to the
    original in mel distance.

    Args:
        waveform: (channels,T) in [-1,1]; channels are averaged.
        rate: Hz.
    """

    def __init__(self, waveform: Tensor, rate: int) -> None:
        self.waveform, self.rate = to_channels(waveform, 1), rate
        enough = next((index for index, each in enumerate(OPUS_RATES) if each >= rate), len(OPUS_RATES) - 1)
        self._samples = {own: resample(self.waveform, rate, own) for own in OPUS_RATES[: enough + 1]}
        self._distance = criteria("audio", rate)[0]
        self._files: dict[tuple[int, int], bytes] = {}
        self._decoded: dict[tuple[int, int], tuple[Tensor, float]] = {}

    def at(self, budget: int) -> dict[str, Coded]:
        attempts = _smallest([self._at_rate(budget, own) for own in self._samples], budget)
        return {"": min(attempts, key=lambda attempt: attempt[1])[0]}

    def _at_rate(self, budget: int, own: int) -> tuple[Coded, float]:
        """The file at a sample rate, and its mel distance."""
        bit_rate, data = highest(OPUS_BIT_RATES, budget, lambda bits: self._file(own, bits))
        if (own, bit_rate) not in self._decoded:
            decoded, _ = read_audio(data)
            restored = _as_long_as(self.waveform, resample(decoded, own, self.rate))
            self._decoded[own, bit_rate] = restored, self._distance.value(self.waveform, restored)
        decoded, distance = self._decoded[own, bit_rate]
        return Coded("Opus", f"{bit_rate / 1000:g} kbit/s at {own / 1000:g} kHz", data, budget, decoded), distance

    def _file(self, own: int, bit_rate: int) -> bytes:
        if (own, bit_rate) not in self._files:
            self._files[own, bit_rate] = _opus(self._samples[own], own, bit_rate)
        return self._files[own, bit_rate]


def opus(waveform: Tensor, rate: int, budget: int) -> Coded:
    """A sound as Opus in at most so many bytes; see `OpusLadder`."""
    return OpusLadder(waveform, rate).at(budget)[""]


def _opus(samples: Tensor, rate: int, bit_rate: int) -> bytes:
    soundfile = require("soundfile", "audio")
    level = (OPUS_BIT_RATES[-1] - bit_rate) / (OPUS_BIT_RATES[-1] - OPUS_BIT_RATES[0])  # 1 is the lowest bit rate
    buffer = io.BytesIO()
    frames = samples.t().contiguous().numpy()
    soundfile.write(buffer, frames, rate, format="OGG", subtype="OPUS", compression_level=level)
    return buffer.getvalue()


def _smallest(attempts: Sequence[tuple[Coded, float]], budget: int) -> list[tuple[Coded, float]]:
    """The files that fit; where none does, the smallest and those that are hardly larger."""
    least = min(len(coded.data) for coded, _ in attempts)
    limit = budget if least <= budget else SLACK * least
    return [attempt for attempt in attempts if len(attempt[0].data) <= limit]


class Codec2Ladder(Ladder):
    """Speech in Codec2, at any budget: its highest mode that fits, else its lowest.

    The decoder's delay is undone, so that metrics compare the same moments.

    Args:
        waveform: (channels,T) in [-1,1]; channels are averaged.
        rate: Hz; it is resampled to 8 kHz and back.

    Raises:
        UnavailableError: if the programs of Codec2 are not installed; the message says how to get them.
    """

    def __init__(self, waveform: Tensor, rate: int) -> None:
        if missing := codec2_missing():
            raise UnavailableError(missing)
        self.waveform, self.rate = to_channels(waveform, 1), rate
        samples = resample(self.waveform, rate, CODEC2_RATE)[0].clamp(-1, 1)
        self._pcm = (samples * 32767).round().short().numpy()
        self._coded: dict[str, tuple[bytes, Tensor]] = {}

    def at(self, budget: int) -> dict[str, Coded]:
        fitting = [name for name, mode in CODEC2.items() if self._bytes(mode) <= budget]
        name = fitting[-1] if fitting else next(iter(CODEC2))
        if name not in self._coded:
            self._coded[name] = self._there_and_back(name)
        data, decoded = self._coded[name]
        return {"": Coded("Codec2", f"mode {name}", data, budget, decoded)}

    def _bytes(self, mode: Mode) -> int:
        return -(-self._frames(mode) * mode.bits // 8)

    def _frames(self, mode: Mode) -> int:
        return -(-len(self._pcm) // mode.frame)

    def _there_and_back(self, name: str) -> tuple[bytes, Tensor]:
        mode = CODEC2[name]
        padded = np.pad(self._pcm, (0, self._frames(mode) * mode.frame - len(self._pcm)))  # it drops half a frame
        with TemporaryDirectory() as folder:
            raw, bits, back = (Path(folder, each) for each in ("in.raw", "codec2.bit", "out.raw"))
            padded.astype("<i2").tofile(raw)
            _run("c2enc", name, raw, bits)
            _run("c2dec", name, bits, back)
            frames = np.fromfile(bits, np.uint8).reshape(self._frames(mode), -1)
            decoded = np.fromfile(back, "<i2").astype(np.float32) / 32768
        data = np.packbits(np.unpackbits(frames, axis=1)[:, : mode.bits]).tobytes()
        in_time = torch.from_numpy(decoded)[None, mode.delay :]
        return data, _as_long_as(self.waveform, resample(in_time, CODEC2_RATE, self.rate))


def codec2(waveform: Tensor, rate: int, budget: int) -> Coded:
    """Speech as Codec2 in at most so many bytes; see `Codec2Ladder`."""
    return Codec2Ladder(waveform, rate).at(budget)[""]


def codec2_missing() -> str:
    """Why Codec2 can't be used here, or nothing."""
    return "" if all(shutil.which(program) for program in ("c2enc", "c2dec")) else CODEC2_HELP


def _run(program: str, mode: str, source: Path, target: Path) -> None:
    try:
        subprocess.run([program, mode, source, target], check=True, capture_output=True, timeout=PATIENCE)
    except (subprocess.SubprocessError, OSError) as error:
        raise InputError(f"{program} {mode} failed: {error}") from None


def _as_long_as(original: Tensor, decoded: Tensor) -> Tensor:
    missing = max(0, original.shape[-1] - decoded.shape[-1])
    return torch.nn.functional.pad(decoded[..., : original.shape[-1]], (0, missing))


@dataclass(frozen=True)
class SoundCodec:
    """A codec of sound.

    Args:
        ladder: of a waveform and its rate.
        absent: why it can't be used here, or nothing.
    """

    ladder: Callable[[Tensor, int], Ladder]
    absent: Callable[[], str] = lambda: ""

    @property
    def missing(self) -> str:
        return self.absent()


SOUND_CODECS: Mapping[str, SoundCodec] = {
    "Opus": SoundCodec(OpusLadder),
    "Codec2": SoundCodec(Codec2Ladder, codec2_missing),
}
