"""Rules that bring a picture to the size that a tokenizer was trained on, with Pillow's antialiased filters.

    picture ──rule──► picture ──rule──► ... ──► tensor

Published pipelines differ in filter, rounding and crop, and codes differ with them, so each rule is a small frozen
configuration that a tokenizer's own Config (or a training recipe) can name by its `type`.

    ResizeShorter + CentreCrop     torchvision's Resize(size) and CenterCrop(size): most evaluation tables
    HalvingCentreCrop              center_crop_arr of guided-diffusion, LlamaGen and their descendants
    HalvingRandomCrop              random_crop_arr of the same, for training
    RandomShrink + RandomCrop      Smalti's own photo tokenizers, for training
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from math import ceil
from typing import Annotated, Literal, Self

import torch
from PIL import Image
from pydantic import Field, model_validator

from smalti.config import Config
from smalti.errors import ConfigError, InputError

# Above the largest photos of phones (108 million) and below the classic bombs (12000 x 12000), which Pillow lets pass.
MAX_PIXELS = 120_000_000

Filter = Literal["box", "bilinear", "bicubic", "lanczos"]

_FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

Extent = Annotated[int, Field(gt=0, le=2**15)]
Size = tuple[int, int]  # width and height, as Pillow has them


class SizeRule(Config, ABC):
    """What all rules share: they are called with a picture and give another one."""

    @abstractmethod
    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Image.Image:
        """Applies the rule.

        Args:
            image: any mode that Pillow can resize; RGB here.
            generator: where random rules draw from; torch's global one if None.

        Raises:
            InputError: if the picture is smaller than a crop, or would become larger than `MAX_PIXELS`.
        """

    @abstractmethod
    def size_after(self, size: Size | None) -> Size | None:
        """The size that it gives to pictures of one size, or of any (None); None if they come out with several.

        Raises:
            ConfigError: if it takes no pictures of that size.
        """


class Resize(SizeRule):
    """To exactly this size; the aspect ratio is not kept."""

    type: Literal["resize"] = "resize"
    height: Extent
    width: Extent
    filter: Filter = "bicubic"

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Image.Image:
        return _resize(image, self.width, self.height, self.filter)

    def size_after(self, size: Size | None) -> Size:
        return self.width, self.height


class ResizeShorter(SizeRule):
    """The shorter side to `size`, the longer in proportion.

    Args:
        size: of the shorter side.
        filter: antialiased where it shrinks.
        rounding: of the longer side: "down" as torchvision does, or "nearest".
    """

    type: Literal["resize-shorter"] = "resize-shorter"
    size: Extent
    filter: Filter = "bicubic"
    rounding: Literal["down", "nearest"] = "down"

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Image.Image:
        return _resize(image, *self._scaled(image.size), self.filter)

    def size_after(self, size: Size | None) -> Size | None:
        return None if size is None else self._scaled(size)

    def _scaled(self, size: Size) -> Size:
        shorter, longer = sorted(size)
        exact = self.size * longer / shorter
        scaled = int(exact) if self.rounding == "down" else round(exact)
        return (self.size, scaled) if size[0] <= size[1] else (scaled, self.size)


class Square(SizeRule, ABC):
    """A rule that gives a square of `size` pixels a side."""

    size: Extent

    def size_after(self, size: Size | None) -> Size:
        return self.size, self.size


class Crop(Square, ABC):
    """A square cut out of pictures that are as large or larger."""

    def size_after(self, size: Size | None) -> Size:
        if size is not None and min(size) < self.size:
            raise ConfigError(f"a crop of {self.size} does not fit into pictures of {size[0]}x{size[1]}")
        return super().size_after(size)


class CentreCrop(Crop):
    """A square from the middle; where the margin is odd, torchvision's rounding (half to even) decides."""

    type: Literal["centre-crop"] = "centre-crop"

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Image.Image:
        return _crop(image, round((image.width - self.size) / 2), round((image.height - self.size) / 2), self.size)


class RandomCrop(Crop):
    """A square from anywhere, all places equally likely."""

    type: Literal["random-crop"] = "random-crop"

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Image.Image:
        _check_holds(image, self.size)
        left = _draw(0, image.width - self.size, generator)
        top = _draw(0, image.height - self.size, generator)
        return _crop(image, left, top, self.size)


class RandomShrink(SizeRule):
    """Some pictures smaller, so that one scale of detail does not stand for all: for training.

    Args:
        probability: of shrinking at all.
        smallest: lowest scale; the scale is uniform between it and 1.
        at_least: pixels that the shorter side keeps; smaller pictures stay as they are.
        filter: antialiased.
    """

    type: Literal["random-shrink"] = "random-shrink"
    probability: float = Field(0.5, ge=0, le=1)
    smallest: float = Field(0.5, gt=0, le=1)
    at_least: Extent
    filter: Filter = "bicubic"

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Image.Image:
        chance, place = (float(each) for each in torch.rand(2, generator=generator))
        scale = self.smallest + (1 - self.smallest) * place
        if chance >= self.probability or round(min(image.size) * scale) < self.at_least:
            return image
        return _resize(image, round(image.width * scale), round(image.height * scale), self.filter)

    def size_after(self, size: Size | None) -> None:
        return None


class HalvingCentreCrop(Square):
    """The shorter side to `size` by halving with a box and then bicubically, and a square from the middle.

    Small pictures are enlarged, so it fits any picture.
    """

    type: Literal["halving-centre-crop"] = "halving-centre-crop"

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Image.Image:
        image = _halve_and_resize(image, self.size)
        return _crop(image, (image.width - self.size) // 2, (image.height - self.size) // 2, self.size)


class HalvingRandomCrop(Square):
    """As `HalvingCentreCrop`, to a random shorter side, and a square from anywhere.

    Args:
        size: of the square.
        smallest, largest: how much of the shorter side the square takes.
    """

    type: Literal["halving-random-crop"] = "halving-random-crop"
    smallest: float = Field(0.8, gt=0, le=1)
    largest: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.smallest > self.largest:
            raise ValueError(f"smallest must not be above largest, got {self.smallest} and {self.largest}")
        return self

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Image.Image:
        shorter = _draw(ceil(self.size / self.largest), ceil(self.size / self.smallest), generator)
        return RandomCrop(size=self.size)(_halve_and_resize(image, shorter), generator)


Rule = Annotated[
    Resize | ResizeShorter | CentreCrop | RandomCrop | RandomShrink | HalvingCentreCrop | HalvingRandomCrop,
    Field(discriminator="type"),
]


def apply_rules(image: Image.Image, rules: Iterable[SizeRule], generator: torch.Generator | None = None) -> Image.Image:
    """Applies rules one after another."""
    for rule in rules:
        image = rule(image, generator)
    return image


def size_after(rules: Iterable[SizeRule]) -> Size | None:
    """The one size that rules bring all pictures to, or None if there are several."""
    size: Size | None = None
    for rule in rules:
        size = rule.size_after(size)
    return size


# --- helpers ---------------------------------------------------------------------------------------------------------


def _resize(image: Image.Image, width: int, height: int, resampling: Filter) -> Image.Image:
    if width * height > MAX_PIXELS:  # a long strip, whose shorter side is enlarged
        raise InputError(
            f"a picture of {image.width}x{image.height} would become {width}x{height}, more than {MAX_PIXELS:,} pixels"
        )
    return image.resize((width, height), _FILTERS[resampling])


def _halve_and_resize(image: Image.Image, shorter: int) -> Image.Image:
    while min(image.size) >= 2 * shorter:
        image = _resize(image, image.width // 2, image.height // 2, "box")
    scale = shorter / min(image.size)
    return _resize(image, round(image.width * scale), round(image.height * scale), "bicubic")


def _check_holds(image: Image.Image, size: int) -> None:
    if min(image.size) < size:
        raise InputError(f"a picture of {image.width}x{image.height} is smaller than the crop of {size}x{size}")


def _crop(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    _check_holds(image, size)
    return image.crop((left, top, left + size, top + size))


def _draw(low: int, high: int, generator: torch.Generator | None) -> int:
    """A whole number in low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
