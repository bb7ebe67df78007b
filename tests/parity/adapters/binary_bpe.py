"""Golden cases of binary-bpe: the official trainer's merges and counts, and ids of test bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smalti.bpe import Training
from smalti.bpe.splitters import NullDelimited, Splitter, Whitespace, Whole
from smalti.text.binary_bpe import BinaryBPE, Whitespaces
from tests.parity.golden import Case

UNBOUNDED = 2**31 - 1
STOPPED = {"vocab": "TargetVocabReached", "rare": "NoEligiblePairs"}  # those of the cases that we have seen
SHORT, LONG = 16, 32  # bytes of a token, by default


def run(case: Case) -> dict[str, Any]:
    config = case.config
    training = Training(
        vocab=config["target_vocab_size"],
        min_count=config["min_frequency"],
        longest=config["max_token_length"] or UNBOUNDED if "max_token_length" in config else longest(config),
        lengths=config.get("allowed_token_lengths"),
        max_merges=config.get("max_merge_iterations"),
        patience=config.get("plateau_patience"),
    )
    tokenizer = BinaryBPE.Config(
        training=training,
        chunk=config["chunk_size"],
        splitter=splitter(config["preprocessor"], config.get("split_probability", 1.0)),
        specials=tuple(config.get("special_tokens", ())),
        glyphs=config.get("reasoning_tokens_enabled", False),
        whitespace=Whitespaces(
            with_letters=config.get("require_letter_whitespace_merges", False),
            leading=not config.get("forbid_leading_whitespace_merges", False),
        ),
    ).build()
    assert isinstance(tokenizer, BinaryBPE)
    tokenizer.fit([case.inputs["corpus"].numpy()])
    ids = tokenizer.ids(case.inputs["test_bytes"].numpy().tobytes())
    given: dict[str, Any] = {
        "merges": tokenizer.merges.pairs,
        "best_frequency": tokenizer.merges.counts,
        "token_bytes_concat": tokenizer.spellings.data,
        "token_lengths": tokenizer.spellings.lengths,
        "test_ids": ids,
    }
    found: dict[str, Any] = {name: as_tensor(value) for name, value in given.items()}
    found["json/vocab_size"] = tokenizer.vocab[0]
    if tokenizer.stopped in STOPPED:
        found["json/stop_reason"] = STOPPED[tokenizer.stopped]
    return found


def splitter(name: str, keep: float) -> Splitter:
    """The official preprocessor of a name, as the command line or the code spells it, or shorter."""
    known = {
        "none": Whole(keep=keep),
        "null": NullDelimited(keep=keep),
        "ascii": Whitespace(keep=keep),
        "": Whitespace(keep=keep),
        "unicode": Whitespace(keep=keep, unicode=True),
    }
    return known[re.sub(r"[-_ ]|delimited|whitespace", "", name.lower())]


def longest(config: Mapping[str, Any]) -> int:
    """The default of the official trainer: shorter tokens where it splits at white space."""
    split = isinstance(splitter(config["preprocessor"], 1.0), Whitespace)
    return SHORT if split else LONG


def as_tensor(array: Any) -> Tensor:
    kind = np.uint8 if array.dtype == np.uint8 else np.int64
    return torch.from_numpy(array.astype(kind))
