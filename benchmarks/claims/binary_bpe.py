"""Claims of binary-bpe: how much longer its tokens are than bytes, than words of a text pattern, than the peer's.

Source: "Binary BPE: A Family of Cross-Platform Tokenizers for Binary Analysis" (2025).

The data are shared objects of this Python's packages, ELF files that were stripped for the most part, and the small
executables of other platforms among the data sets. The seed says which packages are held out.
"""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, trainers

from benchmarks.claims import Claim
from smalti.bpe import Encoder, Merges, Training, train
from smalti.bpe.alphabets import LATIN1
from smalti.bpe.patterns import GPT2_PATTERN, compiled
from smalti.errors import InputError
from smalti.text.binary_bpe import BinaryBPE

TRAINED, HELD_OUT = 12_000_000, 10_000_000  # bytes of ELF files
LARGEST = 1_500_000  # bytes of one file, so that none outweighs the others
SIZES = (4096, 8192, 16384, 32768)
CHUNK = 8192
MIN_COUNT, LONGEST = 2, 16
SINGLE = [bytes([byte]) for byte in range(256)]


def claims(data: Path, seed: int) -> Iterator[Claim]:
    """Runs the comparisons of one seed."""
    training, heldout = files(data, seed)
    began = time.perf_counter()
    config = BinaryBPE.Config(training=Training(vocab=max(SIZES), min_count=MIN_COUNT, longest=LONGEST))
    largest = config.build()
    assert isinstance(largest, BinaryBPE)
    largest.fit(training)
    reached = [bytes_per_token(largest.smaller(size), heldout) for size in SIZES]
    spent = time.perf_counter() - began
    at = dict(zip(SIZES, reached, strict=True))
    metric = f"bytes per token, {sum(map(len, heldout)) / 1e6:.1f} MB never trained on"
    yield Claim(
        "binary-bpe", "16K: at least twice the content of bytes in the same context", metric, "higher",
        1.0, at[16384], at[16384] >= 2.0, spent,
    )  # fmt: skip
    yield Claim(
        "binary-bpe", "4K reaches 1.8", metric, "higher", 1.8, at[4096], at[4096] >= 1.8, spent,
    )  # fmt: skip
    yield Claim(
        "binary-bpe", "32K reaches 2.2, and every larger member of the family is better", metric, "higher",
        2.2, at[32768], at[32768] >= 2.2 and all(np.diff(reached) > 0), spent,
    )  # fmt: skip
    began = time.perf_counter()
    pattern = with_pattern(training, heldout)
    seconds = spent + time.perf_counter() - began
    yield Claim(
        "binary-bpe", "16K: longer tokens than with GPT-2's pattern, which cuts code as if it were text", metric,
        "higher", pattern, at[16384], at[16384] > pattern, seconds,
    )  # fmt: skip
    began = time.perf_counter()
    peer = hugging_face(training, heldout)
    seconds = spent + time.perf_counter() - began
    yield Claim(
        "binary-bpe", "16K: at least 98 % of what Hugging Face's trainer reaches on the same chunks", metric,
        "higher", peer, at[16384], at[16384] >= 0.98 * peer, seconds,
    )  # fmt: skip


def files(data: Path, seed: int) -> tuple[list[bytes], list[bytes]]:
    """Executables to learn from, and ELF files of other packages.

    Raises:
        InputError: if this Python has too few packages with shared objects.
    """
    packages = Path(sysconfig.get_paths()["platlib"])
    by_package: dict[str, list[Path]] = {}
    for path in sorted(packages.rglob("*.so*")):
        if path.is_file() and not path.is_symlink() and path.read_bytes()[:4] == b"\x7fELF":
            by_package.setdefault(path.relative_to(packages).parts[0].partition(".")[0], []).append(path)
    generator = np.random.default_rng(seed)
    names = generator.permutation(sorted(by_package))
    training = [path.read_bytes() for path in sorted((data / "executables" / "bin").iterdir())]
    heldout: list[bytes] = []
    taken = {"train": 0, "heldout": 0}
    for place, name in enumerate(names):
        part, limit = ("heldout", HELD_OUT) if place % 2 else ("train", TRAINED)
        for path in by_package[str(name)]:
            content = path.read_bytes()[:LARGEST]
            if taken[part] + len(content) <= limit:
                (heldout if part == "heldout" else training).append(content)
                taken[part] += len(content)
    if min(taken.values()) < HELD_OUT // 4:
        raise InputError(f"this Python's packages hold {taken} bytes of shared objects: too few to train and to judge")
    return training, heldout


def bytes_per_token(tokenizer: BinaryBPE, heldout: Sequence[bytes]) -> float:
    return sum(map(len, heldout)) / sum(tokenizer.count(content) for content in heldout)


def chunks(contents: Sequence[bytes]) -> list[Any]:
    arrays = [np.frombuffer(content, np.uint8) for content in contents]
    return [array[start : start + CHUNK] for array in arrays for start in range(0, len(array), CHUNK)]


def with_pattern(training: Sequence[bytes], heldout: Sequence[bytes]) -> float:
    """Bytes per token if GPT-2's pattern cuts bytes, as characters of latin-1, in training and in encoding."""
    pattern = compiled(GPT2_PATTERN)

    def pieces(content: bytes) -> tuple[Any, Any]:
        """The characters of each byte as UTF-8, so that the pattern sees letters, and the bytes' own ends."""
        text = np.frombuffer(content.decode("latin-1").encode(), np.uint8)
        ends = pattern.pieces(text)[0]
        return np.frombuffer(content, np.uint8), np.cumsum(text & 0xC0 != 0x80)[ends - 1]

    segments = []
    for content in training:
        array, ends = pieces(content)
        segments += np.split(array, ends[:-1])
    options = Training(vocab=16384, min_count=MIN_COUNT, longest=LONGEST)
    encoder = Encoder(train(segments, SINGLE, options).merges)
    tokens = sum(len(encoder.encode_pieces(*pieces(content))) for content in heldout)
    return sum(map(len, heldout)) / tokens


def hugging_face(training: Sequence[bytes], heldout: Sequence[bytes]) -> float:
    """Bytes per token of the vocabulary that Hugging Face's trainer learns, encoded by our engine."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=16384, min_frequency=MIN_COUNT, max_token_length=LONGEST + 1,
        initial_alphabet=list(LATIN1.characters), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator((chunk.tobytes().decode("latin-1") for chunk in chunks(training)), trainer)
    vocab = tokenizer.get_vocab()
    rules = BinaryBPE.from_json(tokenizer.to_str().encode()).merges
    assert isinstance(rules, Merges) and rules.size == len(vocab)
    encoder = Encoder(rules)
    return sum(map(len, heldout)) / sum(encoder.count(np.frombuffer(content, np.uint8)) for content in heldout)
