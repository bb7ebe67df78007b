"""Photos there and back, beside JPEG and WebP at the same bytes, with maps of their codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smalti.bench.classical import Coded, pictures
from smalti.bench.exhibit import Exhibit, Shown, short, still
from smalti.bench.figures import Palette
from smalti.bench.reconstruction import Criterion, Tally
from smalti.bench.report import Media, Panel, Panels
from smalti.image.io import to_image
from smalti.store.media import Sample

WIDEST = 1024  # pixels of a picture on the page; larger ones are shown smaller
BEST = ", at its best scale"


class PhotoExhibit(Exhibit):
    """Photos beside JPEG and WebP."""

    title = "Photos"
    folder_name = "photos"
    per_sample = "a photo"

    def describe(self, tally: Tally) -> str:
        (report,) = tally.codes.values()
        vocab = " x ".join(f"{slot.vocab:,}" for slot in report.slots)
        factor = getattr(self.tokenizer, "factor", None)
        tile = f"Every tile of {factor} x {factor} pixels becomes one of {vocab} codes" if factor else f"{vocab} codes"
        return f"{tile}: {short(tally.bits / tally.extent)} bits per pixel."

    def rivals(self, sample: Sample, budget: int) -> list[tuple[str, Coded]]:
        found = []
        for codec in ("WebP", "JPEG"):
            full, best = pictures(torch.from_numpy(sample.data), budget, codec)
            found += [(f"{codec}{BEST}", best), (f"{codec}, full size", full)]
        return found

    def panels(self, shown: Shown, palettes: Sequence[Palette]) -> Panels:
        original = torch.from_numpy(shown.sample.data)
        height, width = original.shape[1:]
        panels = [
            Panel("Original", (f"{width} x {height} pixels", "24 bits per pixel"), _photo(original)),
            Panel(self.reference, self.facts(shown.sample, shown.bytes, shown.scores), _photo(shown.decoded)),
        ]
        panels += [
            Panel(
                rival.coded.codec,
                (*self.facts(shown.sample, len(rival.coded.data), rival.scores), rival.coded.setting),
                Media(rival.coded.data, f"image/{rival.coded.codec.lower()}"),
            )
            for rival in shown.rivals
            if rival.label.endswith(BEST)
        ]
        codes = shown.tokens.codes[0]
        for slot, palette in enumerate(palettes):
            name = "Codes" if len(palettes) == 1 else f"Codes, slot {slot}"
            facts = (
                f"{codes.shape[1]} x {codes.shape[0]} tiles",
                f"{len(codes[..., slot].unique()):,} different codes",
            )
            panels.append(Panel(name, facts, still(palette.paint(codes[..., slot])), crisp=True))
        return Panels(shown.id, panels)

    def note(self, judges: Sequence[Criterion]) -> str:
        return (
            "Classical codecs get as many bytes as the codes take, headers included, and may shrink the picture first. "
            "PSNR and SSIM reward smooth pictures; look at the details too: pointing at a picture enlarges its whole "
            "row."
        )


def _photo(pixels: Tensor) -> Media:
    """A picture without loss, at most `WIDEST` pixels a side."""
    image = to_image(pixels)
    image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    return still(np.asarray(image))
