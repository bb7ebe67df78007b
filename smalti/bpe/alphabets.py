"""Byte alphabets: how files that can hold only text write tokens that are bytes.

    bytes ──Alphabet──► a character per byte ──► tokenizer.json      GPT-2: every byte gets a character that can be seen
                                                                     latin-1: byte b is U+00XX
                                                                     escaped latin-1: but some bytes are U+E000 and on

A file does not say which it uses; `alphabet_of` finds out. Vocabularies whose tokens are text have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from smalti.errors import CheckpointError, InputError

PRIVATE = 0xE000  # where escaped bytes begin
BYTES = 256


@dataclass(frozen=True)
class Alphabet:
    """One character for each byte.

    Args:
        name: "gpt2", "latin-1" or "escaped-latin-1".
        characters: 256 of them, all different; the one at place b is byte b.
    """

    name: Literal["gpt2", "latin-1", "escaped-latin-1"]
    characters: str

    def __post_init__(self) -> None:
        if len(self.characters) != BYTES or len(set(self.characters)) != BYTES:
            raise InputError(f"an alphabet has {BYTES} different characters, got {len(set(self.characters))}")

    def text(self, data: bytes) -> str:
        """Bytes as characters."""
        return data.decode("latin-1").translate(self._from_latin)

    def data(self, text: str) -> bytes:
        """Characters as bytes.

        Raises:
            InputError: if one of them is no byte.
        """
        try:
            return bytes(map(self._byte.__getitem__, text))
        except KeyError as error:
            raise InputError(f"{error.args[0]!r} stands for no byte in the alphabet {self.name}") from None

    def holds(self, text: str) -> bool:
        """Whether every character is a byte."""
        return self._byte.keys() >= set(text)

    @cached_property
    def _byte(self) -> Mapping[str, int]:
        return {character: byte for byte, character in enumerate(self.characters)}

    @cached_property
    def _from_latin(self) -> Mapping[int, str]:
        return dict(enumerate(self.characters))


def _gpt2() -> str:
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return "".join(chr(byte if byte in seen else next(others)) for byte in range(BYTES))


GPT2 = Alphabet("gpt2", _gpt2())
LATIN1 = Alphabet("latin-1", "".join(map(chr, range(BYTES))))


def escaped_latin1(specials: Iterable[str]) -> Alphabet:
    """Latin-1, in which bytes that would look like a special token are written as private-use characters.

    Args:
        specials: special tokens in the order of their ids; those of one character up to U+00FF are escaped.
    """
    escaped = [special for special in specials if len(special) == 1 and ord(special) < BYTES]
    characters = list(LATIN1.characters)
    for place, special in enumerate(escaped):
        characters[ord(special)] = chr(PRIVATE + place)
    return Alphabet("escaped-latin-1", "".join(characters)) if escaped else LATIN1


def alphabet_of(
    vocab: Mapping[str, int],
    *,
    byte_level: bool,
    specials: Iterable[str] = (),
    glyphs: Iterable[str] = (),
    kind: Literal["auto", "plain", "escaped"] = "auto",
) -> Alphabet | None:
    """The alphabet that a vocabulary is written in, or None if its tokens are text.

    Args:
        vocab: token -> id.
        byte_level: whether the file's decoder or pre-tokenizer is ByteLevel, which is GPT-2's alphabet.
        specials: special tokens of the file, in the order of their ids.
        glyphs: tokens of one character that are no bytes, though they are no special tokens either.
        kind: "plain" and "escaped" choose between the two latin-1 alphabets; "auto" looks for private-use characters.

    Raises:
        CheckpointError: if bytes are escaped and nothing says which.
    """
    if byte_level:
        return GPT2
    private = sum(chr(PRIVATE + place) in vocab for place in range(BYTES))
    if kind == "plain" or (kind == "auto" and not private):
        return LATIN1 if all(character in vocab for character in LATIN1.characters) else None
    specials = list(specials)
    known = [sorted({each for each in some if each in vocab}, key=vocab.__getitem__) for some in (specials, glyphs)]
    for candidates in (*known, specials):
        alphabet = escaped_latin1(candidates)
        escapes = sum(ord(character) >= PRIVATE for character in alphabet.characters)
        if escapes == private and all(character in vocab for character in alphabet.characters):
            return alphabet
    if kind == "auto" and any(character not in vocab for character in LATIN1.characters if ord(character) < 128):
        return None  # a vocabulary of text that happens to know private-use characters
    raise CheckpointError(f"{private} private-use characters stand for bytes, and no special tokens say for which")
