"""Tokenizers and classical codecs on the same files, at the same bytes.

    files ──measure──► a Tally per tokenizer, the bytes of each file's codes ──┐
    files ──► ladders of JPEG, AVIF ...; Opus, Codec2 ◄── budgets ─────────────┴──► rows: bytes, criteria, settings
                  └──► at a range of rates, best scale only ──────────────────────► curves

A row is one codec at one budget over all files. Every codec gets the same budget for a file: the bytes of a tokenizer's
codes for that file, a number of bytes, or a bit rate. What can't get down to it takes what it needs, and the row says
so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

from torch import Tensor

from smalti.bench.classical import CODEC2, PICTURE_CODECS, SOUND_CODECS, Coded, Ladder, PictureLadder
from smalti.bench.classical.pictures import BEST
from smalti.bench.reconstruction import (
    Criterion,
    Failed,
    Reconstructed,
    Tally,
    Unit,
    Unscored,
    at_rate,
    criteria,
    measure,
    unit,
)
from smalti.errors import ConfigError, InputError, MissingDependencyError, SmaltiError
from smalti.store.media import Sample, Square, media
from smalti.store.plan import Input
from smalti.tokenizer import NeuralTokenizer

Kind = Literal["original", "tokenizer", "classical"]
Report = Callable[[str, int, int], None]  # what is being done, files done, files in all

CURVE_LABELS = {"image": ("PSNR", "SSIM"), "audio": ("STOI", "PESQ", "DNSMOS")}
OPUS_CURVE = (6.0, 8.0, 12.0, 16.0, 24.0)  # kbit/s
FRAME = 40.0  # ms, the longest of a codec here
ROUNDING = 1.02  # bit rates of tokenizers this much above a budget keep to it: codes stand for whole frames
OWN = "own bytes"
ORIGINAL = "original, 16-bit PCM"


@dataclass(frozen=True)
class Plan:
    """What is compared, and how.

    Args:
        bytes: budgets of a file; none: those of the tokenizers.
        kbps: budgets as bit rates, kbit/s; sounds only.
        square: images: what they are cut to, or None for whole pictures.
        rate: audio: resampled to this rate first, Hz; metrics of different rates can't stand in one column.
        curves: also run the classical codecs at a range of rates.
        shown: of how many files decoded samples are kept.
        transcripts: what is said in sounds, by id.
    """

    bytes: Sequence[int] = ()
    kbps: Sequence[float] = ()
    square: Square | None = None
    rate: int = 16_000
    curves: bool = False
    shown: int = 0
    transcripts: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Row:
    """A codec at a budget, over all files.

    Args:
        codec: its name; a tokenizer's is what the user called it.
        way: how its file was found: at full size, at its best scale; else empty.
        kind: what it is.
        budget: what it was allowed, in words.
        unit: how amounts are counted.
    """

    codec: str
    way: str
    kind: Kind
    budget: str
    unit: Unit
    sizes: list[int] = field(default_factory=list)
    extents: list[float] = field(default_factory=list)
    over: int = 0
    settings: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.codec}, {self.way}" if self.way else self.codec

    @property
    def bytes(self) -> float:
        """Mean of a file."""
        return sum(self.sizes) / len(self.sizes)

    @property
    def bits(self) -> float:
        """Bits over extents, in the unit of the modality."""
        return 8 * sum(self.sizes) / sum(self.extents)

    @property
    def setting(self) -> str:
        """The setting, or the commonest and how many others there were."""
        counts = Counter(filter(None, self.settings)).most_common()
        if not counts:
            return ""
        others = f" and {len(counts) - 1} other" + "s" * (len(counts) > 2) if len(counts) > 1 else ""
        return counts[0][0] + others

    def mean(self, label: str) -> float | None:
        """The mean of a criterion over the files that have a value."""
        values = self.values.get(label)
        return sum(values) / len(values) if values else None

    def add(self, size: int, extent: float, scores: Mapping[str, float], setting: str = "", over: bool = False) -> None:
        """Takes in one file."""
        self.sizes.append(size)
        self.extents.append(extent)
        self.settings.append(setting)
        self.over += over
        for label, value in scores.items():
            self.values.setdefault(label, []).append(value)

    def data(self, judges: Sequence[Criterion]) -> dict[str, Any]:
        """Everything, as plain data."""
        return {
            "codec": self.codec,
            "way": self.way,
            "kind": self.kind,
            "budget": self.budget,
            "bytes": self.bytes,
            "over_budget": self.over,
            "bits": {"unit": self.unit.bits, "value": self.bits},
            "samples": len(self.sizes),
            "settings": dict(Counter(filter(None, self.settings)).most_common()),
            "quality": [
                {
                    "name": judge.label,
                    "protocol": judge.metric.protocol,
                    "unit": judge.unit,
                    "better": judge.better,
                    "value": self.mean(judge.label),
                    "samples": len(self.values.get(judge.label, ())),
                }
                for judge in judges
            ],
        }


@dataclass(frozen=True)
class Version:
    """What one codec makes of one sample: for the page."""

    label: str
    size: int
    setting: str
    decoded: Tensor
    scores: Mapping[str, float]


@dataclass
class Example:
    """A sample and its versions, at the budget that is closest to the first tokenizer's bytes."""

    id: str
    sample: Sample
    versions: list[Version] = field(default_factory=list)


@dataclass
class Comparison:
    """What came of it.

    Args:
        modality: of the files.
        judges: the criteria.
        plan: how.
        rows: of each budget, in order.
        curves: rows of classical codecs at a range of rates, by codec.
        tallies: a tokenizer's sums each.
        examples: the first files, in full.
        missing: classical codecs that are not installed, and how to get them.
        failed: files that can't be read or encoded.
        unscored: (codec, file, criterion, why).
    """

    modality: str
    judges: Sequence[Criterion]
    plan: Plan
    rows: list[Row] = field(default_factory=list)
    curves: dict[str, list[Row]] = field(default_factory=dict)
    tallies: list[Tally] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    failed: list[Failed] = field(default_factory=list)
    unscored: list[tuple[str, Unscored]] = field(default_factory=list)

    @property
    def unit(self) -> Unit:
        return unit(self.modality)

    def row(self, codec: str, way: str, kind: Kind, budget: str) -> Row:
        """The row of that name, which is begun where there is none."""
        for row in self.rows:
            if (row.codec, row.way, row.budget) == (codec, way, budget):
                return row
        self.rows.append(Row(codec, way, kind, budget, self.unit))
        return self.rows[-1]

    @property
    def budgets(self) -> dict[str, list[Row]]:
        """Rows by budget, in the order in which budgets were given; tokenizers first."""
        given = [*map(_size_label, self.plan.bytes), *map(_rate_label, self.plan.kbps)]
        held = {row.budget for row in self.rows}
        found: dict[str, list[Row]] = {budget: [] for budget in given if budget in held}
        for row in self.rows:
            found.setdefault(row.budget, []).append(row)
        order: dict[Kind, int] = {"original": 0, "tokenizer": 1, "classical": 2}
        return {budget: sorted(rows, key=lambda row: order[row.kind]) for budget, rows in found.items()}

    def data(self) -> list[dict[str, Any]]:
        """All rows as plain data, and one for each codec that is missing."""
        absent = [{"codec": name, "kind": "classical", "missing": why} for name, why in self.missing.items()]
        return [row.data(self.judges) for row in self.rows] + absent


def modality_of(names: Sequence[str]) -> str:
    """What files are, by their suffixes.

    Raises:
        InputError: if there are pictures and sounds among them, or neither.
    """
    counts = {
        modality: sum(name.lower().endswith(tuple(media(modality).suffixes)) for name in names)
        for modality in ("image", "audio")
    }
    found = [modality for modality, count in counts.items() if count]
    if len(found) != 1:
        held = f"{counts['image']} pictures and {counts['audio']} sounds"
        raise InputError(f"what is to be compared? There are {held}: name a folder of one kind, or a tokenizer")
    return found[0]


def compare(
    modality: str,
    inputs: Sequence[Input],
    tokenizers: Sequence[tuple[NeuralTokenizer, str]],
    plan: Plan,
    report: Report = lambda doing, done, total: None,
) -> Comparison:
    """Measures tokenizers, and classical codecs at the same bytes.

    Args:
        modality: "image" or "audio".
        inputs: files of it.
        tokenizers: each with what the user called it; may be empty where the plan has budgets.
        plan: budgets and what else is to be done.
        report: called with what is being done, how many files are done, and how many there are.

    Raises:
        ConfigError: if there is neither a tokenizer nor a budget, or a bit rate is given for pictures.
        MissingDependencyError: if what reads the files is not installed.
    """
    _check(modality, tokenizers, plan)
    judges = criteria(modality, plan.rate, transcripts=bool(plan.transcripts))
    found = Comparison(modality, judges, plan)
    codecs = PICTURE_CODECS if modality == "image" else SOUND_CODECS
    found.missing = {name: codec.missing for name, codec in codecs.items() if codec.missing}
    codes, kept = _tokenized(found, inputs, tokenizers, report)
    budgets = _Budgets(plan, codes)
    rates = _curve_rates(found, inputs) if plan.curves else {}
    for done, each in enumerate(inputs):
        report("classical codecs", done, len(inputs))
        if any(each.id not in sizes for sizes in codes.values()):
            continue  # a tokenizer failed at it, so that means would be over other files
        try:
            sample = at_rate(media(modality).read(each.path, plan.square), plan.rate)
        except MissingDependencyError:
            raise
        except (SmaltiError, OSError, MemoryError) as error:
            found.failed.append(Failed(each.id, " ".join(str(error).split()) or type(error).__name__))
            continue
        _one_file(found, each.id, sample, budgets, rates, kept.get(each.id, []))
    report("classical codecs", len(inputs), len(inputs))
    return found


def _check(modality: str, tokenizers: Sequence[tuple[NeuralTokenizer, str]], plan: Plan) -> None:
    if not (tokenizers or plan.bytes or plan.kbps):
        raise ConfigError("at how many bytes? Give --tokenizer, --bytes or (for sounds) --kbps")
    if plan.kbps and modality != "audio":
        raise ConfigError("--kbps is for sounds; pictures take --bytes")
    for tokenizer, reference in tokenizers:
        if tokenizer.modality != modality:
            raise ConfigError(f"{reference} is of modality {tokenizer.modality!r}, the files are {modality}")


# --- tokenizers ------------------------------------------------------------------------------------------------------

Codes = dict[str, dict[str, int]]  # bytes of the codes, by tokenizer and by file


def _tokenized(
    found: Comparison,
    inputs: Sequence[Input],
    tokenizers: Sequence[tuple[NeuralTokenizer, str]],
    report: Report,
) -> tuple[Codes, dict[str, list[Version]]]:
    """Measures every tokenizer: bytes of its codes, and its versions of the files that are to be shown."""
    codes: Codes = {}
    kept: dict[str, list[Version]] = {}
    failed: dict[str, Failed] = {}
    plan = found.plan
    for tokenizer, reference in tokenizers:
        own = codes.setdefault(reference, {})
        extents: dict[str, float] = {}
        decoded: dict[str, Tensor] = {}

        def keep(
            item: Reconstructed, own: dict[str, int] = own, extents: dict[str, float] = extents,
            decoded: dict[str, Tensor] = decoded,
        ) -> None:  # fmt: skip
            own[item.id] = -(-item.tokens.bits // 8)
            extents[item.id] = found.unit.amount(item.sample)[1]
            if len(decoded) < plan.shown:
                decoded[item.id] = item.decoded

        tally = measure(
            tokenizer, inputs, reference=reference, square=plan.square, rate=plan.rate, transcripts=plan.transcripts,
            report=lambda done, reference=reference: report(reference, done, len(inputs)),  # type: ignore[misc]
            keep=keep,
        )  # fmt: skip
        found.tallies.append(tally)
        failed |= {each.id: each for each in tally.failed}
        found.unscored += [(reference, each) for each in tally.unscored]
        row = Row(reference, "", "tokenizer", "", found.unit)
        for name, size in own.items():
            scores = {s.criterion.label: s.values[name] for s in tally.scores.values() if name in s.values}
            row.add(size, extents[name], scores)
            if name in decoded:
                kept.setdefault(name, []).append(Version(reference, size, "", decoded[name], scores))
        if row.sizes:
            row.budget = _home(plan, row)
            found.rows.append(row)
    found.failed += failed.values()
    return codes, kept


def _home(plan: Plan, row: Row) -> str:
    """The budget that a tokenizer stands beside: its own bytes, or the smallest given one that it keeps to."""
    if not (plan.bytes or plan.kbps):
        return _bytes_of(row.codec)
    sizes = [(size, _size_label(size)) for size in plan.bytes if row.bytes <= size]
    rates = [(rate, _rate_label(rate)) for rate in plan.kbps if row.bits <= ROUNDING * rate]
    return min(sizes)[1] if sizes else min(rates)[1] if rates else OWN


def _bytes_of(reference: str) -> str:
    return f"the bytes of {reference}"


def _size_label(size: int) -> str:
    return f"{size:,} bytes"


def _rate_label(rate: float) -> str:
    return f"{rate:g} kbit/s"


# --- budgets ---------------------------------------------------------------------------------------------------------


class _Budgets:
    """The bytes that a file may take, by budget."""

    def __init__(self, plan: Plan, codes: Codes) -> None:
        self.plan, self.codes = plan, codes

    def of(self, name: str, extent: float) -> dict[str, int]:
        """By the budget's name; `extent` is in the unit that bit rates are over."""
        fixed = {_size_label(size): size for size in self.plan.bytes}
        fixed |= {_rate_label(rate): _sound_bytes(rate, extent) for rate in self.plan.kbps}
        return fixed or {_bytes_of(reference): sizes[name] for reference, sizes in self.codes.items()}


def _sound_bytes(rate: float, extent: float) -> int:
    """Bytes of a sound at a bit rate, kbit/s: of whole frames, because no codec can end within one."""
    milliseconds = -(-extent // FRAME) * FRAME
    return max(1, ceil(rate * milliseconds / 8 - 1e-6))


def _curve_rates(found: Comparison, inputs: Sequence[Input]) -> dict[str, Sequence[float]]:
    """Rates of the curves of each classical codec, in the unit of the modality."""
    if found.modality == "audio":
        return {"Opus": OPUS_CURVE, "Codec2": [mode.bit_rate / 1000 for mode in CODEC2.values()]}
    bases = [tally.bits / tally.extent for tally in found.tallies if tally.extent]
    if found.plan.bytes and inputs:
        for each in inputs:
            try:
                pixels = found.unit.amount(media("image").read(each.path, found.plan.square))[1]
            except (SmaltiError, OSError):
                continue
            bases += [8 * size / pixels for size in found.plan.bytes]
            break
    if not bases:
        return {}
    rates = [min(bases) / 2]
    while rates[-1] < 4 * max(bases) * 0.99:
        rates.append(rates[-1] * 2)
    return dict.fromkeys(PICTURE_CODECS, rates)


# --- classical codecs ------------------------------------------------------------------------------------------------


class _Scorer:
    """Scores the versions of one sample, each file once: budgets often give the same."""

    def __init__(self, found: Comparison, name: str, sample: Sample) -> None:
        self.found, self.name, self.reference = found, name, sample.tensor()
        self.text = found.plan.transcripts.get(name)
        self._known: dict[tuple[str, bytes, str], float | None] = {}

    def __call__(self, codec: str, data: bytes, decoded: Tensor, labels: Sequence[str] = ()) -> dict[str, float]:
        """Values by label; of all criteria, or of those named. What has none is noted and left out."""
        values = {}
        for judge in self.found.judges:
            if labels and judge.label not in labels:
                continue
            key = (codec, data, judge.label)
            if key not in self._known:
                self._known[key] = self._value(codec, judge, decoded)
            value = self._known[key]
            if value is not None:
                values[judge.label] = value
        return values

    def _value(self, codec: str, judge: Criterion, decoded: Tensor) -> float | None:
        try:
            return judge.value(self.reference, decoded, self.text)
        except InputError as error:
            if codec != ORIGINAL:  # which has, for one, an infinite SI-SDR
                self.found.unscored.append((codec, Unscored(self.name, judge.label, str(error))))
            return None


def _one_file(
    found: Comparison,
    name: str,
    sample: Sample,
    budgets: _Budgets,
    rates: Mapping[str, Sequence[float]],
    kept: Sequence[Version],
) -> None:
    """Runs every classical codec at every budget, and along its curve."""
    score, extent = _Scorer(found, name, sample), found.unit.amount(sample)[1]
    example = Example(name, sample, list(kept)) if len(found.examples) < found.plan.shown else None
    allowed = budgets.of(name, extent)
    # Side by side stands what takes about as many bytes as the first tokenizer.
    seen = min(allowed, key=lambda budget: abs(allowed[budget] - kept[0].size) if kept else 0)
    if found.modality == "audio":
        _original(found, sample, extent, score, allowed)
    for codec, ladder in _ladders(found, sample):
        for budget, size in allowed.items():
            for way, coded in ladder.at(size).items():
                scores = score(codec, coded.data, coded.decoded)
                row = found.row(codec, way, "classical", budget)
                row.add(len(coded.data), extent, scores, coded.setting, not coded.fits)
                if example is not None and budget == seen and way in ("", BEST):
                    example.versions.append(Version(codec, len(coded.data), coded.setting, coded.decoded, scores))
        _curve(found, codec, ladder, extent, rates.get(codec, ()), score)
    if example is not None:
        found.examples.append(example)


def _original(
    found: Comparison, sample: Sample, extent: float, score: _Scorer, budgets: Mapping[str, int]
) -> None:  # fmt: skip
    """What untouched sounds score: judges that hear the reconstruction alone do not give them the highest value."""
    scores = score(ORIGINAL, b"", sample.tensor())
    for budget in budgets:
        found.row(ORIGINAL, "", "original", budget).add(2 * sample.data.shape[-1], extent, scores)


def _ladders(found: Comparison, sample: Sample) -> Iterator[tuple[str, Ladder]]:
    """A ladder of every codec that is installed."""
    if found.modality == "image":
        for name in PICTURE_CODECS:
            if name not in found.missing:
                yield name, PictureLadder(sample.tensor(), name)
    else:
        for name, codec in SOUND_CODECS.items():
            if name not in found.missing:
                yield name, codec.ladder(sample.tensor(), int(sample.conditions["sample_rate"]))


def _curve(
    found: Comparison, codec: str, ladder: Ladder, extent: float, rates: Sequence[float], score: _Scorer
) -> None:  # fmt: skip
    """One file's part of a codec's curve; at its best scale, where it has one."""
    rows = found.curves.setdefault(codec, [Row(codec, "", "classical", f"{rate:g}", found.unit) for rate in rates])
    for rate, row in zip(rates, rows, strict=True):
        size = _sound_bytes(rate, extent) if found.modality == "audio" else max(1, int(rate * extent / 8))
        coded = _preferred(ladder.at(size))
        row.add(len(coded.data), extent, score(codec, coded.data, coded.decoded, CURVE_LABELS[found.modality]))


def _preferred(ways: Mapping[str, Coded]) -> Coded:
    return ways[BEST] if BEST in ways else next(iter(ways.values()))
