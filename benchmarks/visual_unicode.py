"""Figures of visual-unicode: characters per token by language, speed beside Hugging Face, and what a table takes.

    python -m benchmarks.visual_unicode [--data FOLDER] [--ngrams FILE] [--json]

N-grams come from every other sentence of each language (Tatoeba), and the rest is measured; or from a JSON file that
holds a list of them, or a golden case. Speeds are of CPU time, in one process, on the same text with the same ids.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from smalti.text.visual_unicode import GlyphPainter, VisualUnicode
from smalti.text.visual_unicode.files import write_vocabulary
from smalti.text.visual_unicode.table import table_of_bits

LANGUAGES = ("eng", "deu", "fra", "rus", "ell", "tur", "ara", "heb", "hin", "ben", "tha", "kor", "jpn", "cmn")
MEGABYTES = 8  # of text whose encoding is timed, by repetition


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--ngrams", type=Path, help="JSON: a list of n-grams, or a golden case")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sentences = _sentences(arguments.data / "text" / "tatoeba" / "train.jsonl")
    tokenizer = _tokenizer(sentences, arguments.ngrams)
    rows = [*_lengths(tokenizer, sentences), *_speeds(tokenizer, arguments.data), *_table(tokenizer)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['case']:34} {row['ours']:10.3f} {row['unit']}{_beside(row)}")


def _beside(row: dict[str, Any]) -> str:
    return f"   {row['peer']:.3f} by {row['by']}, ratio {row['ratio']:.1f}" if "peer" in row else ""


def _sentences(file: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        found.setdefault(entry["lang"], []).append(entry["text"])
        found.setdefault("eng", []).append(entry["eng"])
    return {language: list(dict.fromkeys(texts)) for language, texts in found.items()}


def _tokenizer(sentences: dict[str, list[str]], ngrams: Path | None) -> VisualUnicode:
    if ngrams is None:
        return VisualUnicode.Config().build().fit({language: texts[::2] for language, texts in sentences.items()})
    content = json.loads(ngrams.read_text())
    return VisualUnicode.from_ngrams(content["ngrams_sorted"] if isinstance(content, dict) else content)


def _lengths(tokenizer: VisualUnicode, sentences: dict[str, list[str]]) -> list[dict[str, Any]]:
    rows = []
    for language in LANGUAGES:
        text = "\n".join(sentences[language][1::2])
        ratio = len(text) / tokenizer.count(text.encode())
        rows.append({"case": f"characters per token, {language}", "ours": ratio, "unit": "characters"})
    return rows


def _speeds(tokenizer: VisualUnicode, data: Path) -> list[dict[str, Any]]:
    peer = Tokenizer.from_str(write_vocabulary(tokenizer.vocabulary).decode())
    english = (data / "text" / "tinyshakespeare" / "train.txt").read_bytes()
    many = (data / "text" / "tatoeba" / "train.jsonl").read_bytes()
    rows = []
    for name, text in (("English prose", english), ("38 languages", many), ("one letter", b"a" * 1_000_000)):
        repeated = text * max(1, MEGABYTES * 10**6 // len(text)) if name != "one letter" else text
        ids, seconds = _timed(partial(tokenizer.ids, repeated))
        theirs, peer_seconds = _timed(partial(_encode_lines, peer, text.decode()))
        assert np.array_equal(tokenizer.ids(text), theirs)
        ours, other = len(repeated) / seconds / 1e6, len(text) / peer_seconds / 1e6
        back, decode_seconds = _timed(partial(tokenizer.data, ids))
        assert len(back) > 0
        rows.append(
            {"case": f"encode, {name}", "ours": ours, "unit": "MB/CPU s", "peer": other, "by": "tokenizers",
             "ratio": ours / other}
        )  # fmt: skip
        rows.append({"case": f"decode, {name}", "ours": len(back) / decode_seconds / 1e6, "unit": "MB/CPU s"})
    return rows


def _encode_lines(peer: Tokenizer, text: str) -> list[int]:
    """No token crosses a line's end here, so lines can go one by one, which is quicker there."""
    lines = text.splitlines(keepends=True)
    return [index for line in lines for index in peer.encode(line, add_special_tokens=False).ids]


def _table(tokenizer: VisualUnicode) -> list[dict[str, Any]]:
    painter = GlyphPainter(tokenizer.config.drawing)
    bits, drawing = _timed(partial(painter.bits, tokenizer.tokens))
    _, projecting = _timed(partial(table_of_bits, bits, tokenizer.config.components))
    return [
        {"case": f"draw {len(bits)} tokens", "ours": drawing, "unit": "CPU s"},
        {"case": f"components of {bits.shape[1]} bits", "ours": projecting, "unit": "CPU s"},
    ]


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """What an action gives, and the CPU seconds that it took the second time."""
    action()
    start = time.process_time()
    return action(), time.process_time() - start


if __name__ == "__main__":
    main()
