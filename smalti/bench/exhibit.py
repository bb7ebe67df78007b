"""Files there and back through a token store, as a section of a report: the work behind `smalti demo`.

files ──encode──► token store ──verify──► sound? ──decode──► files again
  │                    └──read──► tokens: maps, codebook use, bits        │
  ├──encoded anew, metered──► the same codes? speed, memory              │
  └──► criteria ◄────────────────────────────────────────────────────────┘
  └──► classical codecs at the same bytes ──► criteria
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from torch import Tensor

from smalti.bench.classical import Coded
from smalti.bench.figures import Palette, Pixels, rank_curve
from smalti.bench.reconstruction import Criterion, Reconstructed, Tally, criteria, reconstruct, unit
from smalti.bench.report import Chart, Media, Panels, Part, Section, Swatches, Table
from smalti.errors import InputError
from smalti.store import TokenStore, decode_store, encode_paths, verify
from smalti.store.format import SHARDS
from smalti.store.media import Sample, considered, media
from smalti.store.places import output_names
from smalti.store.plan import find_inputs
from smalti.tokenizer import NeuralTokenizer, Tokenizer
from smalti.tokens import Tokens

SWATCHES = 16
MAPPED_SLOTS = 4  # slots that have a map each
CARDS = ("PSNR", "SSIM", "STOI", "mel distance")  # criteria that a page begins with

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Files to show.

    Args:
        paths: the files.
        about: where they come from, for the page.
        credit: whose they are; may be empty.
        programs: whether they are executables, whatever tokenizer they are shown with.
    """

    paths: Sequence[Path]
    about: str
    credit: str = ""
    programs: bool = False


@dataclass(frozen=True)
class Rival:
    """What a classical codec makes of a sample."""

    label: str
    coded: Coded
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Shown:
    """A sample, there and back through the store.

    Args:
        id: of the file.
        sample: what was encoded.
        tokens: what the store holds, a batch of one.
        decoded: read from the file that decoding the store wrote.
        scores: of the tokenizer, by label of the criterion.
        rivals: at the same bytes.
    """

    id: str
    sample: Sample
    tokens: Tokens
    decoded: Tensor
    scores: Mapping[str, float]
    rivals: Sequence[Rival]

    @property
    def bytes(self) -> int:
        return -(-self.tokens.bits // 8)


@dataclass
class Findings:
    """What happened to the files of one source.

    Args:
        store: the folder of the token store.
        tally: sums over all files, encoded anew.
        shown: the files that came through.
        sound: whether verifying the store found nothing.
        store_bytes: of all shards on disk.
        differing: codes of the store that encoding anew does not give.
        problems: everything that went wrong, in lines.
    """

    store: Path
    tally: Tally
    shown: list[Shown] = field(default_factory=list)
    sound: bool = False
    store_bytes: int = 0
    differing: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Display:
    """What a page and a terminal show of a tokenizer at work.

    Args:
        title: of its section.
        comparison: the table that sums it up.
        section: all of it.
        cards: (value, what it is), the numbers that one should take away.
        foot: lines at the end of the page: protocols, credits.
        problems: files that were skipped and whatever else went wrong, in lines.
    """

    title: str
    comparison: Table
    section: Section
    cards: Sequence[tuple[str, str]]
    foot: Sequence[str]
    problems: Sequence[str]


class Exhibit(ABC):
    """A tokenizer at work on files of its modality.

    Args:
        tokenizer: on its device.
        reference: what the user called it.
        source: the files.
        folder: where store and decoded files go; a store of the same files and codes is continued.
    """

    title: ClassVar[str]
    folder_name: ClassVar[str]
    per_sample: ClassVar[str]

    def __init__(self, tokenizer: NeuralTokenizer, reference: str, source: Source, folder: Path) -> None:
        self.tokenizer, self.reference, self.source, self.folder = tokenizer, reference, source, folder

    def display(self, tell: Tell) -> Display:
        """Does everything once.

        Args:
            tell: called with what is being done.

        Raises:
            InputError: if no file came through.
        """
        found = self.run(tell)
        named = ", ".join(f"{score.criterion.label} = {protocol}" for protocol, score in found.tally.scores.items())
        foot = [f"{self.title}: {named}.", *([self.source.credit] if self.source.credit else [])]
        return Display(
            self.title, self.comparison(found), self.section(found), self._cards(found), foot, found.problems
        )

    def run(self, tell: Tell) -> Findings:
        """Encodes, verifies, decodes and measures all files once.

        Args:
            tell: called with what is being done.

        Raises:
            InputError: if no file came through.
        """
        store = self.folder / f"{self.folder_name}-{store_key(self.tokenizer, self.source.paths)}.store"
        findings = Findings(store, Tally(self.tokenizer, self.reference))
        tell(f"{self.title}: encoding {files_of(self.source.paths)} into {store.name}")
        encode_paths(self.source.paths, store, self.tokenizer, reference=self.reference, workers=1)
        checked = verify(store)
        findings.sound = checked.sound
        findings.problems += checked.problems
        findings.store_bytes = sum(path.stat().st_size for path in (store / SHARDS).iterdir())
        tell(f"{self.title}: decoding the store")
        tokens = TokenStore(store)
        decoded = self._decode(tokens, findings.problems)
        inputs = find_inputs(self.source.paths, considered(self.tokenizer.modality)).inputs
        for item in reconstruct(self.tokenizer, inputs, warm=True):
            findings.tally.add(item)
            if not isinstance(item, Reconstructed):
                findings.problems.append(f"{item.id} was skipped: {item.error}")
            elif item.id in decoded:
                tell(f"{self.title}: measuring {item.id}, and classical codecs at the same bytes")
                findings.differing += _differing(tokens[item.id], item.tokens)
                findings.shown.append(self._show(item, tokens[item.id], decoded[item.id], findings.tally))
        if findings.differing:
            findings.problems.append(f"encoding anew gave {findings.differing} other codes than the store holds")
        if not findings.shown:
            raise InputError(f"of {files_of(inputs)} none could be shown: " + "; ".join(findings.problems[:3]))
        return findings

    def _cards(self, findings: Findings) -> list[tuple[str, str]]:
        """The numbers that one should take away."""
        tally, name = findings.tally, self.title.lower()
        codes = sum(each.tokens.codes.numel() for each in findings.shown)
        return [
            (f"{codes:,}", f"codes, {name} ({files_of(findings.shown)})"),
            (short(tally.bits / tally.extent), f"{tally.unit.bits}, {name}"),
            *(
                (f"{short(score.mean)} {score.criterion.unit}".strip(), f"{score.criterion.label}, {name}")
                for score in tally.scores.values()
                if score.criterion.label in CARDS and score.mean is not None
            ),
        ]

    def _decode(self, store: TokenStore, problems: list[str]) -> dict[str, Path]:
        """The files that decoding wrote, by id."""
        if not len(store):
            return {}
        ending, out = media(self.tokenizer.modality).formats[0], self.folder / f"{self.folder_name}-decoded"
        result = decode_store(store.folder, out, self.tokenizer, suffix=ending)
        problems += [f"{name}: {reason}" for name, reason in result.failed]
        places = {name: out / place for name, place in output_names(store.ids, ending).items()}
        return {name: place for name, place in places.items() if place in result.written}

    def _show(self, item: Reconstructed, tokens: Tokens, file: Path, tally: Tally) -> Shown:
        decoded = media(self.tokenizer.modality).read(file, None).tensor()
        own = {s.criterion.label: s.values[item.id] for s in tally.scores.values() if item.id in s.values}
        budget = -(-tokens.bits // 8)
        judges = criteria(self.tokenizer.modality, int(item.sample.conditions.get("sample_rate", 0)))
        reference = item.sample.tensor()
        rivals = [
            Rival(label, coded, _scores(judges, reference, coded.decoded))
            for label, coded in self.rivals(item.sample, budget)
        ]
        return Shown(item.id, item.sample, tokens, decoded, own, rivals)

    def section(self, findings: Findings) -> Section:
        """What the page says about it."""
        tally, shown = findings.tally, findings.shown
        count = sum(each.tokens.codes.numel() for each in shown)
        lead = [
            f"{self.source.about} Tokenizer: {self.reference}. {self.describe(tally)}",
            f"All of it went through a token store: {count:,} codes of {files_of(shown)} in {findings.store.name}, "
            f"{findings.store_bytes:,} bytes on disk. {'Verified: it is sound' if findings.sound else 'NOT sound'}. "
            f"Encoding the files anew gave {f'{findings.differing:,}' if findings.differing else 'no'} other codes. "
            "What you see and hear was decoded from it.",
        ]
        palettes = self._palettes(shown)
        parts: list[Part] = [self.comparison(findings)]
        parts += [self.panels(each, palettes) for each in shown]
        parts += [self._legend(palettes), self._codebook(palettes, findings), self._speed(findings)]
        return Section(self.title, lead, parts, findings.problems)

    def comparison(self, findings: Findings) -> Table:
        """Codecs against criteria, as means over the files."""
        tally, shown = findings.tally, findings.shown
        judges = list({score.criterion.label: score.criterion for score in tally.scores.values()}.values())
        headings = ["codec", f"bytes {self.per_sample}", tally.unit.bits, *(judge.heading for judge in judges)]
        extents = [tally.unit.amount(each.sample)[1] for each in shown]
        rows = [_row(self.reference, [each.bytes for each in shown], extents, [s.scores for s in shown], judges)]
        for label in dict.fromkeys(rival.label for each in shown for rival in each.rivals):
            own = [rival for each in shown for rival in each.rivals if rival.label == label]
            rows.append(_row(label, [len(r.coded.data) for r in own], extents, [r.scores for r in own], judges))
        missing = [f"No {each.label} of {each.id}: {each.reason}." for each in tally.unscored]
        note = " ".join(["Means over the files shown.", self.note(judges), *missing])
        return Table(headings, rows, note, strong=True)

    def _palettes(self, shown: Sequence[Shown]) -> list[Palette]:
        streams = [each.tokens.only for each in shown]
        slots = len(streams[0].vocab)
        return [Palette.of(self.tokenizer.quantizer, streams, slot) for slot in range(min(slots, MAPPED_SLOTS))]

    def _legend(self, palettes: Sequence[Palette]) -> Swatches:
        note = (
            "The codes that came most often. A code is a number without order, so maps are coloured by the vectors "
            "that codes stand for: lightness and hue are the three directions in which those vectors differ most."
        )
        return Swatches(
            note,
            [
                (colour, f"{code} ({share:.1%})" if len(palettes) == 1 else f"slot {slot}: {code} ({share:.1%})")
                for slot, palette in enumerate(palettes)
                for code, colour, share in palette.most_frequent(SWATCHES // len(palettes))
            ],
        )

    def _codebook(self, palettes: Sequence[Palette], findings: Findings) -> Chart:
        (report,) = findings.tally.codes.values()
        slots, tally = report.slots[: len(palettes)], findings.tally
        names = ["all codes"] if len(report.slots) == 1 else [f"slot {slot}" for slot in range(len(slots))]
        facts = [("with an ideal entropy coder", f"{short(tally.entropy_bits / tally.extent)} {tally.unit.bits}")]
        for name, slot in zip(names, slots, strict=True):
            prefix = "" if len(names) == 1 else f"{name}: "
            facts += [
                (f"{prefix}codes used", f"{slot.used:,} of {slot.vocab:,} ({slot.usage:.1%})"),
                (f"{prefix}a uniform source", f"would have used {slot.expected_usage:.1%} with {slot.count:,} codes"),
                (f"{prefix}perplexity", f"{slot.perplexity:,.0f}"),
                (f"{prefix}entropy", f"{slot.entropy:.2f} of {np.log2(slot.vocab):.2f} bits"),
            ]
        curve = rank_curve([palette.counts for palette in palettes], names, max(slot.vocab for slot in slots))
        note = "The steeper the curve, the more often a few codes come, and the more an entropy coder would save."
        return Chart("How the codebook was used", curve, facts, note)

    def _speed(self, findings: Findings) -> Table:
        row = findings.tally.row()
        speed, peak = row["speed"], row["peak_memory"]
        note = (
            f"One file at a time on {speed['device']}, {speed['threads']} threads. CPU seconds count all threads. "
            + ("" if peak is None else f"Memory grew by at most {peak / 1e6:.0f} MB above the loaded model ")
            + f"({row['parameters'] / 1e6:.1f} M parameters)."
        )
        rows = [
            (way, short(speed[way]["per_second"]), short(speed[way]["cpu_seconds"])) for way in ("encode", "decode")
        ]
        work = findings.tally.unit
        return Table(("speed", f"{work.works} a second", f"CPU seconds per {work.work}"), rows, note)

    def facts(self, sample: Sample, size: int, scores: Mapping[str, float]) -> tuple[str, str]:
        """What stands under a reconstruction of so many bytes."""
        measures = unit(self.tokenizer.modality)
        rate = short(8 * size / measures.amount(sample)[1])
        values = ", ".join(f"{label} {short(value)}" for label, value in scores.items())
        return f"{size:,} bytes, {rate} {measures.bits}", values

    # --- what modalities differ in -----------------------------------------------------------------------------------

    @abstractmethod
    def describe(self, tally: Tally) -> str:
        """What a code stands for, in a sentence or two."""

    @abstractmethod
    def rivals(self, sample: Sample, budget: int) -> list[tuple[str, Coded]]:
        """Classical codecs at so many bytes, by label."""

    @abstractmethod
    def panels(self, shown: Shown, palettes: Sequence[Palette]) -> Panels:
        """A sample, its reconstruction, its codes and its rivals, side by side."""

    @abstractmethod
    def note(self, judges: Sequence[Criterion]) -> str:
        """How to read the comparison."""


# --- helpers ---------------------------------------------------------------------------------------------------------


def store_key(tokenizer: Tokenizer, paths: Sequence[Path]) -> str:
    """Tells stores of other codes, other files and changed files apart."""
    digest = hashlib.sha256(tokenizer.codes_hash.encode())
    for path in paths:
        state = path.stat()
        digest.update(f"\n{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:8]


def _differing(stored: Tokens, fresh: Tokens) -> int:
    one, other = stored.codes, fresh.codes
    return int((one != other).sum()) if one.shape == other.shape else max(one.numel(), other.numel())


def _scores(judges: Sequence[Criterion], reference: Tensor, decoded: Tensor) -> dict[str, float]:
    """The values of a pair; a criterion without a value (of silence, say) is left out."""
    scores = {}
    for judge in judges:
        try:
            scores[judge.label] = judge.value(reference, decoded)
        except InputError:
            continue
    return scores


def _row(
    label: str,
    sizes: Sequence[int],
    extents: Sequence[float],
    scores: Sequence[Mapping[str, float]],
    judges: Sequence[Criterion],
) -> list[str]:
    cells = [label, f"{sum(sizes) / len(sizes):,.0f}", short(8 * sum(sizes) / sum(extents))]
    for judge in judges:
        values = [each[judge.label] for each in scores if judge.label in each]
        mean = sum(values) / len(values) if values else None
        cells.append("-" if mean is None else f"{mean:.2f}" if abs(mean) < 100 else f"{mean:.0f}")
    return cells


def files_of(items: Sequence[object]) -> str:
    """How many files, in words."""
    return "1 file" if len(items) == 1 else f"{len(items):,} files"


def short(value: float) -> str:
    """Three significant digits."""
    return f"{value:#.3g}".rstrip(".")


def still(pixels: Pixels) -> Media:
    """A picture for the page, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, method=1, quality=40)
    return Media(buffer.getvalue(), "image/webp")
