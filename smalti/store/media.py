"""Files of each modality as bulk encoding meets them: which of a folder count, how they are read and written.

picture, sound       by suffix; what a file holds decides which decoder reads it
text                 by suffix, or by name where it has none (README, Makefile)
executable           by its first bytes: ELF, PE, Mach-O
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smalti.errors import UnavailableError, require
from smalti.store.plan import by_suffix
from smalti.text.io import is_executable, is_text

BYTES: Mapping[str, Callable[[Path], bool]] = {"text": is_text, "executable": is_executable}
Pixels = np.ndarray[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True)
class Sample:
    """One decoded file, as plain arrays that cross process borders cheaply.

    Args:
        data: uint8 pixels (3,H,W), float32 audio (C,T).
        conditions: what encode takes beside it (sample_rate).
    """

    data: Pixels
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def tensor(self) -> Tensor:
        """The public tensor: images in [0,1], audio in [-1,1]."""
        tensor = torch.from_numpy(self.data)
        return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor


@dataclass(frozen=True)
class Square:
    """How pictures are brought to one square size.

    Args:
        side: pixels.
        scaled: whether the shorter side is brought to that length first, so that the crop shows most of the picture.
    """

    side: int
    scaled: bool = True


@dataclass(frozen=True)
class Media:
    """How files of one modality are read and written.

    Args:
        suffixes: lower case, with the dot.
        read: (path, square) -> Sample; what square pictures are cut to, or None for whole ones.
        write: (path, decoded tensor, conditions): writes atomically.
        formats: what decoded files may be, the default first.
    """

    suffixes: frozenset[str]
    read: Callable[[Path, Square | None], Sample]
    write: Callable[[Path, Tensor, Mapping[str, Any]], None]
    formats: tuple[str, ...]


def considered(modality: str) -> Callable[[Path], bool]:
    """Which files of a folder count. Files that a user names themselves always do.

    Raises:
        UnavailableError: if files of that modality can't be encoded yet.
        MissingDependencyError: if what reads them is not installed.
    """
    if modality in BYTES:
        return BYTES[modality]
    return by_suffix(media(modality).suffixes)


def media(modality: str) -> Media:
    """The files of a modality that are decoded whole.

    Raises:
        UnavailableError: if files of that modality can't be.
        MissingDependencyError: if what reads them is not installed.
    """
    if modality == "image":
        return _image()
    if modality == "audio":
        return _audio()
    raise UnavailableError(f"files of modality {modality!r} can't be decoded into samples: image and audio can")


def _image() -> Media:
    from smalti.image.io import SUFFIXES, read_image, write_image
    from smalti.image.resize import CentreCrop, ResizeShorter

    def read(path: Path, square: Square | None) -> Sample:
        rules: list[ResizeShorter | CentreCrop] = []
        if square is not None:
            rules = [ResizeShorter(size=square.side)] if square.scaled else []
            rules.append(CentreCrop(size=square.side))
        return Sample(read_image(path, rules, dtype=torch.uint8).numpy())

    def write(path: Path, pixels: Tensor, conditions: Mapping[str, Any]) -> None:
        write_image(path, pixels)

    return Media(SUFFIXES, read, write, (".png", ".jpg", ".webp"))


def _audio() -> Media:
    from smalti.audio.io import SUFFIXES, read_audio, write_audio

    for module in ("soundfile", "soxr"):
        require(module, "audio")  # once and before a run, not as an error of every file

    def read(path: Path, square: Square | None) -> Sample:
        waveform, rate = read_audio(path)
        return Sample(waveform.numpy(), {"sample_rate": rate})

    def write(path: Path, waveform: Tensor, conditions: Mapping[str, Any]) -> None:
        write_audio(path, waveform, int(conditions["sample_rate"]))

    return Media(SUFFIXES, read, write, (".wav", ".flac"))
