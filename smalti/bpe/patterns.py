"""Patterns that cut text into pieces: a small matcher of regular expressions over UTF-8, in numba.

    pattern ──parse──► tree ──► a program over classes of characters
    text ──program──► pieces: the matches, and what stands between them

Characters that no set of the pattern tells apart are one class, so that a step is one look-up and one bit. Sets take as
many characters as they can and give them back one by one; loops over groups do not exist, so a handful of remembered
places is all that going back needs. Ordinary patterns take linear time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from smalti.bpe.characters import CODE_POINTS, Bytes, Flags, character
from smalti.bpe.compiled import kernel
from smalti.bpe.syntax import Ahead, Dialect, End, Group, Node, Set, UnsupportedPattern, parse

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TAKE, FORK, JUMP, AHEAD, NOT_AHEAD, END, MATCH = range(7)
OPERATION, ARGUMENT, LEAST, MOST, POSSESSIVE = range(5)  # columns of a program; a set is the number of its bit
MAX_SETS = 63
INSIDE = 255  # not the class of a character, but of the bytes after its first
BLOCK_BITS = 7
BLOCK = 1 << BLOCK_BITS


class Pattern:
    """A pattern, ready to cut text.

    Args:
        pattern: the regular expression.
        dialect: whose syntax it is in.

    Raises:
        UnsupportedPattern: if it needs more than this matcher has.
    """

    def __init__(self, pattern: str, dialect: Dialect = "oniguruma") -> None:
        self.pattern, self.dialect = pattern, dialect
        program = _Program()
        tree = parse(pattern, dialect)
        starts = [program.add(choice) for choice in tree.choices]
        classes, bits = program.classes()
        first = [_first(choice, program.number) for choice in tree.choices]
        if any(nullable for _, nullable in first):
            raise UnsupportedPattern(f"{pattern!r} can match nothing at all")
        ways = [[start for start, (sets, _) in zip(starts, first, strict=True) if sets & int(one)] for one in bits]
        self._classes = classes[:128].copy(), *_blocks(classes)
        self._program = (
            np.array(program.code, np.int32).reshape(-1, 5),
            np.cumsum([0, *map(len, ways)]).astype(np.int32),
            np.array([start for way in ways for start in way], np.int32),
            bits,
        )

    def pieces(self, text: Bytes, ends: Any = None) -> tuple[Any, Any, int]:
        """Cuts text, or each piece of text as if it stood alone.

        Args:
            text: UTF-8, uint8; other bytes are characters of their own.
            ends: (pieces,): where pieces end that were cut before; by default the text is one.

        Returns:
            (ends, matched, sure): where each new piece ends, int64; whether it is a match; and how many are the same
            however the last of the pieces goes on.
        """
        whole = np.array([len(text)] if len(text) else [], np.int64)
        return _pieces(_kinds(text, *self._classes), whole if ends is None else ends, *self._program)


@lru_cache(maxsize=32)
def compiled(pattern: str, dialect: Dialect = "oniguruma") -> Pattern:
    """The pattern, made once."""
    return Pattern(pattern, dialect)


class _Program:
    """Instructions, and the sets that they name."""

    def __init__(self) -> None:
        self.code: list[tuple[int, int, int, int, int]] = []
        self.sets: dict[bytes, int] = {}

    def number(self, flags: Flags) -> int:
        return self.sets.setdefault(np.packbits(flags).tobytes(), len(self.sets))

    def add(self, choice: tuple[Node, ...]) -> int:
        """Adds a sequence that ends in a match; gives where it starts."""
        start = len(self.code)
        self.sequence(choice)
        self.code.append((MATCH, 0, 0, 0, 0))
        return start

    def sequence(self, nodes: tuple[Node, ...]) -> None:
        for node in nodes:
            if isinstance(node, Set):
                self.code.append((TAKE, self.number(node.flags), node.least, node.most, int(node.possessive)))
            elif isinstance(node, Ahead):
                self.code.append((NOT_AHEAD if node.negated else AHEAD, self.number(node.flags), 0, 0, 0))
            elif isinstance(node, End):
                self.code.append((END, 0, 0, 0, 0))
            else:
                self.choices(node)

    def choices(self, group: Group) -> None:
        ways = [*group.choices, ()] if group.optional else [*group.choices]
        jumps = []
        for way in ways[:-1]:
            fork = len(self.code)
            self.code.append((FORK, 0, 0, 0, 0))
            self.sequence(way)
            jumps.append(len(self.code))
            self.code.append((JUMP, 0, 0, 0, 0))
            self.code[fork] = (FORK, len(self.code), 0, 0, 0)
        self.sequence(ways[-1])
        for jump in jumps:
            self.code[jump] = (JUMP, len(self.code), 0, 0, 0)

    def classes(self) -> tuple[Any, Any]:
        """(CODE_POINTS,) uint8: the class of each character; (classes,) uint64: a bit for each set that has it."""
        if len(self.sets) > MAX_SETS:
            raise UnsupportedPattern(f"{len(self.sets)} different sets of characters; {MAX_SETS} are possible")
        member = np.zeros(CODE_POINTS, np.uint64)
        for packed, number in self.sets.items():
            flags = np.unpackbits(np.frombuffer(packed, np.uint8), count=CODE_POINTS).astype(np.uint64)
            member |= flags << np.uint64(number)
        bits, classes = np.unique(member, return_inverse=True)
        if len(bits) > INSIDE:
            raise UnsupportedPattern(f"{len(bits)} classes of characters; {INSIDE} are possible")
        return classes.astype(np.uint8), bits


def _first(nodes: tuple[Node, ...], number: Any) -> tuple[int, bool]:
    """(bits of the sets that a sequence may begin with, whether it may be empty)."""
    sets = 0
    for node in nodes:
        if isinstance(node, Set):
            sets |= 1 << number(node.flags)
            if node.least:
                return sets, False
        elif isinstance(node, Group):
            inside = [_first(choice, number) for choice in node.choices]
            for some, _ in inside:
                sets |= some
            if not node.optional and not any(nullable for _, nullable in inside):
                return sets, False
    return sets, True


def _blocks(classes: Any) -> tuple[Any, Any]:
    """Equal blocks of the classes once: (number of each block, the blocks one after another)."""
    blocks, numbers = np.unique(classes.reshape(-1, BLOCK), axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.int32), np.ascontiguousarray(blocks).reshape(-1)


@kernel
def _kinds(text: Any, ascii: Any, numbers: Any, blocks: Any) -> Any:
    """(bytes,): the class of the character that begins at each byte; INSIDE where none does."""
    kinds = np.empty(text.size, np.uint8)
    place, stop = 0, text.size
    while place < stop:
        if text[place] < 128:
            kinds[place] = ascii[text[place]]
            place += 1
            continue
        point, size = character(text, place, stop)
        kinds[place] = blocks[(np.int64(numbers[point >> BLOCK_BITS]) << BLOCK_BITS) + (point & (BLOCK - 1))]
        for behind in range(place + 1, place + size):
            kinds[behind] = INSIDE
        place += size
    return kinds


@kernel
def _pieces(kinds: Any, bounds: Any, program: Any, ways: Any, starts: Any, bits: Any) -> Any:
    """Cuts each piece of a text; gives ends, whether each is a match, and how many come before the first that looked
    at the end of the last piece. It is one function because numba counts references to arrays at every call."""
    ends = np.empty(kinds.size // 3 + 16, np.int64)
    matched = np.empty(ends.size, np.bool_)
    stack = np.empty((len(program) + 1, 3), np.int64)  # where to go on: instruction, place, and characters taken
    count: Any = 0
    begin: Any = 0
    sure = np.int64(-1)
    for bound in bounds:
        place = gap = begin  # what stands before the next match begins at `gap`
        begin = bound
        while place < bound:
            end, at_end = np.int64(-1), False
            for way in range(ways[kinds[place]], ways[kinds[place] + 1]):
                step, here, depth = np.int64(starts[way]), place, 0
                while True:
                    operation = program[step, OPERATION]
                    flag = np.uint64(1) << np.uint64(program[step, ARGUMENT])
                    fits = True
                    if operation == TAKE:
                        taken, most = 0, program[step, MOST]
                        while taken < most and here < bound and bits[kinds[here]] & flag != 0:
                            here += 1
                            taken += 1
                            while here < bound and kinds[here] == INSIDE:
                                here += 1
                        at_end = at_end or (taken < most and here >= bound)
                        fits = taken >= program[step, LEAST]
                        if taken > program[step, LEAST] and program[step, POSSESSIVE] == 0:
                            stack[depth, 0], stack[depth, 1], stack[depth, 2] = step, here, taken
                            depth += 1
                        step += 1
                    elif operation == MATCH:
                        end = here
                        break
                    elif operation == FORK:
                        stack[depth, 0], stack[depth, 1], stack[depth, 2] = program[step, ARGUMENT], here, -1
                        depth += 1
                        step += 1
                    elif operation == JUMP:
                        step = np.int64(program[step, ARGUMENT])
                    elif operation == END:
                        fits = here == bound
                        at_end = at_end or fits
                        step += 1
                    else:
                        at_end = at_end or here >= bound
                        fits = (here < bound and bits[kinds[here]] & flag != 0) == (operation == AHEAD)
                        step += 1
                    if fits:
                        continue
                    if depth == 0:
                        break
                    depth -= 1
                    step, here, taken = stack[depth, 0], stack[depth, 1], stack[depth, 2]
                    if taken < 0:  # the other branch of a fork
                        continue
                    here -= 1
                    while kinds[here] == INSIDE:
                        here -= 1
                    if taken - 1 > program[step, LEAST]:
                        stack[depth, 1], stack[depth, 2] = here, taken - 1
                        depth += 1
                    step += 1
                if end > place:
                    break
            if at_end and sure < 0 and bound == bounds[-1]:
                sure = count
            if end <= place:
                place += 1
                while place < bound and kinds[place] == INSIDE:
                    place += 1
            if count + 2 >= ends.size:
                ends, matched = _longer(ends, matched)
            if sure < 0 and place >= bound and end <= place and bound == bounds[-1]:
                sure = count
            if gap < place and (end > place or place >= bound):
                ends[count], matched[count] = place, False
                count += 1
                gap = place
            if end > place:
                ends[count], matched[count] = end, True
                count += 1
                gap = place = end
    return ends[:count], matched[:count], count if sure < 0 else sure


@kernel
def _longer(ends: Any, matched: Any) -> Any:
    more, flags = np.empty(2 * ends.size, np.int64), np.empty(2 * ends.size, np.bool_)
    more[: ends.size], flags[: ends.size] = ends, matched
    return more, flags
