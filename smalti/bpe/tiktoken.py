"""tiktoken's files: every token and its rank, and nothing about what it is made of.

    base64(token) rank        a line per token        ──►  the rules that encoding by rank amounts to

An engine that knows ranks only merges any two neighbours that spell a token, the one of the lowest rank first. So every
way to cut a token in two is a rule; of these one at most is ever applied, and `merges_of` finds it. The other way
round, a trained vocabulary can be written so only if ranks alone give the same ids: `exact_by_rank` tells.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

import numpy as np

from smalti.bpe.alphabets import GPT2
from smalti.bpe.encoder import effective
from smalti.bpe.syntax import in_oniguruma
from smalti.bpe.tokenizer_json import Added, File, Model
from smalti.bpe.vocabulary import Merges
from smalti.errors import CheckpointError, ConfigError

Ranks = Mapping[bytes, int]


def read(content: bytes) -> dict[bytes, int]:
    """The tokens of a file and their ranks, which are their ids.

    Raises:
        CheckpointError: if a line is damaged, a token or a rank comes twice, or a byte has no token.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise CheckpointError(f"line {number} is no base64 token and rank: {line[:60]!r}") from None
        if len(ranks) != number and len(set(ranks.values())) != len(ranks):
            raise CheckpointError(f"line {number} has a rank that another line has")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or len(set(ranks.values())) != len(ranks):
        raise CheckpointError(f"{len(missing)} bytes have no token" if missing else "two tokens have one rank")
    return ranks


def write(ranks: Ranks) -> bytes:
    """A file of tokens and ranks."""
    ordered = sorted(ranks.items(), key=lambda entry: entry[1])
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered)


def merges_of(ranks: Ranks) -> Merges:
    """The rules that encoding by rank amounts to, one for each token that it can make."""
    return effective(every_split(ranks))


def every_split(ranks: Ranks) -> Merges:
    """A rule for every way to cut a token in two tokens, if both can be made of bytes."""
    made = {bytes([byte]) for byte in range(256)}
    rules = []
    for token in sorted(ranks, key=len):
        splits = [(token[:place], token[place:]) for place in range(1, len(token))]
        usable = [(left, right) for left, right in splits if left in made and right in made]
        made |= {token} if usable else set()
        rules += [(ranks[left], ranks[right], ranks[token]) for left, right in usable]
    table = np.array(rules, np.int32).reshape(-1, 3)
    table = table[np.argsort(table[:, 2], kind="stable")]
    base = np.array([ranks[bytes([byte])] for byte in range(256)], np.int32)
    return Merges(base, table[:, :2], table[:, 2], size=max(ranks.values()) + 1, tied=True)


def ranks_of(merges: Merges) -> dict[bytes, int]:
    """The tokens of rules over bytes, with their ids as ranks."""
    strings = merges.strings
    return {strings[token].astype(np.uint8).tobytes(): int(token) for token in np.flatnonzero(strings.lengths)}


def exact_by_rank(merges: Merges, others: Ranks | None = None) -> bool:
    """Whether an engine that knows only the ranks of tokens gives the ids of these rules.

    Args:
        merges: rules over bytes.
        others: further tokens of the vocabulary, which no rule makes. Engines of ranks would give them.
    """
    if others or (merges.base < 0).any() or len(merges.base) != 256:
        return False
    own, ranked = effective(merges), merges_of(ranks_of(merges))
    every = len(np.unique(merges.results)) == len(own)  # what is never made would be found as a whole piece
    return every and np.array_equal(own.pairs, ranked.pairs) and np.array_equal(own.results, ranked.results)


def file_of(ranks: Ranks, pattern: str, specials: Mapping[str, int] | None = None) -> File:
    """A tokenizer.json that gives the ids of tiktoken.

    Args:
        ranks: of every token.
        pattern: how text is cut, in tiktoken's dialect.
        specials: special tokens and their ids.

    Raises:
        UnsupportedPattern: if the pattern is not one of those that Smalti reads.
        ConfigError: if a special token has the id of another token.
    """
    if specials and set(specials.values()) & set(ranks.values()):
        raise ConfigError("a special token has the id of another token")
    merges = merges_of(ranks)
    text = {rank: GPT2.text(token) for token, rank in ranks.items()}
    vocab = {text[rank]: rank for rank in sorted(text)} | dict(specials or {})
    pairs = [(text[left], text[right]) for left, right in merges.pairs.tolist()]
    cut = {"type": "Split", "pattern": {"Regex": in_oniguruma(pattern)}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return File(
        Model(vocab, pairs, ignore_merges=True).data(),
        [Added(number, special) for special, number in (specials or {}).items()],
        pre_tokenizer={"type": "Sequence", "pretokenizers": [cut, level]},
        decoder=level,
    )
