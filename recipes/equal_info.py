"""Makes the table that ships as `smalti.load("equal-info")`: 65,536 strings of prose in 38 languages and of code.

    python -m recipes.equal_info --data ../shared/data --out smalti/weights/equal-info

    Shakespeare, Tatoeba, Python, C++ ──count model of order 5──► every window of 16 bits ──► folder and README.md

WikiText is left out of training: its licence (CC BY-SA) asks for more than attribution, and text that no table has
seen is needed to say how good this one is. The same data give the same file on every machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from smalti.text.equal_info.table import Table
from smalti.text.equal_info.tokenizer import Counts, EqualInfoTokenizer, Fixed

SOURCE = Counts(order=5, least=2)
LINES = {  # files of JSON lines, and which fields of a line are samples
    "tatoeba/train.jsonl": ("text", "eng"),
    "code/python_stdlib.jsonl": ("text",),
    "code/cpp_headers.jsonl": ("text",),
}
PLAIN = "tinyshakespeare/train.txt"
HELD_OUT = "wikitext2/test_part.txt"

CARD = """# equal-info

Exact equal-information windows of 16 bits as a table: every id is one of 65,536 strings of bytes, and text is cut by
the longest that fits. Made by `python -m recipes.equal_info --data ../shared/data --out smalti/weights/equal-info`.

- **Strings**: {strings:,} bytes in all; the longest has {longest} bytes; SHA-256 of the table {sha256}.
- **Model**: integer counts of order {order} with Witten-Bell back-off; contexts seen less than {least} times left out.
- **Data**: {bytes:,} bytes in {samples:,} samples: Shakespeare (public domain); sentences of 38 languages and their
  English translations from Tatoeba (tatoeba.org, CC BY 2.0 FR); modules of the Python 3.11 standard library
  (Copyright Python Software Foundation, PSF-2.0); C++ headers of PyTorch (BSD-3-Clause).
- **Bytes per token**: {heldout:.2f} on WikiText-2 (its test text), none of which was counted.
- **Licence**: Apache-2.0 for the table. It holds short strings of the texts above, whose licences ask for these names.
"""


def samples(texts: Path) -> Iterator[str | bytes]:
    """What the table is made of."""
    yield (texts / PLAIN).read_bytes()
    for file, fields in LINES.items():
        with (texts / file).open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                yield from (record[field] for field in fields)


def main() -> None:
    """Makes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("smalti/weights/equal-info"))
    options = parser.parse_args()
    texts = options.data / "text"
    tokenizer = EqualInfoTokenizer.Config(model=Fixed(source=SOURCE)).build().fit(samples(texts))
    folder = tokenizer.save(options.out, licence="Apache-2.0")
    (folder / "README.md").write_text(card(tokenizer, texts))


def card(tokenizer: EqualInfoTokenizer, texts: Path) -> str:
    """The README of the folder."""
    table, heldout = tokenizer.model, (texts / HELD_OUT).read_bytes()
    assert isinstance(table, Table)
    sizes = [len(each.encode() if isinstance(each, str) else each) for each in samples(texts)]
    return CARD.format(
        strings=len(table.strings), longest=int(table.lengths.max()), sha256=table.sha256, order=SOURCE.order,
        least=SOURCE.least, bytes=sum(sizes), samples=len(sizes), heldout=len(heldout) / tokenizer.count(heldout),
    )  # fmt: skip


if __name__ == "__main__":
    main()
