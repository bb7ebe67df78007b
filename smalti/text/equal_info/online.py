"""Windows of a model in floats: blocks that prove themselves, because the last bit of a float may differ elsewhere.

    block of bytes ──exact windows──► words ──decoded back──► the same? ──► header and words
                                                              otherwise ──► header and the bytes as they are

Everything travels inside the ids, so stores and streams need not know: a block is a header of 16 bytes, cut into tokens
like a word, and what follows it.

    8 bytes   of the SHA-256 of the fingerprint: PyTorch's build, device, threads, type, weights
    4 bytes   how many windows follow; or 2^31 + how many bytes, in a raw block
    4 bytes   CRC-32 of the 4 bytes before and of the block's own bytes
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from smalti.errors import InputError
from smalti.text.base import IdArray, StreamDecoder, StreamEncoder
from smalti.text.equal_info.model import NextByte
from smalti.text.equal_info.neural import threads
from smalti.text.equal_info.windows import decode_windows, encode_windows
from smalti.text.equal_info.words import join_words, split_words, word_type

HEADER = 16  # bytes
RAW = 1 << 31


@dataclass(frozen=True)
class BlockCoder:
    """Blocks of bytes as tokens, and back.

    Args:
        model: of the next byte; it may be one whose weights differ from run to run.
        bits, token_bits: of a window and of a token.
        block: bytes of a block; the last one is shorter.
        threads: PyTorch's, while the model is asked.
        fingerprint: what the model's weights hang on.
    """

    model: NextByte
    bits: int
    token_bits: int
    block: int
    threads: int
    fingerprint: Mapping[str, str]

    @property
    def mark(self) -> bytes:
        """(8 bytes): stands for the fingerprint in every header."""
        return hashlib.sha256(json.dumps(dict(self.fingerprint), sort_keys=True).encode()).digest()[:8]

    @property
    def header_tokens(self) -> int:
        return -(-8 * HEADER // self.token_bits)

    def encode(self, data: bytes) -> IdArray:
        """The tokens of one block, which have been decoded back."""
        with threads(self.threads):
            words = encode_windows(data, self.model, self.bits).words
            exact = decode_windows(words, self.model, self.bits) == data
        count = (len(words) if exact else RAW + len(data)).to_bytes(4, "big")
        check = zlib.crc32(count + data).to_bytes(4, "big")
        payload = split_words(words, self.bits, self.token_bits) if exact else tokens_of(data, self.token_bits)
        return np.concatenate([tokens_of(self.mark + count + check, self.token_bits), payload])

    def payload_tokens(self, header: IdArray) -> int:
        """How many tokens follow a header.

        Raises:
            InputError: if the block was coded under another fingerprint.
        """
        mark, count, _ = self._fields(header)
        if mark != self.mark:
            here = ", ".join(f"{key} {value}" for key, value in self.fingerprint.items())
            raise InputError(
                "these tokens were coded by other weights, or under another build of PyTorch, device or number of "
                f"threads: theirs has the fingerprint {mark.hex()}, this one {self.mark.hex()} ({here})"
            )
        if count >= RAW:
            return -(-8 * (count - RAW) // self.token_bits)
        return count * (self.bits // self.token_bits)

    def decode(self, header: IdArray, payload: IdArray) -> bytes:
        """The bytes of one block.

        Raises:
            InputError: if they are not those that were encoded.
        """
        _, count, check = self._fields(header)
        if count >= RAW:
            data = bytes_of(payload, self.token_bits, count - RAW)
        else:
            with threads(self.threads):
                data = decode_windows(join_words(payload, self.bits, self.token_bits), self.model, self.bits)
        if zlib.crc32(count.to_bytes(4, "big") + data) != check:
            raise InputError("a block does not decode to what was encoded (CRC): its tokens were changed")
        return data

    def _fields(self, header: IdArray) -> tuple[bytes, int, int]:
        data = bytes_of(header, self.token_bits, HEADER)
        return data[:8], int.from_bytes(data[8:12], "big"), int.from_bytes(data[12:], "big")


class BlockEncoder(StreamEncoder):
    """Encodes bytes block by block."""

    def __init__(self, coder: BlockCoder) -> None:
        self._coder, self._rest, self.position = coder, b"", 0

    def push(self, data: bytes | memoryview) -> IdArray:
        block, text = self._coder.block, self._rest + bytes(data)
        whole = len(text) - len(text) % block
        blocks = [self._coder.encode(text[start : start + block]) for start in range(0, whole, block)]
        self._rest = text[whole:]
        self.position += whole
        return np.concatenate([self._none(), *blocks])

    def finish(self) -> IdArray:
        last, self._rest = self._rest, b""
        self.position += len(last)
        return self._coder.encode(last) if last else self._none()

    def _none(self) -> IdArray:
        return np.zeros(0, word_type(self._coder.token_bits))


class BlockDecoder(StreamDecoder):
    """Decodes tokens block by block."""

    def __init__(self, coder: BlockCoder) -> None:
        self._coder = coder
        self._rest: list[IdArray] = []
        self._size = 0
        self._needed = coder.header_tokens

    def push(self, ids: IdArray) -> bytes:
        self._rest.append(ids)
        self._size += len(ids)
        if self._size < self._needed:
            return b""
        tokens, parts = np.concatenate(self._rest), []
        while len(tokens) >= self._needed:
            header = tokens[: self._coder.header_tokens]
            self._needed = len(header) + self._coder.payload_tokens(header)
            if len(tokens) >= self._needed:
                parts.append(self._coder.decode(header, tokens[len(header) : self._needed]))
                tokens, self._needed = tokens[self._needed :], len(header)
        self._rest, self._size = [tokens], len(tokens)
        return b"".join(parts)

    def finish(self) -> bytes:
        if self._size:
            raise InputError(f"the tokens end inside a block: {self._size} of at least {self._needed}")
        return b""


def tokens_of(data: bytes, token_bits: int) -> IdArray:
    """Bytes as tokens, first bits first; the last one is filled with zeros."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    padded = np.concatenate([bits, np.zeros(-len(bits) % token_bits, np.uint8)])
    return join_words(padded, token_bits, 1)


def bytes_of(tokens: IdArray, token_bits: int, count: int) -> bytes:
    """The inverse of `tokens_of`.

    Raises:
        InputError: if the bits beyond the bytes are not zero.
    """
    bits = split_words(np.asarray(tokens), token_bits, 1).astype(np.uint8)
    if bits[8 * count :].any():
        raise InputError("the bits that fill a block's last token must be zero: its tokens were changed")
    return np.packbits(bits[: 8 * count]).tobytes()
