"""Pictures of codes and sounds: alike codes look alike, low tones are at the bottom, curves are the counts."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import torch

from smalti.bench.figures import Palette, rank_curve, spectrogram
from smalti.image.photo import PhotoTokenizer
from smalti.quantize import Quantize, Table, Trained
from smalti.tokens import Stream


def stream(codes: torch.Tensor, vocab: int) -> Stream:
    return Stream(codes.reshape(1, *codes.shape, 1), (vocab,))


def on_a_line(rows: int) -> Quantize:
    """A codebook whose vectors lie on a line in three dimensions, in the order of their numbers."""
    quantizer = Quantize(Table(Trained(rows, 3)))
    with torch.no_grad():
        line = torch.arange(rows)[:, None] * torch.tensor([[1.0, 0.5, 0.25]])
        quantizer.alphabet.vectors.weight.copy_(line)  # type: ignore[union-attr, operator]
    return quantizer


def lightness(colours: np.ndarray) -> np.ndarray:
    return colours.astype(float) @ [0.2126, 0.7152, 0.0722]


def test_alike_vectors_have_alike_colours() -> None:
    palette = Palette.of(on_a_line(9), [stream(torch.arange(9), 9)])
    shades = lightness(palette.colours)
    assert (np.diff(shades) >= 0).all() and shades[-1] - shades[0] > 100


def test_a_code_has_one_colour_in_all_maps(photo_tokenizer: PhotoTokenizer) -> None:
    maps = [torch.randint(16, (4, 6)), torch.randint(16, (3, 3))]
    palette = Palette.of(
        photo_tokenizer.quantizer, [Stream(codes.reshape(1, -1, 1).repeat(1, 1, 2), (16, 16)) for codes in maps]
    )
    colours: dict[int, set[tuple[int, ...]]] = {}
    for codes in maps:
        painted = palette.paint(codes)
        assert painted.shape == (*codes.shape, 3) and painted.dtype == np.uint8
        for code, colour in zip(codes.flatten().tolist(), painted.reshape(-1, 3).tolist(), strict=True):
            colours.setdefault(code, set()).add(tuple(colour))
    assert all(len(each) == 1 for each in colours.values())
    assert sum(share for _, _, share in palette.most_frequent(1000)) == 1.0 or math.isclose(
        sum(share for _, _, share in palette.most_frequent(1000)), 1.0
    )


def test_the_most_frequent_codes_come_first_with_their_colours() -> None:
    codes = torch.tensor([3, 3, 3, 1, 1, 7])
    palette = Palette.of(on_a_line(9), [stream(codes, 9)])
    (first, colour, share), *rest = palette.most_frequent(2)
    assert (first, share, rest[0][0]) == (3, 0.5, 1)
    assert bytes.fromhex(colour[1:]) == bytes(palette.paint(torch.tensor(3)).tolist())


def test_a_palette_of_one_code_is_a_colour() -> None:
    assert Palette.of(on_a_line(4), [stream(torch.tensor([2, 2]), 4)]).colours.shape == (1, 3)


def test_a_low_tone_is_below_a_high_one() -> None:
    time = torch.arange(16_000) / 16_000
    rows = []
    for hertz in (200, 4_000):
        picture, _ = spectrogram(torch.sin(2 * math.pi * hertz * time)[None], 16_000)
        rows.append(int(lightness(picture).sum(axis=1).argmax()))
    assert rows[0] > rows[1]


def test_pictures_of_one_loudness_can_be_compared() -> None:
    loud = torch.randn(1, 8_000, generator=torch.Generator().manual_seed(0))
    bright, loudest = spectrogram(loud, 16_000)
    dark, same = spectrogram(0.01 * loud, 16_000, loudest)
    assert same == loudest and lightness(dark).mean() < lightness(bright).mean() - 20


def test_any_length_is_a_picture() -> None:
    for length in (1, 7, 200_000):
        picture, _ = spectrogram(torch.randn(1, length), 16_000)
        assert picture.shape[0] == 96 and 1 <= picture.shape[1] <= 600


def test_a_curve_is_the_sorted_counts() -> None:
    svg = rank_curve([torch.tensor([1, 100, 1, 10]), torch.tensor([5])], ["a <b>", "c"], 1000)
    root = ElementTree.fromstring(svg)
    lines = root.findall("polyline")
    points = [tuple(map(float, point.split(","))) for point in lines[0].attrib["points"].split()]
    # Ranks 1, 2 and the stroke from 3 to 4; a factor of ten is one step of the grid.
    assert len(points) == 4 and len(lines) == 2
    steps = np.diff([y for _, y in points])
    assert math.isclose(steps[0], steps[1], abs_tol=0.11) and steps[2] == 0
    assert "a <b>" in [text.text for text in root.findall("text")]
