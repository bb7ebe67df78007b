"""How well a tokenizer brings files back: quality, codebook use, bits, speed and memory over a set of files.

    file ──read──► sample ──encode──► Tokens ──decode──► reconstruction
                     └─────────────────┼───────────────────┴──► criteria: PSNR, SSIM; mel distance, STOI ...
                                       └──► codebook use, bits               (encode and decode are metered)

    measure(tokenizer, inputs) ──► Tally ──row()──► plain data, the same for every tokenizer

Every number stands under the protocol string that says how it was measured, and beside the count of samples that have
it. A file that can't be read, and a metric that has no value for a sample, are listed with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from smalti.bench.codes import CodeReport, CodeStatistics
from smalti.bench.resources import Cost, Meter
from smalti.errors import InputError, MissingDependencyError, SmaltiError, UnavailableError
from smalti.metric import SampleMean
from smalti.store.media import Sample, Square, media
from smalti.store.plan import Input
from smalti.tokenizer import NeuralTokenizer
from smalti.tokens import Tokens

if TYPE_CHECKING:
    from smalti.audio.metrics import TranscriptWER

PSNR_CAP = 100.0  # dB of identical pictures, whose PSNR is infinite and would swallow the mean


@dataclass(frozen=True)
class Criterion:
    """A metric and how to read it.

    Args:
        label: its name for people.
        unit: "dB", or nothing.
        better: which direction is good.
        metric: measures one pair at a time.
        reads: it compares with what was said, not with the original.
    """

    label: str
    unit: str
    better: Literal["higher", "lower"]
    metric: SampleMean | TranscriptWER
    reads: bool = False

    @property
    def heading(self) -> str:
        return f"{self.label} {self.unit}".strip()

    def value(self, reference: Tensor, reconstruction: Tensor, text: str | None = None) -> float:
        """The metric of one sample.

        Args:
            reference, reconstruction: without a batch axis.
            text: what is said in it, where that is known.

        Raises:
            InputError: if it has no finite value, or the text is missing that it is compared with.
        """
        if self.reads and text is None:
            raise InputError(f"{self.label}: it has no transcript")
        against: Any = [text] if self.reads else reference[None]
        value = float(self.metric.values(against, reconstruction[None]))
        if not isfinite(value):
            raise InputError(f"{self.label} is {value}")
        return value


def criteria(modality: str, rate: int = 0, *, transcripts: bool = False) -> tuple[Criterion, ...]:
    """What reconstructions of a modality are judged by.

    PESQ, DNSMOS and word error rates are among them where their packages are installed (extras pesq and bench).

    Args:
        modality: "image" or "audio".
        rate: of the audio, Hz.
        transcripts: what is said is known of some samples.

    Raises:
        UnavailableError: for another modality.
    """
    if modality == "image":
        from smalti.image.metrics import PSNR, SSIM

        return (Criterion("PSNR", "dB", "higher", PSNR(cap=PSNR_CAP)), Criterion("SSIM", "", "higher", SSIM()))
    if modality == "audio":
        return (*_spectral(rate), *_judges(rate, transcripts))
    raise UnavailableError(f"reconstructions of modality {modality!r} can't be measured yet: image and audio can")


def _spectral(rate: int) -> tuple[Criterion, ...]:
    from smalti.audio.metrics import SISDR, STOI, MelDistance, MultiResolutionSTFTDistance

    return (
        Criterion("mel distance", "dB", "lower", MelDistance(rate)),
        Criterion("STFT distance", "", "lower", MultiResolutionSTFTDistance(rate)),
        Criterion("STOI", "", "higher", STOI(rate)),
        Criterion("eSTOI", "", "higher", STOI(rate, extended=True)),
        Criterion("SI-SDR", "dB", "higher", SISDR(rate)),
    )


def _judges(rate: int, transcripts: bool) -> Iterator[Criterion]:
    """Models of listeners, as far as they are installed."""
    from smalti.audio.metrics import DNSMOS, PESQ, RelativeWER, TranscriptWER

    if find_spec("pesq"):
        yield Criterion("PESQ", "", "higher", PESQ(rate))
    if find_spec("speechmos") and find_spec("onnxruntime"):
        yield Criterion("DNSMOS", "", "higher", DNSMOS(rate))
    if find_spec("pocketsphinx") and find_spec("jiwer"):
        yield Criterion("rel. WER", "", "lower", RelativeWER(rate))
        if transcripts:
            yield Criterion("WER", "", "lower", TranscriptWER(rate), reads=True)


@dataclass(frozen=True)
class Reconstructed:
    """One file, there and back.

    Args:
        id: of the file.
        sample: what was encoded.
        tokens: batch of one, on the CPU.
        decoded: what came back, without a batch axis, on the CPU.
        encode, decode: what each took.
    """

    id: str
    sample: Sample
    tokens: Tokens
    decoded: Tensor
    encode: Cost
    decode: Cost


@dataclass(frozen=True)
class Failed:
    """A file that can't be read or encoded, and why."""

    id: str
    error: str


def reconstruct(
    tokenizer: NeuralTokenizer,
    inputs: Sequence[Input],
    *,
    square: Square | None = None,
    rate: int | None = None,
    warm: bool = False,
) -> Iterator[Reconstructed | Failed]:
    """Encodes and decodes files one by one, in order.

    Args:
        tokenizer: on its device.
        inputs: files of its modality.
        square: images: what they are cut to, or None for whole pictures.
        rate: audio: resampled to this rate before it is encoded, or None for its own.
        warm: the tokenizer has been at work already; else the first file is done once before it is metered, so that
            what is set up only once does not count.
    """
    files, meter = media(tokenizer.modality), Meter(tokenizer.device)
    for each in inputs:
        try:
            sample = at_rate(files.read(each.path, square), rate)
            if not warm:
                tokenizer.decode(tokenizer.encode(sample.tensor()[None], **sample.conditions))
                warm = True
            yield _round_trip(tokenizer, each.id, sample, meter)
        except MissingDependencyError:
            raise  # no fault of the file's
        except (SmaltiError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            yield Failed(each.id, " ".join(str(error).split()) or type(error).__name__)


def _round_trip(tokenizer: NeuralTokenizer, name: str, sample: Sample, meter: Meter) -> Reconstructed:
    x = sample.tensor()[None]
    tokens, encode = meter(lambda: tokenizer.encode(x, **sample.conditions).to("cpu"))
    decoded, decode = meter(lambda: tokenizer.decode(tokens)[0].cpu())
    return Reconstructed(name, sample, tokens, decoded, encode, decode)


def at_rate(sample: Sample, rate: int | None) -> Sample:
    """A sound at another rate, Hz; pictures, and sounds of that rate, as they are."""
    own = sample.conditions.get("sample_rate")
    if rate is None or own is None or own == rate:
        return sample
    from smalti.audio.io import resample

    waveform = resample(sample.tensor(), int(own), rate)
    return replace(sample, data=waveform.numpy(), conditions={**sample.conditions, "sample_rate": rate})


# --- sums over files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """How amounts of a modality are counted.

    Args:
        work, works: what speed is per, one and many ("image", "images").
        bits: what the bit rate is called.
        amount: (work, what bits are divided by) of a sample.
    """

    work: str
    works: str
    bits: str
    amount: Callable[[Sample], tuple[float, float]]


def unit(modality: str) -> Unit:
    """The units of a modality.

    Raises:
        UnavailableError: if it can't be measured yet.
    """
    if modality == "image":
        return Unit(
            "image",
            "images",
            "bits per pixel",
            lambda sample: (1.0, float(sample.data.shape[1] * sample.data.shape[2])),
        )
    if modality == "audio":
        return Unit(
            "second of audio", "seconds of audio", "kbit/s", lambda sample: (seconds(sample), 1000 * seconds(sample))
        )
    raise UnavailableError(f"reconstructions of modality {modality!r} can't be measured yet: image and audio can")


def seconds(sample: Sample) -> float:
    """How long a sound is."""
    return float(sample.data.shape[-1] / sample.conditions["sample_rate"])


@dataclass
class Score:
    """A criterion over the samples that have a value.

    Args:
        criterion: what it is.
        values: of each of them, by id.
    """

    criterion: Criterion
    values: dict[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        return sum(self.values.values()) / len(self.values) if self.values else None


@dataclass(frozen=True)
class Unscored:
    """A sample for which a criterion has no value."""

    id: str
    label: str
    reason: str


class Tally:
    """Adds up reconstructions of one tokenizer.

    Args:
        tokenizer: whose.
        reference: what the user called it.
        transcripts: what is said in samples, by id.

    Attributes:
        scores: by protocol; samples of different rates have different ones.
        unscored: what a criterion had no value for.
        failed: files without a reconstruction.
        samples, work, extent, bits: how many, in the units of `unit`, at ceil(log2 V) bits a code.
        encode, decode: what all of them took.
    """

    def __init__(
        self, tokenizer: NeuralTokenizer, reference: str, transcripts: Mapping[str, str] | None = None
    ) -> None:
        self.tokenizer, self.reference, self.unit = tokenizer, reference, unit(tokenizer.modality)
        self.transcripts = transcripts or {}
        self.scores: dict[str, Score] = {}
        self.unscored: list[Unscored] = []
        self.failed: list[Failed] = []
        self.samples, self.work, self.extent, self.bits = 0, 0.0, 0.0, 0
        self.encode, self.decode = Cost(), Cost()
        self._codes: dict[str, CodeStatistics] = {}
        self._criteria: dict[int, tuple[Criterion, ...]] = {}

    def add(self, item: Reconstructed | Failed) -> None:
        """Takes in one file."""
        if isinstance(item, Failed):
            self.failed.append(item)
            return
        work, extent = self.unit.amount(item.sample)
        self.samples, self.work, self.extent = self.samples + 1, self.work + work, self.extent + extent
        self.bits += item.tokens.bits
        self.encode, self.decode = self.encode + item.encode, self.decode + item.decode
        for name, stream in item.tokens.streams.items():
            statistics = self._codes.setdefault(name, CodeStatistics(stream.vocab))
            statistics.update(stream.rows(), stream.valid())
        self._score(item)

    def _score(self, item: Reconstructed) -> None:
        rate = int(item.sample.conditions.get("sample_rate", 0))
        if rate not in self._criteria:
            self._criteria[rate] = criteria(self.tokenizer.modality, rate, transcripts=bool(self.transcripts))
        reference, text = item.sample.tensor(), self.transcripts.get(item.id)
        for criterion in self._criteria[rate]:
            score = self.scores.setdefault(criterion.metric.protocol, Score(criterion))
            try:
                score.values[item.id] = criterion.value(reference, item.decoded, text)
            except InputError as error:
                reason = str(error).removeprefix(f"{criterion.label} of sample 0: ")  # of a batch of one
                self.unscored.append(Unscored(item.id, criterion.label, " ".join(reason.split())))

    @property
    def codes(self) -> Mapping[str, CodeReport]:
        """How the codebooks were used, by stream."""
        return {name: statistics.compute() for name, statistics in self._codes.items()}

    @property
    def entropy_bits(self) -> float:
        """Bits of everything if every slot had an ideal entropy coder that knows how often its codes come."""
        return sum(slot.entropy * slot.count for report in self.codes.values() for slot in report.slots)

    def row(self) -> dict[str, Any]:
        """Everything that was measured, as plain data."""
        return {
            "tokenizer": self.reference,
            "system": self.tokenizer.name,
            "modality": self.tokenizer.modality,
            "samples": self.samples,
            "failed": [asdict(each) for each in self.failed],
            "quality": [
                {
                    "name": score.criterion.label,
                    "protocol": protocol,
                    "unit": score.criterion.unit,
                    "better": score.criterion.better,
                    "value": score.mean,
                    "samples": len(score.values),
                }
                for protocol, score in self.scores.items()
            ],
            "unscored": [asdict(each) for each in self.unscored],
            "codebook": {name: asdict(report) for name, report in self.codes.items()},
            "bits": {
                "unit": self.unit.bits,
                "nominal": self.bits / self.extent if self.extent else None,
                "entropy": self.entropy_bits / self.extent if self.extent else None,
            },
            "speed": {
                "unit": self.unit.work,
                "threads": torch.get_num_threads(),
                "device": str(self.tokenizer.device),
                "encode": self._speed(self.encode),
                "decode": self._speed(self.decode),
            },
            "peak_memory": (self.encode + self.decode).peak,
            "parameters": sum(parameter.numel() for parameter in self.tokenizer.parameters()),
        }

    def _speed(self, cost: Cost) -> dict[str, float | None]:
        if not self.work:
            return {"per_second": None, "cpu_seconds": None}
        return {"per_second": self.work / cost.seconds, "cpu_seconds": cost.cpu_seconds / self.work}


def measure(
    tokenizer: NeuralTokenizer,
    inputs: Sequence[Input],
    *,
    reference: str,
    square: Square | None = None,
    rate: int | None = None,
    transcripts: Mapping[str, str] | None = None,
    report: Callable[[int], None] | None = None,
    keep: Callable[[Reconstructed], None] | None = None,
) -> Tally:
    """Encodes, decodes and judges files.

    Args:
        tokenizer, inputs, square, rate: as in `reconstruct`.
        reference: what the user called the tokenizer.
        transcripts: what is said in sounds, by id.
        report: called with the number of files done.
        keep: called with every file that came back.
    """
    tally = Tally(tokenizer, reference, transcripts)
    for done, item in enumerate(reconstruct(tokenizer, inputs, square=square, rate=rate), 1):
        tally.add(item)
        if keep is not None and isinstance(item, Reconstructed):
            keep(item)
        if report is not None:
            report(done)
    return tally
