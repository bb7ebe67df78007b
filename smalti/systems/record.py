"""Record and Checkpoint: what the table of systems says about each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

Kind = Literal["tokenizer", "generator", "model", "compressor", "index", "transfer", "benchmark"]
Modality = Literal[
    "image", "video", "audio", "eeg", "action", "shape", "text", "executable", "graph", "vector", "weights"
]
Status = Literal["planned", "works"]

KINDS: tuple[Kind, ...] = get_args(Kind)
MODALITIES: tuple[Modality, ...] = get_args(Modality)
STATUSES: tuple[Status, ...] = get_args(Status)

UNKNOWN = "unknown: check before use"  # no statement was found; this is not proof that there is none


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One published file, or one folder that holds the parts of one model.

    Args:
        hub: repository on the Hugging Face hub; such a checkpoint can be downloaded by `load`.
        file: path inside the hub repository, or the file's name elsewhere.
        address: where it lies if not on the hub, as the authors give it.
        name: what `load(..., checkpoint=NAME)` takes; by default the stem of `file`, or the last part of `hub`.
        preset: which of the entry's presets it belongs to, where its own tensors do not say.
        config: values of the official configuration that neither the file nor its tensors hold.
        licence: of the weights; `UNKNOWN` where none is stated for them.
        note: what else one has to know before using it.
    """

    hub: str | None = None
    file: str | None = None
    address: str | None = None
    name: str = ""
    preset: str | None = None
    config: Mapping[str, Any] | None = None
    licence: str = UNKNOWN
    note: str = ""

    def __post_init__(self) -> None:
        if not (self.hub or self.address):
            raise ValueError("a checkpoint needs a hub repository or an address")
        if not self.name:
            place = PurePosixPath(self.file or self.hub or self.address or "")
            object.__setattr__(self, "name", place.stem if self.file else place.name)

    @property
    def place(self) -> str:
        """Where it is, in one line."""
        where = f"https://huggingface.co/{self.hub}" if self.hub else self.address or ""
        return f"{where} : {self.file}" if self.file else where


NONE_PUBLISHED: tuple[Checkpoint, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One entry that `load` and `create` know: a system, or one part of it.

    Args:
        name: what is passed to `load`: the system's slug, or "slug/part" where a system has several entries.
        title: of the paper.
        year: of its first arXiv version; of the venue where the sheet names no arXiv version.
        paper: arXiv number and venue.
        kind: says what `load` returns and which public check runs over it.
        modality: what is tokenized (or generated, for a generator).
        repository: the official one on GitHub; None where there is none.
        code_licence: of that repository; None where there is no code.
        weights: published checkpoints, the default one first. Given in every record: `NONE_PUBLISHED` says so.
        licence_note: how the licences were established, and what else they say.
        status: "works" once `load` and `create` return it, "planned" until then.
        summary: what it is, in a sentence.
        entry: "module:Class", imported when it is asked for.
        ships: whether a small trained one lies inside the package (smalti/weights/NAME).
        saved_as: the entry's own name in saved folders, where several records share one class.
    """

    name: str
    title: str
    year: int
    paper: str
    kind: Kind
    modality: tuple[Modality, ...]
    repository: str | None
    code_licence: str | None
    weights: tuple[Checkpoint, ...]
    licence_note: str
    summary: str
    status: Status = "planned"
    entry: str | None = None
    ships: bool = False
    saved_as: str | None = None

    @property
    def system(self) -> str:
        """The slug of the system that this entry is a part of."""
        return self.name.partition("/")[0]

    def to_dict(self) -> Mapping[str, Any]:
        """Plain data for `--json`: every field, and the system's slug."""
        return {"name": self.name, "system": self.system, **asdict(self)}
