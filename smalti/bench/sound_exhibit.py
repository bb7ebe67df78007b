"""Sounds there and back, beside Opus, to look at and to listen to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from smalti.audio.io import encode_audio
from smalti.bench.classical import Coded, opus
from smalti.bench.exhibit import Exhibit, Shown, short, still
from smalti.bench.figures import Palette, spectrogram
from smalti.bench.reconstruction import Criterion, Tally, seconds
from smalti.bench.report import Media, Panel, Panels
from smalti.store.media import Sample

LONGEST = 60  # seconds of a sound on the page


class SoundExhibit(Exhibit):
    """Sounds beside Opus."""

    title = "Speech"
    folder_name = "speech"
    per_sample = "a clip"

    def describe(self, tally: Tally) -> str:
        (report,) = tally.codes.values()
        vocab = " x ".join(f"{slot.vocab:,}" for slot in report.slots)
        positions = report.slots[0].count / tally.work
        return (
            f"{positions:.3g} times a second the sound becomes one of {vocab} codes: "
            f"{short(tally.bits / tally.extent)} kbit/s."
        )

    def rivals(self, sample: Sample, budget: int) -> list[tuple[str, Coded]]:
        return [("Opus", opus(sample.tensor(), int(sample.conditions["sample_rate"]), budget))]

    def panels(self, shown: Shown, palettes: Sequence[Palette]) -> Panels:
        rate, length = int(shown.sample.conditions["sample_rate"]), seconds(shown.sample)
        original = shown.sample.tensor()
        picture, loudest = spectrogram(original, rate)

        def heard(title: str, size: int, waveform: Tensor, scores: Mapping[str, float], sound: Media) -> Panel:
            facts = self.facts(shown.sample, size, scores)
            return Panel(title, facts, still(spectrogram(waveform, rate, loudest)[0]), sound)

        about = f"{length:.1f} s at {rate / 1000:g} kHz" + (f"; the first {LONGEST} s to hear" * (length > LONGEST))
        codes = shown.tokens.codes[0]
        rows = [palette.paint(codes[:, slot]) for slot, palette in enumerate(palettes)]
        strip = np.repeat(np.stack(rows), max(1, 24 // len(rows)), axis=0)
        positions = f"{len(codes):,} positions from left to right, a row per slot"
        return Panels(
            shown.id,
            [
                Panel("Original", (about,), still(picture), _sound(original, rate)),
                heard(self.reference, shown.bytes, shown.decoded, shown.scores, _sound(shown.decoded, rate)),
                *(
                    heard(
                        f"{rival.coded.codec}, {rival.coded.setting}",
                        len(rival.coded.data),
                        rival.coded.decoded,
                        rival.scores,
                        _own_file(rival.coded, rate, length),
                    )
                    for rival in shown.rivals
                ),
                Panel("Codes", (positions,), still(strip), crisp=True, wide=True),
            ],
        )

    def note(self, judges: Sequence[Criterion]) -> str:
        lower = [judge.label for judge in judges if judge.better == "lower"]
        return (
            f"Lower is better for {', '.join(lower)}. Opus has no bit rate below 6 kbit/s, so it may take more bytes "
            "than the codes. SI-SDR compares waveforms: a decoder that makes new phases gets a bad one, whatever it "
            "sounds like."
        )


def _sound(waveform: Tensor, rate: int) -> Media:
    return Media(encode_audio(waveform[:, : LONGEST * rate], rate, "flac"), "audio/flac")


def _own_file(coded: Coded, rate: int, length: float) -> Media:
    """The codec's own file; of a long sound, its beginning decoded."""
    return Media(coded.data, "audio/ogg") if length <= LONGEST else _sound(coded.decoded, rate)
