"""Training data: files of a folder to samples, each an exact function of (seed, number of the sample).

    seed ──► order of the files in every epoch ──► file of sample i ──► cut at random by its own generator ──► tensor

So the order needs no state: workers, ranks and interruptions change nothing, and a resumed run goes on with the sample
that would have come next.
"""

from __future__ import annotations

import hashlib
import logging
import math
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

import smalti.audio.io
import smalti.config
import smalti.image.io
from smalti.errors import ConfigError, InputError, SmaltiError
from smalti.image.resize import CentreCrop, RandomCrop, ResizeShorter, Rule, apply_rules, size_after

WATCHED = 8.0  # seconds of a held-out recording
WATCHED_SIDE = 256  # pixels of a held-out photo's middle
TRIES = 1000  # files in a row that can't be used before a run gives up
Range = tuple[float, float]


class Files(smalti.config.Config, ABC):
    """Which files are trained on, and how samples are cut from them.

    Args:
        include: patterns of POSIX paths below the data folder; "*" crosses folders.
        held_out: patterns of paths that are never trained on.
        held_out_list: a file beside the recipe with more such patterns, one a line; "#" starts a comment.
        validation: patterns of those held-out paths that are watched during training; all of them if there are none.
            Where the best weights are kept, they are chosen on these, so report results on others.
        cache: bytes of decoded files that each worker keeps in memory.
    """

    modality: ClassVar[str]
    suffixes: ClassVar[frozenset[str]]
    include: tuple[str, ...] = ("*",)
    held_out: tuple[str, ...] = ()
    held_out_list: str | None = None
    validation: tuple[str, ...] = ()
    cache: int = Field(2**28, ge=0)

    @abstractmethod
    def read(self, path: Path, rate: int | None) -> tuple[Any, int]:
        """One file decoded, and its size in bytes; audio at `rate` Hz."""

    @abstractmethod
    def cut(self, decoded: Any, generator: torch.Generator, rate: int | None) -> Tensor:
        """A random training sample of a decoded file, in the public range; all have one shape."""

    @abstractmethod
    def watched(self, path: Path, rate: int | None) -> Tensor:
        """A held-out sample as it is shown and measured: the same every time, and not changed at random."""

    def shares(self, path: Path) -> int:
        """How often a file comes in an epoch; 0 leaves it out."""
        return 1


class Images(Files):
    """Photos: size rules in order (the last ones crop), mirroring, turning and other colours.

    Args:
        rules: as in `smalti.image.resize`; they must bring all pictures to one size.
        flip: mirror half of the samples.
        turn: turn samples by multiples of 90 degrees; they must be squares.
        colour: largest change of a random gamma (in its logarithm) and of each channel's random gain; 0 for none. With
            few photos a network learns their colours by heart otherwise.
    """

    type: Literal["images"] = "images"
    modality: ClassVar[str] = "image"
    suffixes: ClassVar[frozenset[str]] = smalti.image.io.SUFFIXES
    rules: tuple[Annotated[Rule, Field(discriminator="type")], ...] = (ResizeShorter(size=256), RandomCrop(size=256))
    flip: bool = True
    turn: bool = False
    colour: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_size(self) -> Images:
        size, names = size_after(self.rules), ", ".join(rule.type for rule in self.rules) or "no rules"
        if size is None:
            raise ValueError(f"rules must bring all pictures to one size, as a last random-crop does; got {names}")
        if self.turn and size[0] != size[1]:
            raise ValueError(f"turn takes squares, and rules end in {size[0]}x{size[1]}")
        return self

    def read(self, path: Path, rate: int | None) -> tuple[Image.Image, int]:
        image = smalti.image.io.open_image(path)
        return image, 3 * image.width * image.height

    def cut(self, decoded: Image.Image, generator: torch.Generator, rate: int | None) -> Tensor:
        pixels = smalti.image.io.to_tensor(apply_rules(decoded, self.rules, generator))
        if self.flip and bool(torch.randint(2, (), generator=generator)):
            pixels = pixels.flip(-1)
        if self.turn:
            pixels = pixels.rot90(int(torch.randint(4, (), generator=generator)), (-2, -1))
        if self.colour:
            gamma, *gains = (self.colour * (2 * torch.rand(4, generator=generator) - 1)).tolist()
            pixels = (pixels ** math.exp(gamma) * (1 + torch.tensor(gains)[:, None, None])).clamp(0, 1)
        return pixels

    def watched(self, path: Path, rate: int | None) -> Tensor:
        decoded, _ = self.read(path, rate)
        side = min(decoded.size)
        return smalti.image.io.to_tensor(CentreCrop(size=min(side, WATCHED_SIDE))(decoded))


class Recordings(Files):
    """Segments of recordings at the model's rate; short ones are tiled. Long files come in proportion to their length.

    Args:
        seconds: length of a segment.
        shortest: seconds below which a file is left out.
        least_rate: Hz below which a file is left out.
        peak_db: range of the segment's peak, dB below full scale, or "keep" for the level that it has.
        speed: range of the factor of playing speed, which moves pitch too.
    """

    type: Literal["recordings"] = "recordings"
    modality: ClassVar[str] = "audio"
    suffixes: ClassVar[frozenset[str]] = smalti.audio.io.SUFFIXES
    seconds: float = Field(1.0, gt=0)
    shortest: float = Field(0.1, ge=0)
    least_rate: int = Field(0, ge=0)
    peak_db: Range | Literal["keep"] = (-6.0, -1.0)
    speed: Range = (1.0, 1.0)

    @model_validator(mode="after")
    def _ranges(self) -> Recordings:
        for name, pair in (("peak_db", self.peak_db), ("speed", self.speed)):
            if not isinstance(pair, str) and pair[0] > pair[1]:
                raise ValueError(f"{name} must be (low, high), got {pair}")
        if self.speed[0] <= 0:
            raise ValueError(f"speed must be positive, got {self.speed}")
        return self

    def read(self, path: Path, rate: int | None) -> tuple[Tensor, int]:
        waveform, own = smalti.audio.io.read_audio(path)
        mono = smalti.audio.io.to_channels(waveform, 1)
        return smalti.audio.io.resample(mono, own, rate or own), 4 * mono.shape[-1]

    def cut(self, decoded: Tensor, generator: torch.Generator, rate: int | None) -> Tensor:
        samples = round(self.seconds * (rate or 1))
        peak = (0.0, 0.0) if isinstance(self.peak_db, str) else self.peak_db
        speed, level = _uniform(self.speed, generator), _uniform(peak, generator)
        needed = math.ceil(samples * speed) + 1
        tiled = decoded.repeat(1, -(-needed // decoded.shape[-1]))
        start = int(torch.randint(tiled.shape[-1] - needed + 1, (), generator=generator))
        segment = tiled[:, start : start + needed]
        if speed != 1:
            segment = F.interpolate(segment[None], size=samples + 1, mode="linear")[0]
        segment = segment[:, :samples]
        if self.peak_db == "keep":
            return segment
        return segment / segment.abs().max().clamp(min=1e-4) * 10 ** (level / 20)

    def watched(self, path: Path, rate: int | None) -> Tensor:
        return self.read(path, rate)[0][:, : round(WATCHED * (rate or 1))]

    def shares(self, path: Path) -> int:
        try:
            rate, seconds = smalti.audio.io.rate_and_seconds(path)
        except InputError as problem:
            logging.getLogger("smalti").warning("%s is left out: %s", path, problem)
            return 0
        return 0 if rate < self.least_rate or seconds < self.shortest else max(1, round(seconds / self.seconds))


Data = Annotated[Images | Recordings, Field(discriminator="type")]


def _uniform(bounds: Range, generator: torch.Generator) -> float:
    low, high = bounds
    return low + (high - low) * float(torch.rand((), generator=generator))


# --- which files -----------------------------------------------------------------------------------------------------


def find_files(data: Files, folder: Path, beside: Path) -> tuple[list[Path], list[Path]]:
    """The files to train on, and the held-out ones to watch, both sorted by their path.

    Args:
        data: the recipe's section.
        folder: that the user gave.
        beside: the recipe's folder, where `held_out_list` lies.

    Raises:
        InputError: if the folder does not exist or holds nothing to train on.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: --data takes the folder that holds the files to train on")
    patterns = [*data.held_out, *_listed(data.held_out_list, beside)]
    unmatched = set(patterns)
    train: list[Path] = []
    watched: list[Path] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in data.suffixes or not _matches(name, data.include):
            continue
        unmatched = {pattern for pattern in unmatched if not fnmatchcase(name, pattern)}
        if not _matches(name, patterns):
            train.append(path)
        elif _matches(name, data.validation or ("*",)):
            watched.append(path)
    if not train:
        raise InputError(
            f"{folder} holds nothing to train on: {', '.join(data.include)} with suffix "
            f"{' '.join(sorted(data.suffixes))}, and not held out"
        )
    if unmatched:
        logging.getLogger("smalti").warning(
            "%s has nothing of what is to be held out (%s): right for other data, wrong for a folder above or below",
            folder, ", ".join(sorted(unmatched)[:4]),
        )  # fmt: skip
    return train, watched


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listed(name: str | None, beside: Path) -> list[str]:
    if name is None:
        return []
    try:
        lines = (beside / name).read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"data.held_out_list: {beside / name} can't be read: {error.strerror}") from None
    return [line.partition("#")[0].strip() for line in lines if line.partition("#")[0].strip()]


# --- samples ---------------------------------------------------------------------------------------------------------


class Samples(Dataset[Tensor]):
    """Sample i of an endless series of epochs.

    Args:
        data: how files are read and cut.
        files: to train on.
        folder: that they lie in, at any depth.
        seed: of the order and of every cut.
        rate: Hz that audio is brought to; None for other modalities.

    Attributes:
        fingerprint: changes where the files' paths below `folder` or their sizes do, and with them the meaning of a
            sample's number. Contents are not read for it.
    """

    def __init__(self, data: Files, files: Sequence[Path], *, folder: Path, seed: int, rate: int | None = None) -> None:
        self.data, self.seed, self.rate = data, seed, rate
        self.entries = [file for file in files for _ in range(data.shares(file))]
        if not self.entries:
            raise InputError(f"all {len(files)} files are too short or of too low a rate for this recipe")
        sizes = {path: path.stat().st_size for path in self.entries}
        listed = "\n".join(f"{path.relative_to(folder).as_posix()} {sizes[path]}" for path in self.entries)
        self.fingerprint = hashlib.sha256(listed.encode()).hexdigest()
        self._orders: dict[int, np.ndarray[Any, Any]] = {}
        self._kept: dict[Path, Any] = {}
        self._left = data.cache
        self._left_out: set[Path] = set()

    def __getitem__(self, index: int) -> Tensor:
        error: Exception | None = None
        tries = min(TRIES, 2 * len(self.entries))  # so many in a row have all of some epoch
        for attempt in range(tries):  # the next ones in the order, whatever was left out before: samples have no memory
            path = self._file(index + attempt)
            try:
                return self.data.cut(self._decoded(path), self._generator(index), self.rate)
            except (SmaltiError, OSError) as problem:
                error = problem
                if path not in self._left_out:
                    self._left_out.add(path)
                    logging.getLogger("smalti").warning("%s is left out: %s", path, problem)
        raise InputError(f"{tries} files in a row can't be trained on; the last one: {error}")

    def _file(self, index: int) -> Path:
        epoch, place = divmod(index, len(self.entries))
        if epoch not in self._orders:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.entries))
            self._orders = {key: kept for key, kept in self._orders.items() if key == epoch - 1} | {epoch: order}
        return self.entries[self._orders[epoch][place]]

    def _generator(self, index: int) -> torch.Generator:
        words = np.random.SeedSequence((self.seed, index)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))

    def _decoded(self, path: Path) -> Any:
        if path in self._kept:
            return self._kept[path]
        decoded, size = self.data.read(path, self.rate)
        if size <= self._left:
            self._kept[path] = decoded
            self._left -= size
        return decoded


class Runs(Sampler[list[int]]):
    """Numbers of the samples of each batch, made when they are asked for: a long run has hundreds of millions."""

    def __init__(self, starts: range, share: int) -> None:
        self.starts, self.share = starts, share

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(start, start + self.share)) for start in self.starts)


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, and it is the loop that ends a run in good order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def batches(
    samples: Samples, *, batch: int, first: int, count: int, rank: int = 0, ranks: int = 1, workers: int = 0
) -> Iterator[Tensor]:
    """This rank's share of `count` global batches, beginning with sample `first`.

    Args:
        samples: of all ranks.
        batch: samples of a global batch, a multiple of `ranks`; each rank takes a run of neighbours.
        first: number of the first sample.
        count: global batches.
        rank, ranks: whose share.
        workers: processes that decode; 0 decodes here.

    Yields:
        (batch / ranks, ...) tensors.
    """
    share = batch // ranks
    starts = range(first + rank * share, first + rank * share + batch * count, batch)
    loader = DataLoader(
        samples,
        batch_sampler=Runs(starts, share),
        num_workers=workers,
        # A worker that hangs on the parent's locks is worse than the second that a fresh process costs.
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # the loader would draw from the global one, and move what training draws
    )
    return iter(loader)
