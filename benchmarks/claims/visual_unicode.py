"""A language model on frozen pictures of tokens learns about as well as one that trains its input table.

Source: "Emergent Semantics Beyond Token Embeddings" (2025), check 6 of its sheet. English text; the n-grams come from
the training part; ids that occur in neither part are left out of the tables. Four models of one body, equal in their
first weights and in the text they see, with the input table
    frozen pictures | the same pictures, trained | frozen random vectors of length 1 | frozen numbers (one dimension)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.claims import Claim
from benchmarks.claims._language_models import EncodedText, Trained, train_language_model
from smalti.text.visual_unicode import GlyphPainter, VisualUnicode, random_table, visual_table
from smalti.text.visual_unicode.table import FrozenTable, given_table

DIM = 256
TRAIN_BYTES, HELDOUT_BYTES = 400_000, 40_000
WITHIN = 0.05


def claims(data: Path, seed: int) -> Iterator[Claim]:
    """Bits per byte of held-out text."""
    corpus = _corpus(data)
    pictures, began = corpus.pictures, time.perf_counter()
    frozen = _train(corpus, pictures, seed, frozen=True)
    alone = time.perf_counter() - began
    for name, table, is_frozen, allowed, words in (
        ("trained", pictures, False, 1 + WITHIN, f"within {WITHIN:.0%} of those of the same pictures, trained on"),
        ("numbers", _numbers(corpus.size), True, 1.0, "fewer than with frozen numbers, one dimension repeated"),
        (
            "random",
            random_table(corpus.size, DIM, seed),
            True,
            1.0,
            "no more than with frozen random vectors (control)",
        ),
    ):
        began = time.perf_counter()
        other = _train(corpus, table, seed, frozen=is_frozen)
        yield Claim(
            system="visual-unicode",
            claim=f"Frozen pictures of tokens need bits {words}",
            metric=f"bits per byte of held-out text; pictures against {name}, both with {frozen}",
            better="lower",
            baseline=other.bits_per_byte,
            ours=frozen.bits_per_byte,
            holds=_holds(frozen, other, allowed, strict=name == "numbers"),
            seconds=alone + time.perf_counter() - began,
        )


@dataclass(frozen=True)
class _Corpus:
    """Text under ids 0..size-1, those that occur, and the pictures of their tokens."""

    train: EncodedText
    heldout: EncodedText
    size: int
    pictures: FrozenTable


def _corpus(data: Path) -> _Corpus:
    train = (data / "text" / "wikitext2" / "valid.txt").read_bytes()
    heldout = (data / "text" / "wikitext2" / "test_part.txt").read_bytes()[:HELDOUT_BYTES]
    tokenizer = VisualUnicode.Config().build().fit([train])
    ids = [tokenizer.ids(text).astype(np.int64) for text in (train, heldout)]
    used, dense = np.unique(np.concatenate(ids), return_inverse=True)
    painter = GlyphPainter(tokenizer.config.drawing)
    pictures = visual_table([tokenizer.tokens[index] for index in used.tolist()], painter, DIM)
    first, second = np.split(dense, [len(ids[0])])
    return _Corpus(EncodedText(first, len(train)), EncodedText(second, len(heldout)), len(used), pictures)


def _numbers(size: int) -> FrozenTable:
    """One number per token, evenly from -1 to 1."""
    return given_table(torch.linspace(-1, 1, size)[:, None])


def _train(corpus: _Corpus, table: FrozenTable, seed: int, *, frozen: bool) -> Trained:
    return train_language_model(
        corpus.train, corpus.heldout, vocab=corpus.size, seed=seed, dim=DIM, training_bytes=TRAIN_BYTES,
        embedding=table.weight, frozen=frozen,
    )  # fmt: skip


def _holds(ours: Trained, baseline: Trained, allowed: float, *, strict: bool) -> bool:
    if strict:
        return ours.bits_per_byte < allowed * baseline.bits_per_byte
    return ours.bits_per_byte <= allowed * baseline.bits_per_byte
