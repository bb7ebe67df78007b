"""The matcher of patterns against the `regex` module, and the table of characters against `tokenizers`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from smalti.bpe.characters import CATEGORIES, categories, category, white_space
from smalti.bpe.patterns import GPT2_PATTERN, Pattern
from smalti.bpe.syntax import UnsupportedPattern, in_oniguruma
from tests.bpe.test_text import DEEPSEEK, LLAMA3, O200K

regex = pytest.importorskip("regex")

CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
PATTERNS = {
    "gpt2": GPT2_PATTERN,
    "llama3": LLAMA3,
    "o200k": O200K,
    "cl100k": CL100K,
    **{f"deepseek {place}": pattern for place, pattern in enumerate(DEEPSEEK)},
    "gaps": r"[a-z]+x|\p{Lu}\d",
    "ahead": r"ab(?!c)|a|b|c",
    "groups": r"(a|ab)(c|bcd)?|x(?=y)y?|\S",
    "bounds": r"a{2,3}b|a{2}|[^a]{3,}c",
    "codes": r"[\u4e00-\u9fa5]+|\t{2}",
}
POOL = "abcxyABZ'sStTlLvedm  \t\n\r\u00a0\u2003éÉßſ\u212aǅʰ中한ا\u0301\u0308١٣½Ⅷ_-!./😀\u200d\ufeff\x00\x1c\x85"


def known_characters() -> str:
    """The characters that this version of `regex` has in the same category; of later Unicode versions it has more."""
    table, found = categories(), []
    every = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    for place, name in enumerate(CATEGORIES):
        if name not in ("Cs", "Co", "Cn"):
            found += [one for one in regex.findall(rf"\p{{{name}}}", every) if table[ord(one)] == place]
    return "".join(found)


KNOWN = known_characters()


def samples(seed: int) -> list[bytes]:
    """Awkward strings, strings of all scripts, and bytes that are no UTF-8 (of ASCII and such bytes alone)."""
    rng = random.Random(seed)
    made = []
    for number in range(400):
        size = rng.randrange(40)
        if number % 4 == 0:  # none of these bytes together are a character
            made.append(bytes(rng.choice(b"ab \n'\t1!\xe2\x80\xf0\xc1\xff\xed\xa0") for _ in range(size)))
        else:
            pool = KNOWN if number % 4 == 1 else POOL
            made.append("".join(rng.choice(pool) for _ in range(size)).encode())
    return made


def expected(pattern: str, data: bytes) -> list[tuple[bytes, bool]]:
    text, out, last = data.decode("utf-8", "surrogateescape"), [], 0
    for match in regex.finditer(pattern, text):
        out += [(text[last : match.start()], False)] if match.start() > last else []
        out.append((match.group(), True))
        last = match.end()
    out += [(text[last:], False)] if last < len(text) else []
    return [(piece.encode("utf-8", "surrogateescape"), matched) for piece, matched in out]


def given_by(pattern: Pattern, data: bytes, ends: Any = None) -> list[tuple[bytes, bool]]:
    found, matched, _ = pattern.pieces(np.frombuffer(data, np.uint8), ends)
    starts = [0, *found.tolist()]
    return [(data[start:stop], bool(flag)) for start, stop, flag in zip(starts, found.tolist(), matched, strict=False)]


@pytest.mark.parametrize("name", PATTERNS)
def test_pieces_are_those_of_regex(name: str) -> None:
    ours = Pattern(PATTERNS[name], "rust" if name == "cl100k" else "oniguruma")
    for data in samples(len(name)):
        assert given_by(ours, data) == expected(PATTERNS[name], data), data


def test_each_piece_is_cut_as_if_it_stood_alone() -> None:
    pattern, data = Pattern(GPT2_PATTERN), b"one  two   three"
    cut = given_by(pattern, data, np.array([4, 5, 10, 16]))
    alone = [piece for part in (data[:4], data[4:5], data[5:10], data[10:]) for piece in given_by(pattern, part)]
    assert cut == alone


@pytest.mark.parametrize("name", PATTERNS)
def test_sure_pieces_stay_however_the_text_goes_on(name: str) -> None:
    ours = Pattern(PATTERNS[name], "rust" if name == "cl100k" else "oniguruma")
    rng = random.Random(5)
    for data in samples(7)[:80]:
        data = data.decode("utf-8", "ignore").encode()
        ends, _, sure = ours.pieces(np.frombuffer(data, np.uint8))
        for _ in range(3):
            longer, _, _ = ours.pieces(np.frombuffer(data + rng.choice(samples(8)), np.uint8))
            assert longer[:sure].tolist() == ends[:sure].tolist()


def test_categories_are_those_of_tokenizers() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    every = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    parts = [every[start : start + (1 << 16)] for start in range(0, len(every), 1 << 16)]
    kinds = {r"\s": white_space(), **{rf"\p{{{name}}}": category(name) for name in ("L", "N", "M", "P", "Lu", "Lt")}}
    for name, flags in kinds.items():
        keep = tokenizers.pre_tokenizers.Split(tokenizers.Regex(name), "removed", invert=True)
        found = {ord(one) for part in parts for piece, _ in keep.pre_tokenize_str(part) for one in piece}
        assert found == set(np.flatnonzero(flags).tolist()), name


@pytest.mark.parametrize(
    "pattern",
    [
        r"a+?",
        r"(ab)+",
        r"\bword",
        r"\w+",
        r"a*",
        r"(?<=a)b",
        r"[a&&b]",
        r"[[:alpha:]]",
        r"a{1,2}+",
        "a$",
        r"\p{Han}",
        "(",
    ],
)
def test_what_is_not_read_exactly_is_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedPattern):
        Pattern(pattern)


def test_rusts_patterns_are_written_for_oniguruma() -> None:
    assert in_oniguruma(CL100K).startswith(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|")
    assert r"|\s+\z|" in in_oniguruma(CL100K)
    with pytest.raises(UnsupportedPattern, match="possessive"):
        in_oniguruma(r"\s++\s")


@pytest.mark.parametrize("text", [b" ", b"a", b"1", b"!", b"\n", b"\xff", b"ab ", " é".encode()])
def test_runs_take_linear_time(text: bytes) -> None:
    data = np.frombuffer(text * (1_000_000 // len(text)), np.uint8)
    for pattern in (GPT2_PATTERN, LLAMA3, O200K):
        assert Pattern(pattern).pieces(data)[0][-1] == len(data)
