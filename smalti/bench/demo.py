"""The demo: real photos, speech, text and programs into tokens and back, and a page that shows what became of them.

    photos (scikit-image's wheel, or a folder) ──PhotoExhibit──┐
    speech (a wheel, a shipped clip, a folder) ──SoundExhibit──┤
    text, programs (wheels, or a folder) ───────BytesExhibit───┴──► Page ──► OUT/report/index.html

Nothing is downloaded: the inputs lie in packages that are installed, or in this one.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import torch

import smalti
from smalti.bench.bytes_exhibit import BytesExhibit
from smalti.bench.exhibit import Display, Exhibit, Source, Tell
from smalti.bench.photo_exhibit import PhotoExhibit
from smalti.bench.report import Page, Table
from smalti.bench.sound_exhibit import SoundExhibit
from smalti.errors import InputError, MissingDependencyError, UnavailableError
from smalti.store.media import considered
from smalti.store.plan import find_inputs
from smalti.text.base import TextTokenizer
from smalti.tokenizer import NeuralTokenizer, Tokenizer

PHOTOS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")
PHOTO_CREDIT = (
    "Photos, as scikit-image distributes them: astronaut, NASA, public domain; coffee, Rachel Michetti, public domain; "
    "chelsea, Stéfan van der Walt, CC0; rocket, SpaceX, CC0."
)
EXHIBITS: Mapping[str, type[Exhibit]] = {"image": PhotoExhibit, "audio": SoundExhibit}
CLIP = "assets/beckett.wav"  # in the wheel of useful-moonshine-onnx


@dataclass(frozen=True)
class Demo:
    """What a run gave.

    Args:
        page: where it is.
        comparisons: title and table of each section, for the terminal.
        problems: files that were skipped and whatever else went wrong, in lines.
    """

    page: Path
    comparisons: Sequence[tuple[str, Table]]
    problems: Sequence[str]


def run_demo(tokenizers: Sequence[tuple[Tokenizer, str]], sources: Sequence[Source], out: Path, tell: Tell) -> Demo:
    """Runs an exhibit per tokenizer and writes the page.

    Args:
        tokenizers: each with the name that the user knows it by.
        sources: the files of each.
        out: the folder that everything goes into.
        tell: called with what is being done.

    Raises:
        InputError: if none of the files of a tokenizer can be used, or the folder can't be written.
        StoreError: if a store there is damaged or being written.
    """
    exhibits = [
        exhibit_of(tokenizer, reference, source, out)
        for (tokenizer, reference), source in zip(tokenizers, sources, strict=True)
    ]
    displays = [exhibit.display(tell) for exhibit in exhibits]
    tell("writing the page")
    page = _page(displays).write(out / "report")
    comparisons = [(each.title, each.comparison) for each in displays]
    return Demo(page, comparisons, [line for each in displays for line in each.problems])


def demo_photos() -> Source:
    """Four photos that lie in the wheel of scikit-image, which is not imported.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise MissingDependencyError(
            "the photos of the demo lie in scikit-image, which is not installed: pip install 'smalti[demo]', "
            "or give photos of your own with --images FOLDER"
        )
    paths = [Path(package.origin).parent / "data" / name for name in PHOTOS]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise MissingDependencyError(f"this scikit-image lacks {missing}: give photos with --images FOLDER")
    return Source(paths, "Four photos from the wheel of scikit-image.", PHOTO_CREDIT)


def demo_speech() -> Source:
    """The recording in the wheel of useful-moonshine-onnx, where it is installed, else a clip that was synthesised."""
    package = find_spec("moonshine_onnx")
    path = None if package is None or package.origin is None else Path(package.origin).parent / CLIP
    if path is not None and path.is_file():
        credit = "Speech: beckett.wav of the package useful-moonshine-onnx, MIT licence."
        return Source([path], "A recording of ten seconds from the wheel of useful-moonshine-onnx.", credit)
    clip = Path(str(files("smalti.bench") / "assets" / "speech.flac"))
    return Source([clip], "A synthetic voice: no recording was found (pip install --no-deps useful-moonshine-onnx).")


def demo_text() -> Source:
    """The README and the largest module of rich, which prints Smalti's tables."""
    readme = next(Path(str(file.locate())) for file in distribution("rich").files or () if file.name == "METADATA")
    paths = [readme, _package("rich") / "console.py"]
    credit = "Text: README and console.py of the package rich, Will McGugan, MIT licence."
    return Source(paths, "Prose in Markdown, and Python, from the wheel of rich.", credit)


def demo_programs() -> Source:
    """The compiled part of safetensors, which reads and writes Smalti's weights."""
    paths = sorted(each for each in _package("safetensors").iterdir() if each.suffix in (".so", ".pyd"))
    credit = "Program: the compiled part of the package safetensors, Hugging Face, Apache-2.0."
    return Source(paths, "A library that was written in Rust, from the wheel of safetensors.", credit, programs=True)


def _package(name: str) -> Path:
    """The folder of an installed package that Smalti needs anyway."""
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def own_files(folder: Path, modality: str, limit: int) -> Source:
    """Files of the user's, or one of them.

    Args:
        folder: a folder, or a file.
        modality: whose suffixes count.
        limit: at most so many, by name.

    Raises:
        InputError: if there are none.
    """
    found = find_inputs([folder], considered(modality)).inputs
    if not found:
        kind = "executable" if modality == "executable" else f"file with an {modality} suffix"  # known by its content
        raise InputError(f"{folder} holds no {kind}")
    some = f"the first {limit} of {len(found)}" if len(found) > limit else str(len(found))
    paths = [each.path for each in found[:limit]]
    return Source(paths, f"Files of {folder}: {some}.", programs=modality == "executable")


def exhibit_of(tokenizer: Tokenizer, reference: str, source: Source, folder: Path) -> Exhibit | BytesExhibit:
    """The exhibit for a tokenizer's modality.

    Raises:
        UnavailableError: if there is none yet.
    """
    if isinstance(tokenizer, TextTokenizer):
        return BytesExhibit(tokenizer, reference, source, folder)
    if not isinstance(tokenizer, NeuralTokenizer) or tokenizer.modality not in EXHIBITS:
        known = ", ".join([*EXHIBITS, "text", "executable"])
        raise UnavailableError(f"{reference} is of modality {tokenizer.modality!r}; {known} can be shown")
    return EXHIBITS[tokenizer.modality](tokenizer, reference, source, folder)


def _page(displays: Sequence[Display]) -> Page:
    versions = (
        f"Smalti {smalti.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} on {platform.machine()}, {torch.get_num_threads()} threads."
    )
    cards = [card for each in displays for card in each.cards]
    foot = [versions, *(line for each in displays for line in each.foot)]
    lead = "Photos, sound, text and programs became discrete tokens, were stored and verified, and came back."
    return Page("Tokens and back", lead, cards, [each.section for each in displays], foot)
