"""The syntax of patterns that cut text into pieces, read into a tree.

It is the part of regular expressions that tokenizers use: sets of characters with quantifiers, groups without loops,
one character of look-ahead. Whatever means different things to different engines is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from smalti.bpe.characters import CODE_POINTS, Flags, category, white_space
from smalti.errors import ConfigError

Dialect = Literal["oniguruma", "rust"]
MANY = 2**31 - 1
FOLDED = {"s": "ſ", "k": "K"}  # characters beyond ASCII that match a letter whatever its case
CONTROLS = {"r": "\r", "n": "\n", "t": "\t", "f": "\f", "v": "\v"}


class UnsupportedPattern(ConfigError):
    """A pattern that is legal elsewhere and not read here."""


@dataclass(frozen=True)
class Set:
    """One character of a set, `least` to `most` times, as often as possible.

    Args:
        flags: (CODE_POINTS,): the set.
        possessive: whether it never gives back what it took.
    """

    flags: Flags
    least: int = 1
    most: int = 1
    possessive: bool = False


@dataclass(frozen=True)
class Group:
    """One of several sequences, the first that leads to a match; `optional`: or nothing, as the last choice."""

    choices: tuple[tuple[Node, ...], ...]
    optional: bool = False


@dataclass(frozen=True)
class Ahead:
    """The next character is in a set; `negated`: there is none, or it is not in the set."""

    flags: Flags
    negated: bool


@dataclass(frozen=True)
class End:
    """The text ends here."""


Node = Set | Group | Ahead | End


def parse(pattern: str, dialect: Dialect) -> Group:
    """Reads a pattern.

    Args:
        pattern: the regular expression.
        dialect: "oniguruma", which tokenizer.json's patterns are written for, or "rust", which tiktoken's are.

    Raises:
        UnsupportedPattern: if it has anything that is not supported, naming it.
    """
    parser = _Parser(pattern, dialect)
    group = parser.group(folded=False)
    if parser.place < len(pattern):
        raise parser.unsupported()
    return group


def in_oniguruma(pattern: str) -> str:
    """A pattern of Rust's dialect in Oniguruma's.

    Raises:
        UnsupportedPattern: if it has anything that is not supported, or takes characters for good where that matters.
    """
    waiting = [parse(pattern, "rust")]
    while waiting:
        for choice in waiting.pop().choices:
            waiting += [node for node in choice if isinstance(node, Group)]
            for place, node in enumerate(choice):
                if isinstance(node, Set) and node.possessive and not _free(node, choice[place + 1 :]):
                    raise UnsupportedPattern(f"a possessive quantifier of the pattern {pattern!r}")
    plain = re.sub(r"(?<!\\)([+*?]|\{\d+(?:,\d*)?\})\+", r"\1", pattern)
    return plain.replace("$", r"\z")


def _free(node: Set, following: Sequence[Node]) -> bool:
    """Whether giving back a character of a set can't help what follows it to match."""
    for other in following:
        if isinstance(other, End):
            return True
        if not isinstance(other, Set) or (node.flags & other.flags).any():
            return False
        if other.least > 0:
            return True
    return True


class _Parser:
    def __init__(self, pattern: str, dialect: Dialect) -> None:
        self.pattern, self.dialect, self.place = pattern, dialect, 0

    def unsupported(self, what: str = "") -> UnsupportedPattern:
        return UnsupportedPattern(f"{what or self.pattern[self.place :][:12]!r} of the pattern {self.pattern!r}")

    def ahead(self, text: str) -> bool:
        return self.pattern.startswith(text, self.place)

    def take(self, text: str) -> bool:
        found = self.ahead(text)
        self.place += len(text) * found
        return found

    def next(self) -> str:
        if self.place >= len(self.pattern):
            raise self.unsupported("the end")
        self.place += 1
        return self.pattern[self.place - 1]

    def group(self, *, folded: bool) -> Group:
        choices = [self.sequence(folded=folded)]
        while self.take("|"):
            choices.append(self.sequence(folded=folded))
        return Group(tuple(choices))

    def sequence(self, *, folded: bool) -> tuple[Node, ...]:
        nodes: list[Node] = []
        while self.place < len(self.pattern) and not self.ahead("|") and not self.ahead(")"):
            nodes.append(self.quantified(self.atom(folded=folded)))
        return tuple(nodes)

    def atom(self, *, folded: bool) -> Node:
        if self.ahead("(?!") or self.ahead("(?="):
            negated = self.pattern[self.place + 2] == "!"
            self.place += 3
            inside = self.group(folded=folded)
            self.close()
            if [len(choice) for choice in inside.choices] != [1] or not isinstance(inside.choices[0][0], Set):
                raise self.unsupported("a look-ahead of more than one character")
            node = inside.choices[0][0]
            if (node.least, node.most) != (1, 1):
                raise self.unsupported("a look-ahead of more than one character")
            return Ahead(node.flags, negated)
        if self.take("(?i:"):
            inside = self.group(folded=True)
            self.close()
            return inside
        if self.take("(?:") or (self.ahead("(") and not self.ahead("(?") and self.take("(")):
            inside = self.group(folded=folded)
            self.close()
            return inside
        if self.take(r"\z"):
            return End()
        if self.take("$"):
            if self.dialect != "rust":  # elsewhere it is the end of a line, too
                raise self.unsupported("'$'")
            return End()
        return Set(self.set(folded=folded))

    def close(self) -> None:
        if not self.take(")"):
            raise self.unsupported("a group")

    def set(self, *, folded: bool) -> Flags:
        if self.take("["):
            return self.bracket(folded=folded)
        if self.ahead("\\"):
            flags, _ = self.escape(folded=folded)
            return flags
        character = self.next()
        if character in "?*+{}()^]." or ord(character) >= CODE_POINTS:
            self.place -= 1
            raise self.unsupported()
        return _one(character, folded, self.unsupported)

    def escape(self, *, folded: bool) -> tuple[Flags, str | None]:
        """A set, and its character if it has only one."""
        self.next()
        letter = self.next()
        if letter in "sS":
            return white_space() ^ (letter == "S"), None
        if letter in "dD":
            return category("Nd") ^ (letter == "D"), None
        if letter in "pP":
            return self.property() ^ (letter == "P"), None
        if letter in CONTROLS:
            return _one(CONTROLS[letter], False, self.unsupported), CONTROLS[letter]
        if letter == "u" or (letter == "x" and self.ahead("{")):
            character = self.code_point(letter)
            return _one(character, folded, self.unsupported), character
        if letter.isalnum():
            raise self.unsupported(f"\\{letter}")
        return _one(letter, folded, self.unsupported), letter

    def property(self) -> Flags:
        name = self.next()
        if name == "{":
            end = self.pattern.find("}", self.place)
            name, self.place = self.pattern[self.place : end], end + 1
        try:
            return category(name)
        except KeyError:
            raise self.unsupported(f"\\p{{{name}}}") from None

    def code_point(self, letter: str) -> str:
        if letter == "x":
            end = self.pattern.find("}", self.place)
            digits, self.place = self.pattern[self.place + 1 : end], end + 1
        else:
            digits, self.place = self.pattern[self.place : self.place + 4], self.place + 4
        try:
            return chr(int(digits, 16))
        except ValueError:
            raise self.unsupported(f"\\{letter}{digits}") from None

    def bracket(self, *, folded: bool) -> Flags:
        negated = self.take("^")
        flags = np.zeros(CODE_POINTS, np.bool_)
        first = True
        while first or not self.ahead("]"):
            if (
                self.ahead("[")
                or self.ahead("&&")
                or self.ahead("--")
                or self.ahead("~~")
                or (first and self.ahead("]"))
            ):
                raise self.unsupported()
            first = False
            some, low = self.member(folded=folded)
            if low is not None and self.ahead("-") and not self.ahead("-]"):
                self.next()
                _, high = self.member(folded=folded)
                if high is None or high < low or folded:
                    raise self.unsupported(f"the range from {low!r}")
                some = np.zeros(CODE_POINTS, np.bool_)
                some[ord(low) : ord(high) + 1] = True
            flags |= some
        self.next()
        return flags ^ negated

    def member(self, *, folded: bool) -> tuple[Flags, str | None]:
        if self.ahead("\\"):
            return self.escape(folded=folded)
        character = self.next()
        return _one(character, folded, self.unsupported), character

    def quantified(self, node: Node) -> Node:
        start = self.place
        bounds = self.bounds()
        if bounds is None:
            return node
        braces = self.pattern[self.place - 1] == "}"
        if self.ahead("?") or (self.ahead("+") and braces and self.dialect == "oniguruma"):
            raise self.unsupported(self.pattern[start : self.place + 1])
        possessive = self.take("+")
        if self.ahead("*") or self.ahead("+") or self.ahead("{"):
            raise self.unsupported("a quantifier of a quantifier")
        if isinstance(node, Set):
            return Set(node.flags, *bounds, possessive)
        if isinstance(node, Group) and bounds == (0, 1) and not possessive:
            return Group(node.choices, optional=True)
        raise self.unsupported("a quantifier of a group")

    def bounds(self) -> tuple[int, int] | None:
        for sign, bounds in (("?", (0, 1)), ("*", (0, MANY)), ("+", (1, MANY))):
            if self.take(sign):
                return bounds
        if not self.take("{"):
            return None
        end = self.pattern.find("}", self.place)
        inside, self.place = self.pattern[self.place : end], end + 1
        least, comma, most = inside.partition(",")
        if not least.isdecimal() or not (most.isdecimal() or not most):
            raise self.unsupported("{" + inside + "}")
        return int(least), int(most) if most else MANY if comma else int(least)


def _one(character: str, folded: bool, unsupported: Callable[..., UnsupportedPattern]) -> Flags:
    """The set of one character, and of its other cases."""
    flags = np.zeros(CODE_POINTS, np.bool_)
    every: Sequence[Any] = [character]
    if folded:
        if not character.isascii():
            raise unsupported(f"{character!r} whatever its case")
        every = [character.lower(), character.upper(), *FOLDED.get(character.lower(), "")]
    flags[[ord(each) for each in every]] = True
    return flags
