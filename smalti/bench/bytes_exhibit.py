"""Text and programs there and back through a token store, beside compressors: a section of a report.

files ──encode──► token store ──verify──► sound? ──decode──► the same bytes?
                      └──► bytes per token, bits beside gzip and xz, and where the tokens end
"""

from __future__ import annotations

import gzip
import json
import lzma
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smalti.bench.exhibit import Display, Source, Tell, files_of, short, store_key
from smalti.bench.report import Part, Pieces, Section, Table
from smalti.bench.text import printable
from smalti.errors import InputError
from smalti.store import TokenStore, decode_store, encode_paths, verify
from smalti.store.format import ERRORS
from smalti.store.media import considered
from smalti.store.places import own_names
from smalti.store.plan import find_inputs
from smalti.text.base import IdArray, TextTokenizer

SHOWN_TOKENS = 160  # of each file, on the page
TEXT_FROM, PROGRAM_FROM = 0.0, 0.3  # how far into a file they begin: programs begin with tables
COMPRESSED = 2**24  # bytes of a file that is compressed too; larger ones would take minutes
COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 9, mtime=0),
    "xz": lzma.compress,
}


@dataclass(frozen=True)
class Cut:
    """A file that came through.

    Args:
        id: of the file.
        data: its bytes.
        ids: the store's.
        same: whether decoding gave its bytes.
    """

    id: str
    data: bytes
    ids: IdArray
    same: bool


class BytesExhibit:
    """A tokenizer of bytes at work on files.

    Args:
        tokenizer: of text or executables.
        reference: what the user called it.
        source: the files.
        folder: where store and decoded files go; a store of the same files and codes is continued.
    """

    def __init__(self, tokenizer: TextTokenizer, reference: str, source: Source, folder: Path) -> None:
        self.tokenizer, self.reference, self.source, self.folder = tokenizer, reference, source, folder
        self.title = "Programs" if source.programs else "Text"
        self.width = math.log2(tokenizer.vocab[0])  # bits of a token

    def display(self, tell: Tell) -> Display:
        """Does everything once.

        Args:
            tell: called with what is being done.

        Raises:
            InputError: if no file came through.
        """
        name = self.title.lower()
        store = self.folder / f"{name}-{store_key(self.tokenizer, self.source.paths)}.store"
        tell(f"{self.title}: encoding {files_of(self.source.paths)} into {store.name}")
        encode_paths(self.source.paths, store, self.tokenizer, reference=self.reference, workers=1)
        checked = verify(store)
        problems = [*checked.problems, *_skipped(store)]
        tell(f"{self.title}: decoding the store")
        cuts = self._cuts(TokenStore(store), problems)
        if not cuts:
            raise InputError(f"of {files_of(self.source.paths)} none could be shown: " + "; ".join(problems[:3]))
        tell(f"{self.title}: compressing the files, to compare")
        comparison = self._comparison(cuts)
        tokens, size = sum(len(cut.ids) for cut in cuts), sum(len(cut.data) for cut in cuts)
        lead = [
            f"{self.source.about} Tokenizer: {self.reference}, {self.tokenizer.vocab[0]:,} tokens.",
            f"All of it went through a token store: {tokens:,} tokens of {files_of(cuts)} in {store.name}. "
            f"{'Verified: it is sound' if checked.sound else 'NOT sound'}.",
        ]
        parts: list[Part] = [comparison, *(self._pieces(cut) for cut in cuts)]
        cards = [(short(size / tokens), f"bytes per token, {name}")] if tokens else []
        foot = [self.source.credit] if self.source.credit else []
        return Display(self.title, comparison, Section(self.title, lead, parts, problems), cards, foot, problems)

    def _cuts(self, store: TokenStore, problems: list[str]) -> list[Cut]:
        """What the store holds, beside the files and what they decode to."""
        if not len(store):
            return []
        out = store.folder.with_suffix(".decoded")
        result = decode_store(store.folder, out, self.tokenizer)
        problems += [f"{name}: {reason}" for name, reason in result.failed]
        places = own_names(store.ids)
        cuts = []
        for each in find_inputs(self.source.paths, considered(self.tokenizer.modality)).inputs:
            name, decoded = each.id, out / places.get(each.id, "")
            if decoded not in result.written:
                continue
            data = each.path.read_bytes()
            ids = np.concatenate([np.zeros(0, np.int64), *(codes[:, 0] for codes in store.codes(name))])
            cuts.append(Cut(name, data, ids, decoded.read_bytes() == data))
            if self.tokenizer.lossless and not cuts[-1].same:
                problems.append(f"{name} came back changed, though {self.reference} says that nothing is lost")
        return cuts

    def _comparison(self, cuts: Sequence[Cut]) -> Table:
        headings = ["file", "bytes", "tokens", "bytes a token", "tokens, bytes", *COMPRESSORS, "came back"]
        rows = []
        for cut in cuts:
            size, tokens = len(cut.data), len(cut.ids)
            packed = [_compressed(cut.data, pack) for pack in COMPRESSORS.values()]
            counts = [f"{size:,}", f"{tokens:,}", f"{size / max(1, tokens):.2f}", f"{tokens * self.width / 8:,.0f}"]
            rows.append([cut.id, *counts, *packed, "every byte" if cut.same else "with losses"])
        note = (
            f"Tokens count {self.width:.4g} bits each here; compressors have done their best, and a model that reads "
            "tokens has still to begin."
        )
        return Table(headings, rows, note)

    def _pieces(self, cut: Cut) -> Pieces:
        """Some tokens in a row, as text or in hexadecimal."""
        start = int(len(cut.ids) * (PROGRAM_FROM if self.source.programs else TEXT_FROM))
        entries = []
        for token in cut.ids[start : start + SHOWN_TOKENS].tolist():
            data = self.tokenizer.token_bytes(token)
            text = f"[{token}]" if data is None else data.hex() if self.source.programs else printable(data)
            entries.append((text, f"token {token}"))
        where = f" from token {start:,} on" if start else ""
        return Pieces(f"{cut.id}: {len(entries)} tokens{where}", entries)


def _compressed(data: bytes, pack: Callable[[bytes], bytes]) -> str:
    """How many bytes a compressor makes of a file."""
    return f"{len(pack(data)):,}" if len(data) <= COMPRESSED else "-"


def _skipped(store: Path) -> list[str]:
    """The files that could not be encoded, and why."""
    lines = (store / ERRORS).read_text(encoding="utf-8").splitlines()
    return [f"{error['id']} was skipped: {error['error']}" for error in map(json.loads, lines)]
