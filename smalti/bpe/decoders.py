"""The decoders of tokenizer.json that only join tokens, so that every token has its bytes."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from smalti.bpe.alphabets import GPT2
from smalti.bpe.pretokenizers import Unsupported
from smalti.bpe.tokenizer_json import Added

FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]  # tokens that are bytes, in models of text


@dataclass(frozen=True)
class Decoding:
    """How tokens become bytes.

    Args:
        byte_level: whether tokens are written in GPT-2's alphabet.
        replacement: the character that stands for a space; None if there is none.
        fallback: whether <0x00> to <0xFF> are bytes.
        strip: whether a space that the text begins with is taken off.
        marks: whether that is done only if `replacement` stood for it.
    """

    byte_level: bool = False
    replacement: str | None = None
    fallback: bool = False
    strip: bool = False
    marks: bool = False

    def tokens(
        self, vocab: Mapping[str, int], added: Iterable[Added], size: int, made: Container[int] = ()
    ) -> list[bytes]:
        """The bytes of each id, before the first space is taken off; none for ids that have no token.

        Args:
            vocab: of the model.
            added: tokens that are not the model's; they stand for their text.
            size: number of ids.
            made: ids that the model makes of text: those stand for what they were made of, even where an added token
                is spelled as they are and so has one of them.
        """
        tokens = [b""] * size
        fallback = {token: byte for byte, token in enumerate(FALLBACK)} if self.fallback else {}
        for token, number in vocab.items():
            tokens[number] = GPT2.data(token) if self.byte_level and GPT2.holds(token) else self._text(token, fallback)
        for each in added:
            if each.id not in made:
                tokens[each.id] = self._text(each.content, {})
        return tokens

    def _text(self, token: str, fallback: Mapping[str, int]) -> bytes:
        if token in fallback:
            return bytes([fallback[token]])
        text = token.replace(self.replacement, " ") if self.replacement else token
        return text.encode("utf-8", "surrogatepass")


def decoding_of(decoder: Mapping[str, Any] | None, *, byte_level: bool) -> Decoding:
    """What a file's decoder does.

    Args:
        decoder: as in the file.
        byte_level: whether the model's tokens are bytes.

    Raises:
        Unsupported: if it does more than join tokens.
    """
    if decoder is None:
        raise Unsupported("tokens that are joined with spaces, as there is no decoder")
    kind = decoder.get("type")
    steps = decoder["decoders"] if kind == "Sequence" else [decoder]
    if byte_level or kind == "ByteLevel":
        if not byte_level or [step.get("type") for step in steps if step.get("type") != "Fuse"] != ["ByteLevel"]:
            raise Unsupported(f"the decoder {kind}")
        return Decoding(byte_level=True)
    if kind == "Metaspace":
        always = "always" if decoder.get("add_prefix_space", True) else "never"
        strip = decoder.get("prepend_scheme", always) != "never"
        return Decoding(replacement=decoder["replacement"], strip=strip, marks=True)
    return _joined(steps)


def _joined(steps: Iterable[Mapping[str, Any]]) -> Decoding:
    """Replace, ByteFallback, Fuse, Strip, in this order, each or not."""
    order = ["Replace", "ByteFallback", "Fuse", "Strip"]
    found = {step["type"]: step for step in steps}
    places = [order.index(step["type"]) if step["type"] in order else -1 for step in steps]
    if -1 in places or places != sorted(set(places)) or "Fuse" not in found:
        raise Unsupported(f"the decoders {', '.join(found)}")
    replace, strip = found.get("Replace"), found.get("Strip")
    if replace is not None and (replace["content"] != " " or len(replace["pattern"].get("String", "")) != 1):
        raise Unsupported("a decoder that replaces something else than a character by a space")
    if strip is not None and (strip["content"], strip["start"], strip["stop"]) != (" ", 1, 0):
        raise Unsupported("a decoder that strips something else than one space in front")
    return Decoding(
        replacement=replace["pattern"]["String"] if replace else None,
        fallback="ByteFallback" in found,
        strip=strip is not None,
    )
