"""Pictures of codes and sounds, for pages: token maps, spectrograms, and how often each code came.

    codes ──each code's own vector──► three principal axes ──► lightness and two hues ──► (H,W,3)
    waveform ──log mel──► colours ──► (mels, frames, 3)
    counts ──most frequent first──► a curve, as SVG

Codes are numbers without order, so a map that coloured them by number would show noise. Coloured by their vectors,
alike codes look alike, and the map shows what the tokenizer sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Self

import numpy as np
import torch
from torch import Tensor

from smalti.audio.mel import MelSpectrogram
from smalti.quantize import Quantizer
from smalti.tokens import Stream

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

# From dark to light in even steps of lightness, after the colour map "magma".
HEAT = ((0, 0, 4), (28, 16, 68), (79, 18, 123), (129, 37, 129), (181, 54, 122), (229, 80, 100), (251, 135, 97),
        (254, 194, 135), (252, 253, 191))  # fmt: skip
QUIET = 70.0  # dB below the loudest place: what is darker is black


@dataclass(frozen=True)
class Palette:
    """A colour for every code of one slot that came.

    Args:
        codes: which came, ascending.
        counts: how often each.
        colours: (codes, 3), 0 to 255.
    """

    codes: Tensor
    counts: Tensor
    colours: Pixels

    @classmethod
    def of(cls, quantizer: Quantizer, streams: Sequence[Stream], slot: int = 0) -> Self:
        """The palette of a slot over all samples, so that a code has one colour in all maps.

        Args:
            quantizer: gives codes their vectors.
            streams: codes of all samples, on any device.
            slot: which slot.
        """
        came = torch.cat([stream.rows()[stream.valid()][:, slot].cpu() for stream in streams])
        codes, counts = came.unique(return_counts=True)
        rows = torch.zeros(len(codes), len(streams[0].vocab), dtype=torch.int64)
        rows[:, slot] = codes
        device = next(iter(quantizer.buffers()), next(iter(quantizer.parameters()), rows)).device
        with torch.no_grad():
            vectors = quantizer.lookup(rows.to(device))[:, slot].double().cpu()
        return cls(codes, counts, _colours(_principal(vectors, counts)))

    def paint(self, codes: Tensor) -> Pixels:
        """Codes of any shape to their colours: (*shape, 3)."""
        return self.colours[torch.searchsorted(self.codes, codes.cpu().contiguous()).numpy()]

    def most_frequent(self, count: int) -> list[tuple[int, str, float]]:
        """(code, colour, share) of the codes that came most often."""
        order = self.counts.argsort(descending=True, stable=True)[:count].tolist()
        total = int(self.counts.sum())
        return [
            (int(self.codes[i]), "#" + bytes(self.colours[i].tolist()).hex(), int(self.counts[i]) / total)
            for i in order
        ]


def _principal(vectors: Tensor, counts: Tensor) -> Tensor:
    """Coordinates on the three axes along which the codes that came differ most, in -1..1: (codes, 3)."""
    weights = counts.double() / counts.sum()
    centred = vectors - weights @ vectors
    _, axes = torch.linalg.eigh(centred.t() @ (weights[:, None] * centred))
    axes = axes[:, -3:].flip(1)
    # An axis has no direction of its own: the largest entry points up, so that a palette does not flip by chance.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    along = centred @ axes
    spread = (weights @ along.square()).sqrt().clamp(min=1e-12)
    return torch.nn.functional.pad((along / (2 * spread)).clamp(-1, 1), (0, 3 - along.shape[1]))


def _colours(along: Tensor) -> Pixels:
    """Coordinates in -1..1 as lightness and two hues of Oklab, in which equal steps look equal; then sRGB."""
    lab = np.stack([0.62 + 0.30 * along[:, 0], 0.12 * along[:, 1], 0.12 * along[:, 2]], axis=1)
    to_cones = np.array([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728],
                         [1, -0.0894841775, -1.2914855480]])  # fmt: skip
    to_rgb = np.array([[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
                       [-0.0041960863, -0.7034186147, 1.7076147010]])  # fmt: skip
    linear = np.clip((lab @ to_cones.T) ** 3 @ to_rgb.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (255 * encoded).round().astype(np.uint8)


def spectrogram(waveform: Tensor, rate: int, loudest: float | None = None, columns: int = 480) -> tuple[Pixels, float]:
    """A picture of a sound, low tones at the bottom.

    Args:
        waveform: (channels, T).
        rate: Hz.
        loudest: what is brightest, in dB; by default what is loudest here.
        columns: about how wide the picture is.

    Returns:
        (rows, columns, 3), and the loudest place in dB: pictures of one `loudest` can be compared.
    """
    mono = waveform.float().mean(0)
    hop = max(1, -(-len(mono) // columns))
    mel = MelSpectrogram(rate=rate, n_fft=max(2, 2 * (rate // 32)), hop=hop, mels=96)
    decibels = 20 * mel(mono).clamp(min=1e-6).log10().t().flip(0)
    top = float(decibels.max()) if loudest is None else loudest
    place = ((decibels - top) / QUIET + 1).clamp(0, 1).numpy() * (len(HEAT) - 1)
    channels = [np.interp(place, range(len(HEAT)), [colour[channel] for colour in HEAT]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8), top


def rank_curve(counts: Sequence[Tensor], names: Sequence[str], vocab: int) -> str:
    """How often codes came, most frequent first, both axes logarithmic: an SVG that takes its colours from the page.

    Args:
        counts: of each slot, of the codes that came.
        names: of the slots.
        vocab: where the axis of ranks ends.
    """
    width, height, left, bottom, top = 640, 260, 56, 34, 30
    highest = max(int(count.max()) for count in counts)
    x_top, y_top = max(1.0, math.log10(vocab)), max(1.0, math.log10(highest))

    def x(rank: float) -> float:
        return left + (width - left - 12) * math.log10(rank) / x_top

    def y(count: float) -> float:
        return height - bottom - (height - bottom - top) * math.log10(count) / y_top

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="how often each code came, by rank">']
    for power in range(math.floor(x_top) + 1):
        place = x(10**power)
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(f'<text x="{place:.1f}" y="{height - bottom + 15}" text-anchor="middle">{10**power:,}</text>')
    for power in range(math.floor(y_top) + 1):
        place = y(10**power)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 12}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{place + 4:.1f}" text-anchor="end">{10**power:,}</text>')
    for index, (count, name) in enumerate(zip(counts, names, strict=True)):
        ranked = count.sort(descending=True).values.tolist()
        # Ranks of one count are one horizontal stroke.
        ends = [rank for rank in range(len(ranked)) if rank + 1 == len(ranked) or ranked[rank + 1] != ranked[rank]]
        starts = [0, *(end + 1 for end in ends[:-1])]
        points = [
            f"{x(rank + 1):.1f},{y(ranked[rank]):.1f}"
            for pair in zip(starts, ends, strict=True)
            for rank in dict.fromkeys(pair)
        ]
        parts.append(f'<polyline class="curve s{index % 4}" points="{" ".join(points)}"/>')
        parts.append(
            f'<text class="s{index % 4}" x="{width - 14}" y="{top + 14 + 16 * index}" text-anchor="end">'
            f"{escape(name)}</text>"
        )
    parts.append(f'<text x="{(left + width) / 2:.0f}" y="{height - 4}" text-anchor="middle">rank of the code</text>')
    parts.append(f'<text x="{left - 40}" y="{top - 14}">times it came</text></svg>')
    return "".join(parts)
