"""python -m benchmarks.bpe [--data ../shared/data] [--binaries FOLDER] [--json]

Byte pair encoding beside Hugging Face's `tokenizers` and tiktoken, in one process, by the processor's time: the ratio
of speeds, ours over the peer's. Ids are checked to be equal before anything is timed; of several rounds, in which the
engines take turns, the best counts. `--binaries` names what `python -m benchmarks.binaries FOLDER` collected; without
it, this machine's own shared objects are used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("RAYON_NUM_THREADS", "1")  # one thread, like ours: threads that wait would be counted too
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from benchmarks.side_by_side import Row, best
from smalti.bpe import Encoder, Merges, Training, train
from smalti.bpe.alphabets import GPT2, LATIN1
from smalti.bpe.distinct import distinct
from smalti.bpe.patterns import GPT2_PATTERN, compiled

CHUNK = 8192
TRAINED, TEXT, ENCODED, LARGE = 8_000_000, 25_000_000, 16_000_000, 100_000_000  # bytes
PART = 5_000_000  # of the largest piece, for Hugging Face's: it takes 200 bytes of memory for every byte
VOCAB = 16384
TEXT_VOCAB = 32768
LONGEST = 16
SINGLE = [bytes([byte]) for byte in range(256)]
LIBRARY = Path(json.__file__).parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Prints a row per case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bpe", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--binaries", type=Path, help="what `python -m benchmarks.binaries` collected")
    parser.add_argument("--json", action="store_true", help="a list of rows")
    parser.add_argument("--large", action="store_true", help=argparse.SUPPRESS)  # the process that is measured alone
    options = parser.parse_args(arguments)
    binary = binaries(options.binaries)
    if options.large:
        print(json.dumps(large_training(binary)))
        return 0
    found = []
    for row in rows(binary, text(options.data), options):
        found.append(row)
        if not options.json:
            held = "yes" if row.ratio >= row.goal else "NO"
            print(
                f"{held:4}{row.ratio:8.2f}x of {row.goal:<6g}{row.peer:10.2f}{row.ours:10.2f}  {row.case}", flush=True
            )
    if options.json:
        print(json.dumps([asdict(row) for row in found], indent=1))
    return 0 if all(row.ratio >= row.goal for row in found) else 1


def rows(binary: bytes, prose: bytes, options: argparse.Namespace) -> Iterator[Row]:
    """Everything."""
    yield from training("binaries", binary[:TRAINED], None)
    yield from training("text", prose, GPT2_PATTERN)
    yield from large(options)
    yield from encoding_binaries(binary)
    yield from encoding_text(prose)


# --- data ------------------------------------------------------------------------------------------------------------


def binaries(folder: Path | None) -> bytes:
    """At least 100 MB of executables; smaller collections are repeated."""
    files = sorted(LIBRARY.rglob("*.so*")) + sorted(Path("/usr/lib").rglob("*.so*"))
    if folder is not None:
        files = sorted(path for path in (folder / "train").rglob("*") if path.is_file())
    order = np.random.default_rng(0).permutation(len(files))
    data = bytearray()
    for index in order:
        data += files[index].read_bytes() if files[index].is_file() else b""
        if len(data) >= LARGE + TRAINED:
            break
    while len(data) < LARGE:
        data += data
    return bytes(data)


def text(data: Path) -> bytes:
    """Prose of many languages, and Python source of this interpreter's library."""
    files = sorted(path for path in (data / "text").rglob("*") if path.suffix in (".txt", ".tsv", ".jsonl"))
    source = sorted(LIBRARY.rglob("*.py"))
    np.random.default_rng(0).shuffle(source)
    joined = b"".join(path.read_bytes() for path in [*files, *source])
    return joined[:TEXT].decode("utf-8", "ignore").encode()


# --- training --------------------------------------------------------------------------------------------------------


def training(name: str, data: bytes, pattern: str | None) -> Iterator[Row]:
    """The same merges by both trainers. Ties hang on ids, which here follow the order of characters, as theirs do."""
    array = np.frombuffer(data, np.uint8)
    characters = GPT2.characters if pattern is not None else LATIN1.characters
    base = np.argsort(np.argsort([ord(character) for character in characters]))

    def ours() -> Merges:
        pieces, weights = segments(array, pattern)
        options = Training(vocab=VOCAB, min_count=2, longest=LONGEST, duplicates="reused")
        return train(pieces, SINGLE, options, base=base, weights=weights).merges

    ours()  # compiles
    began = time.process_time()
    merges = ours()
    mine = time.process_time() - began
    began = time.process_time()
    theirs = hugging_face(data, pattern, characters)
    peer = time.process_time() - began
    assert merges.pairs.tolist() == theirs, "the two trainers disagree"
    yield Row(f"training, {len(data) / 1e6:.0f} MB of {name}, 16K; CPU s, HF", peer / mine, 8, peer, mine)


def segments(array: Any, pattern: str | None) -> tuple[Any, Any]:
    """Chunks, or the different matches of a pattern and their weights."""
    if pattern is None:
        return [array[start : start + CHUNK] for start in range(0, len(array), CHUNK)], None
    return distinct(array, compiled(pattern).pieces(array)[0])


def hugging_face(data: bytes, pattern: str | None, characters: str) -> list[list[int]]:
    """Merges of Hugging Face's trainer, as its ids."""
    tokenizer = Tokenizer(models.BPE())
    samples = [data[start : start + CHUNK].decode("latin-1") for start in range(0, len(data), CHUNK)]
    if pattern is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        samples = [data.decode()]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, min_frequency=2, max_token_length=LONGEST + 1, initial_alphabet=list(characters),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(samples, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return [[model["vocab"][left], model["vocab"][right]] for left, right in model["merges"]]


def large(options: argparse.Namespace) -> Iterator[Row]:
    """100 MB in a process of its own, whose memory is measured."""
    command = [sys.executable, "-m", "benchmarks.bpe", "--large"]
    command += ["--binaries", str(options.binaries)] if options.binaries else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = json.loads(done.stdout)
    yield Row("training, 100 MB of binaries, 16K; CPU s, the limit", 60 / seconds, 1, 60, seconds, peak)
    yield Row("its memory; GB, the limit", 3e9 / peak, 1, 3, peak / 1e9, peak)


def large_training(binary: bytes) -> tuple[float, float]:
    """Seconds of the processor and the most memory."""
    array = np.frombuffer(binary[:LARGE], np.uint8)
    options = Training(vocab=VOCAB, min_count=2, longest=LONGEST)
    train(segments(array[:100_000], None)[0], SINGLE, options)  # compiles
    began = time.process_time()
    train(segments(array, None)[0], SINGLE, options)
    seconds = time.process_time() - began
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent had before it was forked
    return seconds, 1024.0 * int(re.findall(r"VmHWM:\s*(\d+)", status)[0])


# --- encoding --------------------------------------------------------------------------------------------------------


def encoding_binaries(binary: bytes) -> Iterator[Row]:
    """8 KB pieces, and one piece of 100 MB."""
    array = np.frombuffer(binary, np.uint8)
    options = Training(vocab=VOCAB, min_count=2, longest=LONGEST)
    merges = train(segments(array[LARGE - TRAINED : LARGE], None)[0], SINGLE, options).merges
    encoder, core, other = Encoder(merges), tiktoken_of(merges)._core_bpe, hugging_face_of(merges)
    pieces = [binary[start : start + CHUNK] for start in range(0, ENCODED, CHUNK)]
    arrays = [np.frombuffer(piece, np.uint8) for piece in pieces]
    letters = [piece.decode("latin-1") for piece in pieces]
    for piece, array_, letter in zip(pieces[:50], arrays, letters, strict=False):
        ids = encoder.encode(array_).tolist()
        assert ids == core.encode_single_piece(piece) == other.encode(letter).ids, "the engines disagree"
    ours, tik, hf = best(
        lambda: [encoder.encode(each) for each in arrays],
        lambda: [core.encode_single_piece(each) for each in pieces],
        lambda: [other.encode(each) for each in letters],
    )
    size = len(pieces) * CHUNK / 1e6
    yield Row("encoding binaries, 8 KB pieces; MB/s, tiktoken", tik / ours, 2, size / tik, size / ours)
    yield Row("encoding binaries, 8 KB pieces; MB/s, HF", hf / ours, 4, size / hf, size / ours)
    whole, one, letter = array[:LARGE], binary[:LARGE], binary[:PART].decode("latin-1")
    assert encoder.encode(whole[:PART]).tolist() == other.encode(letter).ids, "the engines disagree"
    ours, part, tik, hf = best(
        lambda: encoder.encode(whole),
        lambda: encoder.encode(whole[:PART]),
        lambda: core.encode_single_piece(one),
        lambda: other.encode(letter),
        rounds=1,
    )
    size, less = LARGE / 1e6, PART / 1e6
    yield Row("encoding binaries, one piece of 100 MB; MB/s, tiktoken", tik / ours, 2, size / tik, size / ours)
    yield Row("encoding binaries, one piece of 5 MB; MB/s, HF", hf / part, 4, less / hf, less / part)


def encoding_text(prose: bytes) -> Iterator[Row]:
    """Documents of 20 kB with GPT-2's pattern."""
    pieces, weights = segments(np.frombuffer(prose, np.uint8), GPT2_PATTERN)
    options = Training(vocab=TEXT_VOCAB, min_count=2, longest=64)
    merges = train(pieces, SINGLE, options, weights=weights).merges
    encoder, pattern = Encoder(merges, whole_tokens(merges)), compiled(GPT2_PATTERN)
    peer, other = tiktoken_of(merges), hugging_face_of(merges, byte_level=True)
    lines = prose.decode()
    documents = [lines[start : start + 20_000] for start in range(0, len(lines), 20_000)]

    def ours(document: str) -> Any:
        data = np.frombuffer(document.encode(), np.uint8)
        return encoder.encode_pieces(data, pattern.pieces(data)[0])

    for document in documents[:100]:
        ids = ours(document).tolist()
        assert ids == peer.encode_ordinary(document) == other.encode(document).ids, "the engines disagree"
    mine, tik, hf = best(
        lambda: [ours(each) for each in documents],
        lambda: [peer.encode_ordinary(each) for each in documents],
        lambda: [other.encode(each) for each in documents],
    )
    size = len(prose) / 1e6
    yield Row("encoding text, GPT-2's pattern, 32K; MB/s, tiktoken", tik / mine, 1, size / tik, size / mine)
    yield Row("encoding text, GPT-2's pattern, 32K; MB/s, HF", hf / mine, 4, size / hf, size / mine)


def whole_tokens(merges: Merges) -> dict[int, Sequence[int]]:
    """Tokens that a piece is at once if it is spelled so; the others would encode otherwise."""
    encoder = Encoder(merges)
    strings = merges.strings
    return {
        token: strings[token].tolist()
        for token in range(merges.size)
        if encoder.encode(strings[token].astype(np.uint8)).tolist() == [token]
    }


def tiktoken_of(merges: Merges) -> tiktoken.Encoding:
    """The same vocabulary for tiktoken."""
    strings = merges.strings
    ranks = {bytes(strings[token].tolist()): token for token in range(merges.size)}
    return tiktoken.Encoding("same", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})


def hugging_face_of(merges: Merges, *, byte_level: bool = False) -> Tokenizer:
    """The same vocabulary for `tokenizers`."""
    characters = GPT2.characters if byte_level else "".join(map(chr, range(256)))
    strings = merges.strings
    spelled = ["".join(characters[byte] for byte in strings[token]) for token in range(merges.size)]
    pairs = [(spelled[left], spelled[right]) for left, right in merges.pairs.tolist()]
    tokenizer = Tokenizer(models.BPE({text: token for token, text in enumerate(spelled)}, pairs))
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


if __name__ == "__main__":
    sys.exit(main())
