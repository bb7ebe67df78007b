"""The folder of a training run, and the only code that reads or writes it.

recipe.json               the recipe in force, as it was resolved
history.json              the steps that each recipe made: a span for the beginning and for every resumption
journal.jsonl             a line per `watch.log` steps
checkpoints/00000500.pt   everything that going on takes; appears in one rename
best.pt                   the averaged weights that did best on validation, where the recipe asks for them
samples/                  step-00000500.png: originals above reconstructions; for sound a WAV file each
tensorboard/
page.html                 curves and samples
tokenizer/                what came out
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smalti.audio.io import write_audio
from smalti.bench.training_page import training_page_of
from smalti.errors import CheckpointError, InputError, require
from smalti.image.io import write_image

FORMAT = 1


class Span(NamedTuple):
    """Steps of a run that one recipe made.

    Args:
        step: of the whole run, after which they begin.
        command: that was given, or the call.
        recipe: as it was resolved.
    """

    step: int
    command: str
    recipe: dict[str, Any]


class RunFolder:
    """A run's folder; only the first of several ranks may write.

    Args:
        path: of the folder.
        keep: checkpoints that stay.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep
        self._board: Any = None

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    # --- beginning and going on --------------------------------------------------------------------------------------

    def begin(self, span: Span) -> None:
        """Makes the folder of a new run.

        Raises:
            InputError: if a run lies there already.
        """
        if self._has_begun():
            raise InputError(f"{self.path} holds a run already: --resume goes on with it, another --out begins anew")
        self.path.mkdir(parents=True, exist_ok=True)
        self.go_on(span)

    def go_on(self, span: Span) -> None:
        """The recipe from here on. Spans of which no step is left are forgotten."""
        spans = [*(each for each in self.history() if each.step < span.step), span]
        _write(self.path / "history.json", _json([each._asdict() for each in spans]))
        _write(self.path / "recipe.json", _json(span.recipe))

    def history(self) -> list[Span]:
        """The spans so far, from the first on.

        Raises:
            CheckpointError: if they can't be read.
        """
        path = self.path / "history.json"
        if not path.exists():  # nothing has begun, or it was removed
            return [Span(0, "a command that is not known", self.recipe())] if self._has_begun() else []
        try:
            return [Span(**each) for each in json.loads(path.read_text())]
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} can't be read: {error}") from None

    def recipe(self) -> dict[str, Any]:
        """The recipe in force.

        Raises:
            InputError: if no run lies here.
        """
        try:
            return json.loads((self.path / "recipe.json").read_text())
        except OSError:
            raise InputError(f"{self.path} holds no run to go on with: leave --resume out to begin one") from None

    def rewind(self, step: int) -> None:
        """Drops what was written after a step: it will be written again.

        The best weights go too if they are later, because another recipe may follow; those before them are not kept.
        """
        path = self.path / "journal.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            _write(path, "".join(f"{line}\n" for line in kept).encode())
        for sample in (self.path / "samples").glob("step-*"):
            if int(sample.stem.split("-")[1]) > step:
                sample.unlink()
        best = self.best()
        if best is not None and best["step"] > step:
            (self.path / "best.pt").unlink()

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Checkpoints from the oldest to the newest."""
        return sorted((self.path / "checkpoints").glob("[0-9]*.pt"))

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, then removes the oldest beyond `keep`."""
        path = self.path / "checkpoints" / f"{step:08d}.pt"
        path.parent.mkdir(exist_ok=True)
        _save(path, {"format": FORMAT, **state})
        for old in self.checkpoints()[: -self.keep]:
            old.unlink()
        return path

    def newest(self) -> dict[str, Any] | None:
        """The newest checkpoint, or None where the run had not come that far.

        Raises:
            CheckpointError: if it can't be read; it appeared in one rename, so something damaged it later.
        """
        found = self.checkpoints()
        return _load(found[-1]) if found else None

    def save_best(self, found: Mapping[str, Any]) -> None:
        """`weights`, the `value` that they reached, and at which `stage` and `step`."""
        _save(self.path / "best.pt", {"format": FORMAT, **found})

    def best(self) -> dict[str, Any] | None:
        path = self.path / "best.pt"
        return _load(path) if path.exists() else None

    # --- what people look at -----------------------------------------------------------------------------------------

    def log(self, line: Mapping[str, float]) -> None:
        """A line of the journal, and the same numbers for TensorBoard."""
        with (self.path / "journal.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is None:
            writer = require("torch.utils.tensorboard", "train").SummaryWriter
            self._board = writer(str(self.path / "tensorboard"), purge_step=int(line["step"]))
        for name, value in line.items():
            if name not in ("step", "stage"):
                self._board.add_scalar(name, value, int(line["step"]))

    def show_images(self, step: int, originals: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> None:
        """A PNG: originals above their reconstructions, all cut to the smallest height and width."""
        height, width = (min(each.shape[axis] for each in originals) for axis in (1, 2))
        rows = [torch.cat([each[:, :height, :width] for each in row], 2) for row in (originals, rebuilt)]
        self._folder("samples")
        write_image(self.path / "samples" / f"step-{step:08d}.png", torch.cat(rows, 1).clamp(0, 1))

    def show_sounds(self, step: int, originals: Sequence[Tensor], rebuilt: Sequence[Tensor], rate: int) -> None:
        """A WAV file each; the originals once."""
        self._folder("samples")
        for index, (original, sound) in enumerate(zip(originals, rebuilt, strict=True)):
            first = self.path / "samples" / f"original-{index}.wav"
            if not first.exists():
                write_audio(first, original.clamp(-1, 1), rate)
            write_audio(self.path / "samples" / f"step-{step:08d}-{index}.wav", sound.clamp(-1, 1), rate)

    def journal(self) -> list[dict[str, float]]:
        """All lines so far."""
        path = self.path / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def write_card(self, card: str) -> None:
        """README.md of the trained tokenizer, and beside it the recipe; all of them, if there were several."""
        _write(self.tokenizer / "README.md", card.encode())
        _write(self.tokenizer / "recipe.json", (self.path / "recipe.json").read_bytes())
        history = self.history()
        if any(span.recipe != history[-1].recipe for span in history):
            _write(self.tokenizer / "history.json", (self.path / "history.json").read_bytes())

    def draw_page(self) -> None:
        """page.html, anew."""
        _write(self.path / "page.html", training_page_of(self.path).encode())

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _has_begun(self) -> bool:
        return (self.path / "recipe.json").exists()

    def _folder(self, name: str) -> None:
        (self.path / name).mkdir(exist_ok=True)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # half a line, written while the run was killed


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"


def _write(path: Path, content: bytes) -> None:
    staged = path.with_name(f".{path.name}.part")
    with staged.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)


def _save(path: Path, state: Mapping[str, Any]) -> None:
    staged = path.with_name(f".{path.name}.part")
    with staged.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)


def _load(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged files
        raise CheckpointError(
            f"{path} can't be read ({type(error).__name__}): remove it to go on from the one before"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no training checkpoint of format {FORMAT}")
    return state
