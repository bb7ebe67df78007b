"""What tokenizer.json does with text before its model: the part of it that this engine does, exactly.

    text ──escape──► spaces as ▁ ──cuts──► pieces        (text models)
    bytes ─────────────────────────cuts──► pieces        (byte-level models)

Anything else raises `Unsupported`, which says what it was; such files are left to `tokenizers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from smalti.bpe.characters import Bytes
from smalti.bpe.patterns import GPT2_PATTERN, Pattern, compiled
from smalti.bpe.syntax import UnsupportedPattern
from smalti.errors import ConfigError

BEHAVIOURS = ("Isolated", "Contiguous", "MergedWithPrevious", "MergedWithNext")


class Unsupported(ConfigError):
    """A step that this engine does not do, or not exactly as `tokenizers` does."""


@dataclass(frozen=True)
class Cut:
    """Cuts pieces around the matches of a pattern.

    Args:
        pattern: what is searched.
        behaviour: what becomes of matches, as in tokenizer.json.
        invert: whether what stands between matches counts as the match.
    """

    pattern: Pattern
    behaviour: str = "Isolated"
    invert: bool = False

    def __call__(self, text: Bytes, ends: Any) -> Any:
        """Where pieces end, given where those before end."""
        found, matched, _ = self.pattern.pieces(text, ends)
        return found[self._kept(found, matched, ends)]

    def certain(self, text: Bytes, ends: Any) -> tuple[Any, int]:
        """(ends, how many of them stay however the last piece goes on)."""
        found, matched, sure = self.pattern.pieces(text, ends)
        kept = found[self._kept(found, matched, ends)]
        # Whether a piece is joined with the next one is certain only if that one is.
        return kept, int(np.searchsorted(kept, found[sure - 2], side="right")) if sure > 1 else 0

    def _kept(self, found: Any, matched: Any, ends: Any) -> Any:
        """Which ends remain."""
        if self.behaviour == "Isolated" or not len(found):
            return np.ones(len(found), np.bool_)
        one, other = (matched[:-1], matched[1:]) if not self.invert else (~matched[:-1], ~matched[1:])
        joined = {
            "Contiguous": one == other,
            "MergedWithPrevious": ~one & other,
            "MergedWithNext": one & ~other,
        }[self.behaviour]
        return np.append(~joined, True) | np.isin(found, ends, assume_unique=True)


@dataclass(frozen=True)
class Escape:
    """Writes spaces as another character, as SentencePiece does.

    Args:
        replacement: the character.
        prepend: whether it comes in front of a text, too: "never", "first" (of the sample), "always" (of what stands
            between two added tokens) unless the text begins with it, or "each" (always, and in any case).
        split: whether each of them begins a piece.
    """

    replacement: str
    prepend: Literal["never", "first", "always", "each"] = "never"
    split: bool = False


# What a text begins: a sample, what follows an added token, or nothing, as it goes on with what came before.
Opening = Literal["sample", "section", "inside"]


@dataclass(frozen=True)
class Steps:
    """All steps before the model.

    Args:
        byte_level: whether the model's tokens are bytes in GPT-2's alphabet.
        escape: how spaces are written; None: as they are.
        space: whether a space comes in front of text that does not begin with one.
        cuts: one after another.
    """

    byte_level: bool = False
    escape: Escape | None = None
    space: bool = False
    cuts: Sequence[Cut] = ()

    @property
    def prepends(self) -> bool:
        """Whether anything comes in front of the text."""
        return self.space or (self.escape is not None and self.escape.prepend != "never")

    def written(
        self, data: Bytes, start: int = 0, origins: bool = False, opening: Opening | None = None
    ) -> tuple[Bytes, Any]:
        """Text with its spaces as they should be.

        Args:
            data: UTF-8, what stands between two added tokens.
            start: where it begins in what is encoded.
            origins: whether to give the byte that each byte of the result is made of.
            opening: what the text begins; by default a sample if it starts at 0, else a section.

        Returns:
            (text, origins); without them an empty array.
        """
        escape = self.escape or Escape(" ", "always" if self.space else "never")
        sign = escape.replacement.encode()
        text = data.tobytes().replace(b" ", sign)
        origin = np.zeros(0, np.int64)
        if origins:
            origin = np.repeat(np.arange(len(data)), np.where(data == ord(" "), len(sign), 1))
        opening = opening or ("section" if start else "sample")
        wanted = {"never": False, "first": opening == "sample"}.get(escape.prepend, opening != "inside")
        if text and wanted and (escape.prepend == "each" or not text.startswith(sign)):
            text = sign + text
            origin = np.concatenate([np.zeros(len(sign) * origins, np.int64), origin])
        return np.frombuffer(text, np.uint8), start + origin

    def pieces(self, text: Bytes, ends: Any) -> Any:
        """Where pieces end, given where the sections of a text end."""
        for cut in self.cuts:
            ends = cut(text, ends)
        return ends


def steps_of(normalizer: Mapping[str, Any] | None, pre_tokenizer: Mapping[str, Any] | None) -> Steps:
    """The steps that a file describes.

    Raises:
        Unsupported: naming the first one that this engine does not do.
    """
    escape = _normalizer(normalizer)
    byte_level, space, cuts = False, False, []
    for place, step in enumerate(flat(pre_tokenizer, "pretokenizers")):
        kind = step.get("type")
        if byte_level:
            raise Unsupported(f"{kind} after ByteLevel")
        if kind == "ByteLevel":
            byte_level, space = True, bool(step.get("add_prefix_space", True))
            if space and place:
                raise Unsupported("ByteLevel with a prefix space after other steps")
            cuts += [Cut(compiled(GPT2_PATTERN))] if step.get("use_regex", True) else []
        elif kind == "Metaspace":
            if place or escape:
                raise Unsupported("Metaspace after other steps")
            escape = _metaspace(step)
            cuts += [Cut(_literal(escape.replacement), "MergedWithNext")] if escape.split else []
        elif kind == "Split":
            cuts.append(_split(step))
        elif kind == "Digits":
            alone = step.get("individual_digits", False)
            cuts.append(Cut(compiled(r"\p{N}"), "Isolated" if alone else "Contiguous"))
        else:
            raise Unsupported(f"the pre-tokenizer {kind}")
    if byte_level and escape:
        raise Unsupported("a normalizer before ByteLevel")
    return Steps(byte_level, escape, space, cuts)


def flat(step: Mapping[str, Any] | None, inside: str) -> Iterator[Mapping[str, Any]]:
    """Steps of sequences in sequences."""
    waiting = [step] if step is not None else []
    while waiting:
        first = waiting.pop(0)
        if first.get("type") == "Sequence":
            waiting = [*first[inside], *waiting]
        else:
            yield first


def _normalizer(normalizer: Mapping[str, Any] | None) -> Escape | None:
    steps = list(flat(normalizer, "normalizers"))
    if not steps:
        return None
    prefix = steps.pop(0)["prepend"] if steps[0].get("type") == "Prepend" else None
    last = steps.pop() if steps else {}
    content = str(last.get("content", ""))
    if steps or last.get("type") != "Replace" or last.get("pattern") != {"String": " "} or len(content) != 1:
        raise Unsupported(f"the normalizer {(normalizer or {}).get('type')}")
    if prefix not in (None, content):
        raise Unsupported("a normalizer that prepends something else")
    return Escape(content, "never" if prefix is None else "each")


def _metaspace(step: Mapping[str, Any]) -> Escape:
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    if scheme not in ("never", "first", "always") or len(step["replacement"]) != 1:
        raise Unsupported(f"Metaspace with {scheme!r} and {step['replacement']!r}")
    return Escape(step["replacement"], scheme, bool(step.get("split", True)))


def _split(step: Mapping[str, Any]) -> Cut:
    behaviour, pattern = step["behavior"], step["pattern"]
    if behaviour not in BEHAVIOURS:
        raise Unsupported(f"Split that is {behaviour}")
    try:
        found = compiled(pattern["Regex"]) if "Regex" in pattern else _literal(pattern["String"])
    except UnsupportedPattern as error:
        raise Unsupported(f"the pattern {error}") from None
    return Cut(found, behaviour, bool(step.get("invert", False)))


def _literal(text: str) -> Pattern:
    return compiled("".join(character if character.isalnum() else "\\" + character for character in text))
