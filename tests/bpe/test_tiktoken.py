"""tiktoken's files: ids equal those of tiktoken, also for vocabularies that no training would give."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from smalti.bpe import Encoder, Merges
from smalti.bpe.syntax import UnsupportedPattern
from smalti.bpe.text import TextEngine
from smalti.bpe.tiktoken import exact_by_rank, file_of, merges_of, ranks_of, read, write
from smalti.bpe.tokenizer_json import File
from smalti.bpe.tokenizer_json import read as read_file
from smalti.errors import CheckpointError, ConfigError
from tests.bpe.test_patterns import CL100K, POOL
from tests.bpe.test_text import O200K, trained

tiktoken = pytest.importorskip("tiktoken")
GPT2_RUST = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def random_ranks(seed: int) -> dict[bytes, int]:
    """Bytes, and strings of three letters in any order: some are made by several pairs, some by none."""
    rng = random.Random(seed)
    ranks = {bytes([byte]): byte for byte in range(256)}
    for _ in range(rng.randrange(40)):
        ranks.setdefault(bytes(rng.choice(b"abc") for _ in range(rng.randrange(2, 7))), len(ranks))
    return ranks


@pytest.mark.parametrize("seed", range(60))
def test_pieces_of_any_vocabulary_are_those_of_tiktoken(seed: int) -> None:
    ranks = random_ranks(seed)
    theirs = tiktoken.Encoding("test", pat_str=r"(?s).+", mergeable_ranks=ranks, special_tokens={})
    ours = Encoder(merges_of(ranks), {rank: list(token) for token, rank in ranks.items() if len(token) > 1})
    rng = random.Random(seed)
    for _ in range(20):
        text = "".join(rng.choice("abc") for _ in range(rng.randrange(1, 40)))
        ends = np.array([len(text)])
        assert ours.encode_pieces(np.frombuffer(text.encode(), np.uint8), ends).tolist() == theirs.encode_ordinary(text)


@pytest.mark.parametrize("pattern", [GPT2_RUST, CL100K, O200K])
def test_text_has_the_ids_of_tiktoken_and_of_tokenizers(pattern: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    ranks = ranks_of(TextEngine(_file()).encoder.merges)
    specials = {"<|endoftext|>": 5000}
    theirs = tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
    file = file_of(ranks, pattern, specials)
    engine, other = TextEngine(file), tokenizers.Tokenizer.from_str(file.dump().decode())
    rng = random.Random(1)
    for _ in range(500):
        text = "".join(rng.choice(POOL) for _ in range(rng.randrange(30)))
        ids = theirs.encode_ordinary(text)
        assert engine.encode(text.encode()).ids.tolist() == ids == other.encode(text).ids, text
    assert engine.encode(b"a<|endoftext|>", special=True).ids[-1] == 5000


def _file() -> File:
    data = json.loads(trained("bytes", "gpt2").to_str())
    for token in ("<unk>", "<s>", "</s>"):
        del data["model"]["vocab"][token]
    return read_file(json.dumps({**data, "added_tokens": []}))


def test_a_file_comes_back() -> None:
    ranks = random_ranks(3)
    assert read(write(ranks)) == ranks
    for content in (b"YQ== x", b"!!!! 3", write({b"a": 0})):
        with pytest.raises(CheckpointError):
            read(content)
    with pytest.raises(CheckpointError, match="rank"):
        read(write(ranks) + b"YWFhYWFhYWFhYWE= 97\n")


def test_ranks_are_exact_if_ids_follow_the_merges_and_every_token_is_made() -> None:
    merges = TextEngine(_file()).encoder.merges
    assert exact_by_rank(merges) and exact_by_rank(Merges.of_bytes([(97, 98), (256, 99), (257, 97)]))
    assert not exact_by_rank(merges, {b"glyph": 9999})
    swapped = Merges(np.arange(256), np.array([(97, 98), (98, 99)]), np.array([257, 256]))
    assert not exact_by_rank(swapped)
    # "ab" comes before "bc", so that a + bc is never merged; an engine of ranks would take "abc" whole.
    never_made = Merges(np.arange(256), np.array([(97, 98), (98, 99), (97, 257)]), np.array([256, 257, 258]))
    assert not exact_by_rank(never_made)


@pytest.mark.parametrize("seed", range(30))
def test_exactness_by_rank_is_what_tiktoken_shows(seed: int) -> None:
    """Rules between random tokens, whose ids follow the rules or not."""
    rng = random.Random(seed)
    spelled, pairs = {letter: bytes([letter]) for letter in b"abc"}, []
    for _ in range(rng.randrange(1, 8)):
        pair = rng.choice(list(spelled)), rng.choice(list(spelled))
        if pair not in pairs and spelled[pair[0]] + spelled[pair[1]] not in spelled.values():
            pairs.append(pair)
            spelled[256 + len(pairs) - 1] = spelled[pair[0]] + spelled[pair[1]]
    merges = Merges.of_bytes(pairs)
    theirs = tiktoken.Encoding("test", pat_str=r"(?s).+", mergeable_ranks=ranks_of(merges), special_tokens={})
    encoder = Encoder(merges)
    texts = ["".join(rng.choice("abc") for _ in range(rng.randrange(1, 12))) for _ in range(400)] + [
        spelling.decode() for spelling in spelled.values()
    ]
    same = all(
        encoder.encode(np.frombuffer(text.encode(), np.uint8)).tolist() == theirs.encode_ordinary(text)
        for text in texts
    )
    assert exact_by_rank(merges) == same


def test_patterns_and_ids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UnsupportedPattern):
        file_of(random_ranks(0), r"\w+|\W+")
    with pytest.raises(ConfigError, match="special"):
        file_of(random_ranks(0), GPT2_RUST, {"<s>": 97})
