"""How close a reconstruction is to its waveform: spectra, SI-SDR, intelligibility and perceived quality.

    (B,C,T) twice, at one rate ──mean of channels, cut to the shorter──► the metric's own rate ──per sample──► mean

    MelDistance      dB between mel spectra, L2 over bins, mean over frames (audiocodecs)           lower is better
    STFTDistance     the same over linear bins
    LogMelDistance   L1 of natural logarithms of mels, the loss of Vocos and WavTokenizer
    MultiResolutionSTFTDistance   spectral convergence and logarithms over three STFTs (Parallel WaveGAN)
    SISDR            scale-invariant signal-to-distortion ratio, dB                                 higher is better
    STOI             short-time objective intelligibility, 0 to 1 (package pystoi)
    PESQ             ITU P.862 mean opinion score, 1 to 4.6 (package pesq, an extra of its own)
    DNSMOS           opinion predicted by a network that hears the reconstruction alone, 1 to 5 (extra bench)
    RelativeWER      words that a recogniser no longer understands, as a share of those it did      lower is better
    TranscriptWER    the same against a text that people wrote

STOI and mel distances are losses that one can train for, and then they flatter; DNSMOS and word error rates were no
loss of anybody's here, which is why they stand beside them.

SI-SDR punishes a delay of one sample that nobody hears, and generative decoders delay and re-phase: read it beside the
others. Nothing is aligned in time.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from smalti.audio.io import RESAMPLER, resample
from smalti.audio.losses import VOCOS_MEL, log_mel_distance, multi_resolution_stft_distance
from smalti.audio.mel import MelSpectrogram, magnitudes
from smalti.errors import ConfigError, InputError, require
from smalti.metric import Metric, SampleMean

AUDIOCODECS_MEL = MelSpectrogram(rate=16_000, n_fft=1024, hop=320, mels=80)
QUIETEST = 1e-10  # magnitudes are raised to it before they become dB

DNSMOS_RATE = 16_000  # Hz
DNSMOS_WINDOW = 144_160  # samples that its network takes at once, 9.01 s
# From what the network says to opinions: the quadratics of the DNSMOS P.835 release, highest power first.
DNSMOS_OPINIONS: dict[str, tuple[int, tuple[float, float, float]]] = {
    "signal": (0, (-0.08397278, 1.22083953, 0.0052439)),
    "background": (1, (-0.13166888, 1.60915514, -0.39604546)),
    "overall": (2, (-0.06766283, 1.11546468, 0.04602535)),
}


class WaveformMetric(SampleMean):
    """Base of metrics on waveforms.

    Args:
        rate: of the waveforms that `update` gets, Hz.

    Attributes:
        own_rate: the rate that the metric is defined at; None for any.
    """

    name: str
    own_rate: int | None = None

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.rate = rate

    @property
    def protocol(self) -> str:
        own = self.own_rate or self.rate
        source = f"/from-{self.rate}Hz-soxr-{RESAMPLER}" if own != self.rate else ""
        return f"{self.name}/{own}Hz{source}/mono/per-sample-mean"

    def values(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """The value of each sample: (batch,), float64.

        Args:
            reference, reconstruction: (batch, channels, time); the longer is cut to the shorter.

        Raises:
            InputError: if they are no such pair, hold NaN, or a sample has no value.
        """
        x, y = self._mono(reference, "reference"), self._mono(reconstruction, "reconstruction")
        if len(x) != len(y):
            raise InputError(f"there are {len(x)} references and {len(y)} reconstructions")
        time = min(x.shape[1], y.shape[1])
        return self.compare(x[:, :time], y[:, :time]).double()

    @abstractmethod
    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        """The value of each pair: references and reconstructions (batch, time), float64, at the metric's own rate."""

    def _mono(self, waveform: Tensor, what: str) -> Tensor:
        if waveform.ndim != 3 or not waveform.is_floating_point() or 0 in waveform.shape:
            raise InputError(
                f"the {what} must be floating, (batch, channels, time), got {waveform.dtype} {tuple(waveform.shape)}"
            )
        if not bool(torch.isfinite(waveform).all()):
            raise InputError(f"the {what} holds NaN or infinity")
        mono = waveform.detach().cpu().double().mean(1)
        if self.own_rate is None or self.own_rate == self.rate:
            return mono
        return resample(mono, self.rate, self.own_rate).double()


class MelDistance(WaveformMetric):
    """Distance of mel spectra in dB: per frame the Euclidean norm over bins, then the mean over frames."""

    name = f"mel-distance-dB/{AUDIOCODECS_MEL.label}"
    own_rate = AUDIOCODECS_MEL.rate

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        return (self._decibels(x) - self._decibels(y)).norm(dim=-1).mean(-1)

    def _decibels(self, x: Tensor) -> Tensor:
        return 10 * AUDIOCODECS_MEL(x).clamp(min=QUIETEST).log10()


class STFTDistance(MelDistance):
    """The same over the bins of the STFT itself."""

    name = f"stft-distance-dB/{AUDIOCODECS_MEL.n_fft}-{AUDIOCODECS_MEL.hop}"

    def _decibels(self, x: Tensor) -> Tensor:
        return 10 * magnitudes(x, AUDIOCODECS_MEL.n_fft, AUDIOCODECS_MEL.hop).clamp(min=QUIETEST).log10()


class LogMelDistance(WaveformMetric):
    """The mel loss of Vocos, WavTokenizer and SimVQ."""

    name = f"log-mel-l1/{VOCOS_MEL.label}"
    own_rate = VOCOS_MEL.rate

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        return log_mel_distance(x[:, None], y[:, None])


class MultiResolutionSTFTDistance(WaveformMetric):
    """The STFT loss of Parallel WaveGAN, at the rate of the waveforms."""

    name = "multi-resolution-stft/parallel-wavegan"

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        return multi_resolution_stft_distance(x[:, None], y[:, None])


class SISDR(WaveformMetric):
    """10 log10(|a x|² / |y - a x|²) of zero-mean waveforms, a x the projection of y on x; infinite for y = a x."""

    name = "si-sdr-dB"

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        _refuse((x == 0).all(1), "SI-SDR", "the reference is silent")
        target = (x * y).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
        return 10 * (target.square().sum(1) / (y - target).square().sum(1)).log10()


class STOI(WaveformMetric):
    """Short-time objective intelligibility (Taal 2011), or its extension for modulated noise (Jensen 2016).

    Args:
        rate: of the waveforms, Hz; the package resamples to 10 kHz itself.
        extended: eSTOI.
    """

    def __init__(self, rate: int, *, extended: bool = False) -> None:
        super().__init__(rate)
        self.extended = extended
        self.name = "estoi" if extended else "stoi"

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        pystoi = require("pystoi", "audio")
        _refuse((x == 0).all(1), "STOI", "the reference is silent")
        values = []
        for index, (reference, reconstruction) in enumerate(zip(x.numpy(), y.numpy(), strict=True)):
            with warnings.catch_warnings():
                # The package warns and gives 1e-5 where less than 30 frames (0.4 s) of the reference are not silent.
                warnings.simplefilter("error", RuntimeWarning)
                try:
                    values.append(float(pystoi.stoi(reference, reconstruction, self.rate, extended=self.extended)))
                except (RuntimeWarning, ValueError, IndexError):
                    raise InputError(f"STOI of sample {index}: the reference has less than 0.4 s of sound") from None
        return torch.tensor(values, dtype=torch.float64)


class PESQ(WaveformMetric):
    """Perceptual evaluation of speech quality.

    Args:
        rate: of the waveforms, Hz; they are resampled to 16 kHz, except narrow band at 8 kHz.
        band: "wide" (P.862.2) or "narrow" (P.862).

    Raises:
        MissingDependencyError: at the first value, if the package pesq is not installed.
        InputError: at a sample without speech, which has no value; it is never scored.
    """

    def __init__(self, rate: int, *, band: Literal["wide", "narrow"] = "wide") -> None:
        super().__init__(rate)
        if band not in ("wide", "narrow"):
            raise ConfigError(f"band must be 'wide' or 'narrow', got {band!r}")
        self.band = band
        self.name = f"pesq-{band}"
        # The package measures narrow band at either rate; the results differ, so the protocol names the rate.
        self.own_rate = 8_000 if band == "narrow" and rate == 8_000 else 16_000

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        package = require("pesq", "pesq")
        _refuse((x == 0).all(1) | (y == 0).all(1), "PESQ", "it is silent")
        values = []
        for index, (reference, reconstruction) in enumerate(zip(x.numpy(), y.numpy(), strict=True)):
            try:
                mode = "wb" if self.band == "wide" else "nb"
                values.append(float(package.pesq(self.own_rate, reference, reconstruction, mode)))
            except (package.PesqError, ValueError) as error:
                raise InputError(f"PESQ of sample {index}: {_reason(error)}") from None
        return torch.tensor(values, dtype=torch.float64)


class DNSMOS(WaveformMetric):
    """What listeners would say of speech, as a network predicts it from the reconstruction alone (ITU P.835).

    Source: "DNSMOS P.835: A Non-Intrusive Perceptual Objective Speech Quality Metric to Evaluate Noise Suppressors"
    (2022); the weights are those in the wheel of speechmos. That package is not imported: it would need librosa, which
    installs several hundred MB, for another model's features only.

    Args:
        rate: of the waveforms, Hz; they are resampled to 16 kHz and cut at ±1.
        part: "overall", "signal" (the speech) or "background" (its noise).

    Raises:
        MissingDependencyError: at the first value, if speechmos or onnxruntime is not installed.
    """

    own_rate = DNSMOS_RATE

    def __init__(self, rate: int, *, part: Literal["overall", "signal", "background"] = "overall") -> None:
        super().__init__(rate)
        if part not in DNSMOS_OPINIONS:
            raise ConfigError(f"part must be one of {', '.join(DNSMOS_OPINIONS)}; got {part!r}")
        self.part = part
        self.name = f"dnsmos-p835-{part}"

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        network = _dnsmos()
        output, powers = DNSMOS_OPINIONS[self.part]
        values = []
        for each in y:
            heard = network.run(None, {"input_1": _windows(each).numpy()})[0][:, output].astype(np.float64)
            values.append(float(np.polyval(powers, heard).mean()))
        return torch.tensor(values, dtype=torch.float64)


def _windows(waveform: Tensor) -> Tensor:
    """What the network hears of a sound: windows a second apart, of a short sound its repetition: (n, 144160)."""
    while len(waveform) < DNSMOS_WINDOW:
        waveform = waveform.repeat(2)
    count = max(1, len(waveform) // DNSMOS_RATE - 9)
    return waveform.clamp(-1, 1).float().unfold(0, DNSMOS_WINDOW, DNSMOS_RATE)[:count]


@cache
def _dnsmos() -> Any:
    """The network, in one thread, so that its values do not depend on the machine's cores."""
    package, runtime = require("speechmos", "bench"), require("onnxruntime", "bench")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    file = Path(str(package.__file__)).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
    return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


class Recogniser:
    """Speech to words, offline: pocketsphinx with the English model in its wheel.

    It understands clean American English moderately and nothing else, which is enough to notice words that a codec
    took away. What a sound gave is remembered, because each original is compared with many reconstructions.

    Raises:
        MissingDependencyError: at the first sound, if pocketsphinx is not installed.
    """

    rate = 16_000
    _heard: ClassVar[dict[bytes, str]] = {}

    @property
    def label(self) -> str:
        """Its name and version."""
        require("pocketsphinx", "bench")
        return f"pocketsphinx-{version('pocketsphinx')}-en-us"

    def words(self, waveform: Tensor) -> str:
        """The words of a sound, (time,) at `rate`, between single spaces."""
        pcm = (waveform.clamp(-1, 1) * 32767).round().short().numpy().tobytes()
        key = hashlib.sha256(pcm).digest()
        if key not in self._heard:
            self._heard[key] = self._recognise(pcm)
        return self._heard[key]

    @staticmethod
    def _recognise(pcm: bytes) -> str:
        decoder = _pocketsphinx()
        decoder.reinit_feat()  # it adapts to what it heard before, and results would depend on the order of files
        decoder.start_utt()
        decoder.process_raw(pcm, full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return " ".join(found.hypstr.split()) if found is not None else ""


@cache
def _pocketsphinx() -> Any:
    return require("pocketsphinx", "bench").Decoder(loglevel="FATAL")


class RelativeWER(WaveformMetric):
    """Word errors of the recognised reconstruction against the recognised original, over the words of the latter.

    Relative, because the recogniser's own mistakes are in both: an untouched sound has 0. It can pass 1.

    Args:
        rate: of the waveforms, Hz; they are resampled to 16 kHz.

    Raises:
        MissingDependencyError: at the first value, if pocketsphinx or jiwer is not installed.
        InputError: at a sample in whose original no word is recognised.
    """

    own_rate = Recogniser.rate

    def __init__(self, rate: int) -> None:
        super().__init__(rate)
        self.recogniser = Recogniser()

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"relative-wer/{self.recogniser.label}"

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tensor(
            [_word_errors(self.recogniser.words(a), self.recogniser.words(b)) for a, b in zip(x, y, strict=True)],
            dtype=torch.float64,
        )


class TranscriptWER(Metric):
    """Word errors of the recognised reconstruction against what was said, over the words said; mean over samples.

    The recogniser's own mistakes count, so compare with the value of the originals.

    Args:
        rate: of the waveforms, Hz; they are resampled to 16 kHz.
    """

    def __init__(self, rate: int) -> None:
        self.relative = RelativeWER(rate)
        self.total, self.count = 0.0, 0

    @property
    def protocol(self) -> str:
        return self.relative.protocol.replace("relative-wer", "transcript-wer", 1)

    def values(self, texts: Sequence[str], reconstruction: Tensor) -> Tensor:
        """The value of each sample: (batch,), float64.

        Args:
            texts: what is said; case and punctuation do not count.
            reconstruction: (batch, channels, time).

        Raises:
            InputError: if counts differ, or a text has no word.
        """
        waveforms = self.relative._mono(reconstruction, "reconstruction")
        if len(texts) != len(waveforms):
            raise InputError(f"there are {len(texts)} transcripts and {len(waveforms)} reconstructions")
        words = [self.relative.recogniser.words(each) for each in waveforms]
        errors = [_word_errors(_plain(text), heard) for text, heard in zip(texts, words, strict=True)]
        return torch.tensor(errors, dtype=torch.float64)

    def update(self, texts: Sequence[str], reconstruction: Tensor) -> None:
        """Gathers a batch of samples."""
        values = self.values(texts, reconstruction)
        self.total, self.count = self.total + float(values.sum()), self.count + len(values)

    def compute(self) -> float:
        if not self.count:
            raise InputError(f"{self.protocol}: nothing was gathered")
        return self.total / self.count

    def _take(self, other: TranscriptWER) -> None:
        self.total, self.count = self.total + other.total, self.count + other.count


def _word_errors(reference: str, hypothesis: str) -> float:
    if not reference:
        raise InputError("WER of sample 0: no word is recognised in the original")
    return float(require("jiwer", "bench").wer(reference, hypothesis))


def _plain(text: str) -> str:
    """Lower case without punctuation, as the recogniser writes; apostrophes inside words stay."""
    kept = "".join(letter if letter.isalnum() or letter == "'" else " " for letter in text.lower())
    return " ".join(word.strip("'") for word in kept.split() if word.strip("'"))


def _reason(error: Exception) -> str:
    text = error.args[0] if error.args else type(error).__name__
    return text.decode() if isinstance(text, bytes) else str(text)


def _refuse(wrong: Tensor, what: str, why: str) -> None:
    if bool(wrong.any()):
        raise InputError(f"{what} of sample {int(wrong.nonzero()[0])}: {why}")
