"""The survey's table of methods with discrete tokens, and which of them are here.

Source: "Discrete Tokenization for Multimodal LLMs: A Comprehensive Survey" (2025): its lists by section. Its tables are
pictures, so quantizers, years and numbers are those that are known for certain; the rest is None.

    taxonomy(quantizer="RVQ", modality="audio") ──► records, each with `ours()` where the library has it
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from smalti.errors import ConfigError, UnavailableError

FILE = Path(__file__).with_name("taxonomy.json")
FAMILIES = {
    "VQ": "nearest codeword",
    "RVQ": "sum of codewords, each for what those before it left",
    "PQ": "codewords side by side, each for its own dimensions",
    "AQ": "sum of codewords of full width, chosen jointly",
    "FSQ": "bounded scalars, rounded",
    "LFQ": "sign bits",
    "BSQ": "sign bits on the unit sphere",
    "GART": "a node by its nearest anchors and relations",
}
STAGES = ("fundamental", "classical", "llm-single", "llm-multi")
# Tokenizers of `smalti.systems` that have no record, and why.
WITHOUT_RECORD = {
    "binary-bpe": "merges of bytes: nothing is quantized",
    "equal-info": "arithmetic coding: nothing is quantized",
    "tokenizer-json": "merges of characters: nothing is quantized",
    "visual-unicode": "frozen embeddings of characters: nothing is quantized",
    "mingtok": "continuous tokens",
    "uniflow": "continuous tokens",
    "smalti-photo-f8": "trained for this library, published nowhere else",
    "smalti-photo-f16": "trained for this library, published nowhere else",
    "smalti-speech": "trained for this library, published nowhere else",
}
# Systems whose record has another name.
RECORD_OF = {"speech-text-interleave": "GLM-4-Voice", "survey": "NodePiece"}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table.

    Args:
        method: its name.
        year: of its first version, where known.
        venue: where it appeared, where known.
        quantizers: families, of `FAMILIES`; empty where unknown.
        modality: what is tokenized; empty for methods that know none.
        stage: one of `STAGES`.
        llm: the language model behind it, where known.
        survey_section: where the survey lists it; None where it does not.
        in_library: the dotted name of ours, or None.
        arxiv: number, where known.
    """

    method: str
    year: int | None
    venue: str | None
    quantizers: tuple[str, ...]
    modality: tuple[str, ...]
    stage: str
    llm: str | None
    survey_section: str | None
    in_library: str | None
    arxiv: str | None

    def ours(self) -> Any:
        """The class or function of `in_library`.

        Raises:
            UnavailableError: if there is none.
        """
        if self.in_library is None:
            raise UnavailableError(f"{self.method} is not in the library")
        module, _, name = self.in_library.rpartition(".")
        return getattr(importlib.import_module(module), name)


@cache
def _table() -> tuple[Method, ...]:
    rows: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    for row in rows:
        row.update(quantizers=tuple(row["quantizers"]), modality=tuple(row["modality"]))
    return tuple(Method(**row) for row in rows)


def taxonomy(
    *,
    quantizer: str | None = None,
    modality: str | None = None,
    stage: str | None = None,
    llm: str | None = None,
    in_library: bool | None = None,
) -> list[Method]:
    """Records of the table, filtered.

    Args:
        quantizer: a family, such as "RVQ".
        modality: one of those in the table, such as "audio".
        stage: one of `STAGES`.
        llm: a language model's name, or a part of it, in any case.
        in_library: only those that are here, or only those that are not.

    Raises:
        ConfigError: for a family, modality or stage that does not exist.
    """
    table = _table()
    _known("quantizer", quantizer, FAMILIES)
    _known("modality", modality, {name for row in table for name in row.modality})
    _known("stage", stage, STAGES)
    return [
        row
        for row in table
        if (quantizer is None or quantizer in row.quantizers)
        and (modality is None or modality in row.modality)
        and (stage is None or stage == row.stage)
        and (llm is None or llm.lower() in (row.llm or "").lower())
        and (in_library is None or in_library == (row.in_library is not None))
    ]


def markdown(methods: Iterable[Method]) -> str:
    """The records as a markdown table."""
    names = [field.name for field in fields(Method)]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    lines += [f"| {' | '.join(_cell(value) for value in asdict(method).values())} |" for method in methods]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return "" if value is None else str(value)


def _known(name: str, value: str | None, choices: Iterable[str]) -> None:
    if value is not None and value not in choices:
        raise ConfigError(f"{name} must be one of {sorted(choices)}, got {value!r}")
