"""Training of text tokenizers: as the trainer of Hugging Face, to the same merges, ties included.

    texts ──steps before the model──► words and how often each comes ──alphabet──► symbols ──train──► tokenizer.json

Ids: special tokens, the alphabet in the order of its code points, learned tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import Field

import smalti.config
from smalti.bpe import Training, train
from smalti.bpe.alphabets import GPT2
from smalti.bpe.characters import CODE_POINTS
from smalti.bpe.distinct import distinct
from smalti.bpe.pretokenizers import Unsupported, steps_of
from smalti.bpe.splitters import as_array
from smalti.bpe.tokenizer_json import Added, File, Model
from smalti.errors import require

UNLIMITED = 2**30  # symbols of a token
BATCH = 2**22  # bytes that are cut at once
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


class TextTraining(smalti.config.Config):
    """What is trained; the defaults are a byte-level tokenizer with GPT-2's pattern.

    Args:
        vocab: ids in all.
        min_count: pairs that are rarer are not merged.
        max_token_length: pairs of so many symbols or more are not merged, unless each is one symbol; None: no limit.
        specials: special tokens, which come first.
        alphabet: characters that are tokens even if no text has them; "bytes" stands for the 256 bytes.
        limit_alphabet: how many characters are tokens, the most frequent ones; text forgets the others. None: all.
        normalizer, pre_tokenizer, decoder, post_processor: as in tokenizer.json.
        unk_token, fuse_unk, byte_fallback, ignore_merges: as in tokenizer.json.
    """

    vocab: int = Field(32768, ge=1)
    min_count: int = Field(2, ge=1)
    max_token_length: int | None = Field(None, ge=1)
    specials: tuple[str, ...] = ()
    alphabet: Literal["bytes"] | tuple[str, ...] = "bytes"
    limit_alphabet: int | None = Field(None, ge=0)
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = BYTE_LEVEL
    decoder: dict[str, Any] | None = BYTE_LEVEL
    post_processor: dict[str, Any] | None = None
    unk_token: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False


def with_pattern(pattern: str) -> dict[str, Any]:
    """Fields of `TextTraining` for a byte-level tokenizer whose words are the matches of a pattern."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    plain = {**BYTE_LEVEL, "use_regex": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, plain]}, "decoder": plain}


def train_text(
    texts: Iterable[str],
    training: TextTraining,
    *,
    memory: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> File:
    """Trains a tokenizer.

    Args:
        texts: each is cut into words for itself.
        training: what is trained.
        memory: bytes that merging may take, about; merges are the same.
        report: called with (merges so far, merges wanted).

    Returns:
        the tokenizer.json.

    Raises:
        MissingDependencyError: if a step needs `tokenizers`, which is not installed.
    """
    words = _counted(texts, training)
    alphabet = _alphabet(words, training)
    ids = {special: place for place, special in enumerate(dict.fromkeys(training.specials))}
    for character in alphabet:
        ids.setdefault(character, len(ids))
    longest = UNLIMITED if training.max_token_length is None else max(2, training.max_token_length - 1)
    trained = train(
        _segments(words, alphabet), alphabet,
        Training(
            vocab=max(training.vocab, len(ids)), min_count=training.min_count, longest=longest, duplicates="reused"
        ),
        base=[ids[character] for character in alphabet], learned=len(ids),
        reserved={special: ids[special] for special in training.specials}, weights=words.values(), memory=memory,
        report=report,
    ).merges  # fmt: skip
    spelled = {token: text for text, token in ids.items()}
    pairs = []
    for (left, right), result in zip(trained.pairs.tolist(), trained.results.tolist(), strict=True):
        pairs.append((spelled[left], spelled[right]))
        spelled.setdefault(result, spelled[left] + spelled[right])
    model = Model(
        {text: token for token, text in spelled.items()}, pairs, training.unk_token, training.fuse_unk,
        training.byte_fallback, training.ignore_merges,
    )  # fmt: skip
    return File(
        model.data(), [Added(ids[special], special) for special in dict.fromkeys(training.specials)],
        training.normalizer, training.pre_tokenizer, training.post_processor, training.decoder,
    )  # fmt: skip


def _counted(texts: Iterable[str], training: TextTraining) -> dict[str, int]:
    """The pieces of all texts, spelled as the model's tokens are, and how often each comes."""
    try:
        steps = steps_of(training.normalizer, training.pre_tokenizer)
    except Unsupported:
        return Counter(word for text in texts for word in _foreign_words(text, training))
    counts: Counter[bytes] = Counter()
    for batch in _batches(texts):
        sections = [steps.written(as_array(text))[0] for text in batch]
        data = np.concatenate(sections)
        pieces, numbers = distinct(data, steps.pieces(data, np.cumsum([len(section) for section in sections])))
        for piece, number in zip(pieces.views(), numbers.tolist(), strict=True):
            counts[piece.tobytes()] += number
    return {GPT2.text(word) if steps.byte_level else word.decode(): count for word, count in counts.items()}


def _batches(texts: Iterable[str]) -> Iterator[list[bytes]]:
    """Texts as UTF-8, some megabytes at once; empty ones are left out."""
    batch: list[bytes] = []
    for text in texts:
        batch += [text.encode()] if text else []
        if sum(map(len, batch)) >= BATCH or len(batch) >= BATCH // 1024:
            yield batch
            batch = []
    if batch:
        yield batch


def _foreign_words(text: str, training: TextTraining) -> Iterator[str]:
    """The pieces of a text as `tokenizers` cuts it."""
    tokenizers = require("tokenizers", "text")
    model = {"type": "BPE", "vocab": {}, "merges": []}
    file = File(model, (), training.normalizer, training.pre_tokenizer)
    tokenizer = tokenizers.Tokenizer.from_str(file.dump().decode())
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    pieces = [(text, None)] if tokenizer.pre_tokenizer is None else tokenizer.pre_tokenizer.pre_tokenize_str(text)
    yield from (piece for piece, _ in pieces if piece)


def _alphabet(words: Mapping[str, int], training: TextTraining) -> list[str]:
    """The characters that are tokens, by code point; of equally frequent ones the larger are left out."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    always = set(GPT2.characters if training.alphabet == "bytes" else training.alphabet)
    ranked = sorted({*counts, *always}, key=lambda each: (each not in always, -counts[each], each))
    return sorted(ranked if training.limit_alphabet is None else ranked[: training.limit_alphabet])


def _segments(words: Iterable[str], alphabet: list[str]) -> list[Any]:
    """Words as arrays of symbols, without the characters that are none."""
    table = np.full(CODE_POINTS, -1, np.int32)
    table[[ord(character) for character in alphabet]] = np.arange(len(alphabet))
    every = list(words)
    symbols = table[np.frombuffer("".join(every).encode("utf-32-le", "surrogatepass"), np.uint32)]
    ends = np.cumsum([len(word) for word in every])
    kept = symbols >= 0
    if not kept.all():
        ends = np.concatenate([[0], np.cumsum(kept)])[ends]
        symbols = symbols[kept]
    return [symbols[start:stop] for start, stop in pairwise([0, *ends.tolist()])]
