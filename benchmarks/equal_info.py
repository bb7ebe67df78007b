"""What equal-information windows reach: bytes per token, and speed beside tiktoken in one run.

    python -m benchmarks.equal_info [--json]

The text is Python source of this interpreter's own library, in a fixed order that mixes packages: 6 MB to count, and
the rest to measure on. Speeds are bytes per second of the processor on one thread, the best of three rounds in which
ours and the peer take turns. tiktoken runs a byte-level vocabulary of 16,384 that `tokenizers` trained on those 6 MB.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tiktoken
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from benchmarks.side_by_side import Row, best
from smalti.text.equal_info.coder import decode_bits, encode_bits
from smalti.text.equal_info.counts import CountModel
from smalti.text.equal_info.neural import NeuralModel, Training
from smalti.text.equal_info.table import MAX_BITS
from smalti.text.equal_info.tokenizer import Counts, EqualInfoTokenizer, Fixed, Neural
from smalti.text.equal_info.windows import encode_windows, greedy_windows

TRAINING, HELD_OUT = 6_000_000, 8_000_000  # bytes at most, beside the last file
SLOW = 200_000  # bytes of the held-out text that the coders in Python integers are measured on
NEURAL = 2_000  # bytes that a network is measured on
PIECE = 8  # bytes, about as many as a window of 32 bits holds
WIDTHS = (14, 16, 18, 20, 24, 32, 48, 64)
VOCABULARY = 16_384
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's


@dataclass(frozen=True)
class Source:
    """Files to count, and text to measure on."""

    training: list[bytes]
    heldout: bytes


def python_source(seed: int = 0) -> Source:
    """Python files of this interpreter's library; the seed says which are counted."""
    files = sorted(Path(json.__file__).parents[1].rglob("*.py"))
    np.random.default_rng(seed).shuffle(files)
    texts = [file.read_bytes() for file in files]
    count = int(np.searchsorted(np.cumsum([len(text) for text in texts]), TRAINING)) + 1
    return Source(texts[:count], b"".join(texts[count:])[:HELD_OUT])


def rows(source: Source) -> Iterator[Row]:
    """Everything, in the order of the document's table."""
    text, before = source.heldout, 0.0
    for bits in WIDTHS:
        tokenizer = fitted(source, bits)
        packed = 16 / bits * len(text) / windows(tokenizer, text)
        if bits == 16:
            yield row("bytes per token, b = 16; the sheet asks for 3.9", packed, 3.9)
            yield from beside_tiktoken(tokenizer, source)
        if before:
            yield row(f"bytes per 16 bits, b = {bits}; more than with the b before", packed, before)
        before = packed
        if bits > MAX_BITS:
            yield from online(tokenizer, text[:SLOW])
    yield from without_exact_windows(source)
    yield from neural(source)


def fitted(source: Source, bits: int) -> EqualInfoTokenizer:
    """A table where there can be one, else counts of the same order."""
    model = Fixed() if bits <= MAX_BITS else Counts()
    token_bits = bits if bits < 32 else 16
    return EqualInfoTokenizer.Config(bits=bits, token_bits=token_bits, model=model).build().fit(source.training)


def windows(tokenizer: EqualInfoTokenizer, text: bytes) -> int:
    """How many windows a text has."""
    return tokenizer.count(text) * tokenizer.config.token_bits // tokenizer.config.bits


def beside_tiktoken(tokenizer: EqualInfoTokenizer, source: Source) -> Iterator[Row]:
    """The table's speed."""
    text = source.heldout
    peer, readable = bpe(source.training), text.decode("utf-8", "replace")
    ids, theirs = tokenizer.ids(text), peer.encode_ordinary(readable)
    assert tokenizer.data(ids) == text
    seconds = best(
        lambda: tokenizer.ids(text),
        lambda: peer.encode_ordinary(readable),
        lambda: tokenizer.data(ids),
        lambda: peer.decode_bytes(theirs),
    )
    encode, their_encode, decode, their_decode = (len(text) / each / 1e6 for each in seconds)
    yield row("encode, b = 16, MB/s; tiktoken", encode, their_encode)
    yield row("decode, b = 16, MB/s; tiktoken", decode, their_decode)


def online(tokenizer: EqualInfoTokenizer, text: bytes) -> Iterator[Row]:
    """The speed of windows that no table holds, beside the arithmetic coder without windows."""
    bits, model = tokenizer.config.bits, tokenizer.model
    assert isinstance(model, CountModel)
    ids = tokenizer.ids(text)
    coded, _ = encode_bits(text, model)
    seconds = best(
        lambda: tokenizer.ids(text),
        lambda: encode_bits(text, model),
        lambda: tokenizer.data(ids),
        lambda: decode_bits(coded, len(text), model),
        rounds=2,
    )
    encode, plain_encode, decode, plain_decode = (len(text) / each / 1e6 for each in seconds)
    yield row(f"encode, b = {bits}, MB/s; the coder without windows", encode, plain_encode)
    yield row(f"decode, b = {bits}, MB/s; the coder without windows", decode, plain_decode)


def without_exact_windows(source: Source) -> Iterator[Row]:
    """Exact windows beside greedy ones and beside none, all of one model.

    Greedy windows of 16 bits are too short for it: the rarest bytes have codes of 20 bits.
    """
    text, bits, longest = source.heldout[:SLOW], 24, Counts().longest
    model, endless = (
        CountModel.fit(source.training, Counts().order, least=Counts().least, longest=limit)
        for limit in (longest, None)
    )
    ours = 16 / bits * len(text) / len(encode_windows(text, model, bits).words)
    greedy = 16 / bits * len(text) / len(greedy_windows(text, model, bits).words)
    code, _ = encode_bits(text, endless)
    yield row(f"bytes per 16 bits, exact windows, b = {bits}; greedy windows", ours, greedy, goal=0.9)
    yield row(f"bytes per 16 bits, exact windows, b = {bits}; no windows", ours, 16 * len(text) / len(code), goal=0.0)


def neural(source: Source) -> Iterator[Row]:
    """A network that runs while encoding, beside its steps alone. Encoding takes each byte twice: it decodes all back.

    Its weights decide how much a window holds, not how long a byte takes, so a few steps of training are enough.
    """
    bits, network = 32, Neural(training=Training(steps=3))
    tokenizer = EqualInfoTokenizer.Config(bits=bits, token_bits=16, model=network).build().fit(source.training)
    text = source.heldout[:NEURAL]
    ids = tokenizer.ids(text)
    assert tokenizer.data(ids) == text
    encode, decode, steps = (
        len(text) / each
        for each in best(
            lambda: tokenizer.ids(text), lambda: tokenizer.data(ids), lambda: alone(tokenizer, text), rounds=2
        )
    )
    yield row(f"encode, b = {bits}, a network, bytes/s; its steps alone", encode, steps, goal=0.4)
    yield row(f"decode, b = {bits}, a network, bytes/s; its steps alone", decode, steps, goal=0.8)


def alone(tokenizer: EqualInfoTokenizer, text: bytes) -> None:
    """Asks the network for every byte, in pieces as long as windows are."""
    assert isinstance(tokenizer.model, NeuralModel)
    for start in range(0, len(text), PIECE):
        cursor = tokenizer.model.cursor()
        for byte in text[start : start + PIECE]:
            _ = cursor.weights
            cursor.push(byte)


# --- measuring -------------------------------------------------------------------------------------------------------


def row(case: str, ours: float, peer: float, goal: float = 1.0) -> Row:
    return Row(case, ours / peer, goal, peer, ours)


def bpe(training: list[bytes]) -> tiktoken.Encoding:
    """A byte-level vocabulary of the same text, as tiktoken runs it."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator((text.decode("utf-8", "replace") for text in training), trainer)
    ranks = {bytes(map(as_byte(), token)): rank for token, rank in trained.get_vocab().items()}
    return tiktoken.Encoding("trained", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def as_byte() -> Callable[[str], int]:
    """GPT-2's characters to bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown} | {chr(256 + index): byte for index, byte in enumerate(others)}
    return table.__getitem__


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one list of rows, for programs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = python_source()
    if options.json:
        print(json.dumps([asdict(each) for each in rows(source)], indent=1))
        return
    print(f"{sum(map(len, source.training)):,} bytes counted, {len(source.heldout):,} bytes measured")
    for each in rows(source):
        print(f"{each.case:75s} ours {each.ours:8.3f}   peer {each.peer:8.3f}   ratio {each.ratio:7.3f}", flush=True)


if __name__ == "__main__":
    main()
