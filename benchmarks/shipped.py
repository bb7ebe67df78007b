"""Quality of the tokenizers that ship, on pictures and speakers that they were not trained on.

    python -m benchmarks.shipped --data ../shared/data [--only 'smalti-photo-*'] [--json]

Pictures are 256x256 centre crops of the Kodak photos and of those in `recipes/held-out-photos.txt`; speech is that of
the speakers in `recipes/held-out-speakers.txt`. What runs is what `smalti bench reconstruct` runs, with every judge
that is installed (extras `bench` and `pesq`). Speeds belong to `benchmarks/codecs.py`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from smalti import systems
from smalti.bench.reconstruction import measure
from smalti.errors import SmaltiError
from smalti.store.media import Square
from smalti.store.plan import Input
from smalti.tokenizer import NeuralTokenizer

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SIZE = 256  # pixels a side
MEASURED = "## Measured"


@dataclass(frozen=True)
class Held:
    """A set of files that no shipped tokenizer was trained on.

    Args:
        name: of the set.
        files: of the folder of the data sets.
        square: what pictures are cut to.
    """

    name: str
    files: Callable[[Path], Sequence[Path]]
    square: Square | None = None


def listed(name: str) -> list[str]:
    """The lines of a file in recipes/, without its comments."""
    lines = (RECIPES / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def kodak(data: Path) -> list[Path]:
    """The photos of Kodak that are here."""
    return sorted((data / "kodak").glob("*.webp"))


def held_out_photos(data: Path) -> list[Path]:
    """Those of the photos that training leaves out."""
    return [data / name for name in listed("held-out-photos.txt")]


def held_out_speech(data: Path) -> list[Path]:
    """All clips of the speakers that training leaves out."""
    speakers = set(listed("held-out-speakers.txt"))
    with (data / "speech" / "metadata.csv").open(encoding="utf-8", newline="") as lines:
        return [data / "speech" / row["file"] for row in csv.DictReader(lines) if row["speaker"] in speakers]


PHOTOS = (
    Held("Kodak", kodak, Square(SIZE)),
    Held("Kodak, not scaled", kodak, Square(SIZE, scaled=False)),
    Held("held-out photos", held_out_photos, Square(SIZE)),
)
SHIPPED: Mapping[str, Sequence[Held]] = {
    "smalti-photo-f8": PHOTOS,
    "smalti-photo-f16": PHOTOS,
    "smalti-speech": (Held("held-out speakers", held_out_speech),),
}


def examined(name: str, held: Held, data: Path) -> dict[str, Any]:
    """A row of `smalti bench reconstruct`, and the set that it is of."""
    tokenizer = systems.load(name)
    assert isinstance(tokenizer, NeuralTokenizer)
    inputs = [Input(str(path.relative_to(data)), path) for path in held.files(data)]
    return {"set": held.name, **measure(tokenizer, inputs, reference=name, square=held.square).row()}


def show(row: dict[str, Any]) -> str:
    """A row in a line."""
    bits = f"{row['bits']['nominal']:.4g} {row['bits']['unit']} ({row['bits']['entropy']:.3g} entropy coded)"
    values = [f"{entry['name']} {entry['value']:.3f} {entry['unit']}".strip() for entry in row["quality"]]
    used = [f"{slot['usage']:.0%}" for report in row["codebook"].values() for slot in report["slots"]]
    return f"{row['tokenizer']} on {row['samples']} of {row['set']}: {', '.join([bits, *values])}; codes used {used}"


def write_card(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Puts a section with these rows at the end of a card, in place of an earlier one."""
    card = systems.WEIGHTS / name / "README.md"
    text = card.read_text(encoding="utf-8").partition(MEASURED)[0].rstrip()
    lines = "\n".join(f"- {show(row)}" for row in rows)
    command = "`python -m benchmarks.shipped --data ../shared/data --cards`, on files that training left out:"
    card.write_text(f"{text}\n\n{MEASURED}\n\n{command}\n\n{lines}\n", encoding="utf-8")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="the folder of the development data sets")
    options.add_argument("--only", default="*", help="tokenizers whose name matches")
    options.add_argument("--json", action="store_true")
    options.add_argument("--cards", action="store_true", help="write the figures into the cards of the weights")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, sets in SHIPPED.items():
        for held in sets if fnmatch(name, arguments.only) else ():
            try:
                rows.append(examined(name, held, arguments.data))
            except SmaltiError as error:
                print(f"{name}: {error}", file=sys.stderr)  # one that is not trained yet
                break
            if not arguments.json:
                print(show(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    if arguments.cards:
        for name in {row["tokenizer"] for row in rows}:
            write_card(name, [row for row in rows if row["tokenizer"] == name])


if __name__ == "__main__":
    main()
