"""The vocabulary: the characters of the basic plane under their own numbers, and n-grams in the gaps between them.

    0x00000..0x0D7FF   characters                         0x0E100..0x0F8FF   n-grams (instead of private use)
    0x0D800..0x0DFFF   n-grams (instead of surrogates)    0x0F900..0x0FFFE   characters
    0x0E000..0x0E0FF   special tokens                     0x10000..          n-grams, in vocabularies of more than 65536

What is left is called <unused_ID>. N-grams are put in order of falling length; an n-gram has one rule of byte pair
encoding for every way to cut it into two tokens, so that a result has several rules, and long ones come first.
Text is always that of the token, never of its id: most ids of surrogates are ordinary n-grams.
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Self

import numpy as np
import torch
from torch import Tensor

from smalti.errors import CheckpointError, ConfigError

PairArray = np.ndarray[tuple[int, ...], np.dtype[np.int32]]

BASIC = 1 << 16
CHARACTERS = (range(0xD800), range(0xF900, 0xFFFF))
SPECIALS = range(0xE000, 0xE100)
GAPS = (range(0xD800, 0xE000), range(0xE100, 0xF900))
SPECIAL_NAMES = (
    "<pad>", "<s>", "</s>", "<unk>", "<think>", "</think>", "<emotions>", "</emotions>", "<tool_call>", "</tool_call>",
    "<tool_response>", "</tool_response>", "[INST]", "[/INST]", "[EOT]", "[USER]", "[ASSISTANT]", "[FIM_PREFIX]",
    "[FIM_MIDDLE]", "[FIM_SUFFIX]", "[FIM_PAD]", "[REPO_NAME]", "[FILE_SEP]",
)  # fmt: skip
UNKNOWN = "<unk>"
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class UnicodeVocabulary:
    """Tokens and the rules that join them.

    Args:
        tokens: the string of every id.
        pairs: (rules, 2): ids of the two tokens that a rule joins, best first. Their strings together are a token.
        specials: ids of special tokens.
        unknown: id that stands for characters that have none.

    Raises:
        ConfigError: if two ids have one string, a string is empty or holds a lone surrogate, or a rule makes no token.
    """

    tokens: tuple[str, ...]
    pairs: PairArray
    specials: tuple[int, ...]
    unknown: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", np.ascontiguousarray(self.pairs, np.int32).reshape(-1, 2))
        if len(self.ids) != len(self.tokens):
            twice = [token for token, count in Counter(self.tokens).items() if count > 1]
            raise ConfigError(f"{len(twice)} tokens have several ids, such as {twice[0]!r}")
        if "" in self.ids or not is_text("".join(self.tokens)):
            wrong = next(token for token in self.tokens if not token or not is_text(token))
            raise ConfigError(f"{wrong!r} can't be a token: it is empty, or holds half of a surrogate pair")
        named = [*self.pairs.ravel().tolist(), *self.specials, self.unknown]
        if named and not 0 <= min(named) <= max(named) < len(self.tokens):
            raise ConfigError(f"ids {min(named)}..{max(named)} are named in a vocabulary of {len(self.tokens)}")
        if len(np.unique(self.pairs, axis=0)) != len(self.pairs):
            raise ConfigError("two rules join the same pair")
        _ = self.results

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of every string."""
        return {token: index for index, token in enumerate(self.tokens)}

    @cached_property
    def results(self) -> PairArray:
        """(rules,): what each rule makes."""
        try:
            made = [self.ids[self.tokens[left] + self.tokens[right]] for left, right in self.pairs.tolist()]
        except KeyError as error:
            raise ConfigError(f"a rule makes {error.args[0]!r}, which is no token") from None
        return np.array(made, np.int32)

    @property
    def merges(self) -> list[list[str]]:
        """The rules as pairs of strings, best first."""
        return [[self.tokens[left], self.tokens[right]] for left, right in self.pairs.tolist()]

    @property
    def ngrams(self) -> list[str]:
        """The tokens of several characters that are no names, longest first."""
        named = {self.tokens[index] for index in self.specials}
        return in_order(
            token
            for index, token in enumerate(self.tokens)
            if len(token) > 1 and token not in named and token != unused(index)
        )

    # --- making one --------------------------------------------------------------------------------------------------

    @classmethod
    def of_ngrams(cls, ngrams: Iterable[str], size: int = BASIC) -> Self:
        """The published construction.

        Args:
            ngrams: strings in any order. Those that are tokens anyway are passed over; those for which there is no room
                (`room` ids), the shortest, are left out with a warning.
            size: number of ids, from 65536.

        Raises:
            ConfigError: if a string is empty or holds half of a surrogate pair, or the size is too small.
        """
        if size < BASIC:
            raise ConfigError(f"the characters of the basic plane need {BASIC} ids, got {size}")
        tokens = _layout()
        taken = set(tokens.values())
        new = [ngram for ngram in in_order(ngrams) if ngram not in taken]
        if len(new) > room(size):
            logging.getLogger("smalti").warning(
                "%d n-grams do not fit %d ids and are left out", len(new) - room(size), size
            )
        tokens.update(zip(chain(*_gaps(size)), new, strict=False))
        strings = tuple(tokens.get(index, unused(index)) for index in range(size))
        ids = {token: index for index, token in enumerate(strings)}
        pairs = [pair for ngram in new[: room(size)] for pair in _splits(ngram, ids)]
        return cls(strings, np.array(pairs, np.int32), tuple(SPECIALS), ids[UNKNOWN])

    @classmethod
    def of_merges(
        cls,
        ids: Mapping[str, int],
        merges: Iterable[Sequence[str]],
        specials: Iterable[str],
        unknown: str = UNKNOWN,
    ) -> Self:
        """A vocabulary that was written down.

        Args:
            ids: by string.
            merges: the two strings of each rule, best first.
            specials: strings of the special tokens.
            unknown: string of the token that stands for characters without one.

        Raises:
            CheckpointError: if ids have holes, or rules or special tokens name strings that are no tokens.
        """
        strings = sorted(ids, key=ids.__getitem__)
        if [ids[token] for token in strings] != list(range(len(strings))):
            raise CheckpointError(f"the ids of {len(strings)} tokens are not 0..{len(strings) - 1}")
        try:
            pairs = [(ids[left], ids[right]) for left, right in merges]
            named = sorted(ids[token] for token in specials)
            return cls(tuple(strings), np.array(pairs, np.int32), tuple(named), ids[unknown])
        except KeyError as error:
            raise CheckpointError(f"{error.args[0]!r} is named in the vocabulary's files but is no token") from None
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"the vocabulary's files are damaged: {error}") from None

    # --- as tensors --------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Everything, as a saved folder holds it: the strings as UTF-8, one after another."""
        encoded = [token.encode() for token in self.tokens]
        ends = np.cumsum([len(each) for each in encoded])
        return {
            "text": torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8),
            "ends": torch.from_numpy(ends.astype(np.int64)),
            "pairs": torch.from_numpy(self.pairs.copy()),
            "specials": torch.tensor(self.specials, dtype=torch.int32),
            "unknown": torch.tensor(self.unknown, dtype=torch.int32),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """What `tensors` gave.

        Raises:
            CheckpointError: if they are not a vocabulary.
        """
        names = {"text", "ends", "pairs", "specials", "unknown"}
        if set(tensors) != names:
            raise CheckpointError(f"a vocabulary is {sorted(names)}, these are {sorted(tensors)}")
        try:
            text, ends = tensors["text"].numpy().tobytes(), tensors["ends"].tolist()
            if ends[-1:] != [len(text)]:
                raise ValueError(f"its strings end at {ends[-1:]} of {len(text)} bytes")
            tokens = tuple(text[start:end].decode() for start, end in zip([0, *ends], ends, strict=False))
            specials = tuple(tensors["specials"].tolist())
            return cls(tokens, tensors["pairs"].numpy(), specials, int(tensors["unknown"]))
        except ValueError as error:
            raise CheckpointError(f"the vocabulary is damaged: {error}") from None


def unused(index: int) -> str:
    """The name of an id that stands for nothing."""
    return f"<unused_{index}>"


def room(size: int = BASIC) -> int:
    """How many n-grams a vocabulary of so many ids holds: 8192 of 65536, 73727 of 131072."""
    return sum(len(gap) for gap in _gaps(size))


def in_order(ngrams: Iterable[str]) -> list[str]:
    """Different strings, longest first, those of one length by their code points: the order of ids and of rules."""
    return sorted(set(ngrams), key=lambda ngram: (-len(ngram), ngram))


def top_ngrams(samples: Iterable[str], lengths: Iterable[int], top: int) -> list[list[str]]:
    """The most frequent n-grams of a text, a list for each n, the most frequent first.

    They are taken inside words (what stands between white space), from which decimal digits are removed, as in the
    published lists. Of equally frequent ones those with lower code points come first.

    Args:
        samples: the text, in pieces. Memory grows with the number of different words.
        lengths: the n.
        top: how many of each n.
    """
    words: Counter[str] = Counter()
    for sample in samples:
        words.update(sample.split())
    bare: Counter[str] = Counter()
    for word, count in words.items():
        bare["".join(char for char in word if not char.isdecimal() and is_text(char))] += count
    lists = []
    for length in lengths:
        counts: Counter[str] = Counter()
        for word, count in bare.items():
            for start in range(len(word) - length + 1):
                counts[word[start : start + length]] += count
        lists.append(sorted(counts, key=lambda ngram: (-counts[ngram], ngram))[:top])
    return lists


def united(lists: Sequence[Sequence[str]], places: int) -> set[str]:
    """The union of the beginnings of lists, all of one length, the longest for which it fits some places."""
    longest = max(map(len, lists), default=0)
    fitting = bisect_right(range(longest + 1), places, key=lambda top: len(_beginnings(lists, top))) - 1
    return _beginnings(lists, fitting)


def _beginnings(lists: Sequence[Sequence[str]], top: int) -> set[str]:
    return set().union(*(each[:top] for each in lists))


def common_strings(vocabularies: Iterable[Iterable[str]], limit: int = BASIC) -> list[str]:
    """Strings of several characters that all of some vocabularies have, the shortest ones.

    Args:
        vocabularies: tokens as text, of any tokenizers.
        limit: how many at most.
    """
    shared: set[str] = set.intersection(*(set(each) for each in vocabularies))
    wanted = sorted((each for each in shared if len(each) > 1 and is_text(each)), key=lambda each: (len(each), each))
    return wanted[:limit]


def is_text(string: str) -> bool:
    """Whether a string has a UTF-8 form: it holds no lone surrogate."""
    return not SURROGATE.search(string)


def _layout() -> dict[int, str]:
    """Id -> string of what every vocabulary has."""
    tokens = {code: chr(code) for code in chain(*CHARACTERS)}
    names = [*SPECIAL_NAMES, *(f"<special_token_{index}>" for index in SPECIALS[len(SPECIAL_NAMES) :])]
    return tokens | dict(zip(SPECIALS, names, strict=True))


def _gaps(size: int) -> tuple[range, ...]:
    return (*GAPS, range(BASIC, size - 1))  # the last id stays free, as 0xFFFF, which is no character, does


def _splits(ngram: str, ids: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    for place in range(1, len(ngram)):
        left, right = ids.get(ngram[:place]), ids.get(ngram[place:])
        if left is not None and right is not None:
            yield left, right
