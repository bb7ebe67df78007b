"""Tokenizers of bytes that break the contract, each in one way."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smalti.text.base import IdArray, StreamDecoder, StreamEncoder
from tests.text.runs import RunDecoder, RunEncoder, RunTokenizer


class Forgetful(RunTokenizer):
    """Cuts runs where blocks end."""

    def stream_encoder(self) -> StreamEncoder:
        class Encoder(RunEncoder):
            def push(self, data: bytes | memoryview) -> IdArray:
                return self._encode(bytes(data), last=True)

        return Encoder(self)


class Ahead(RunTokenizer):
    """Says that it stands where it has read to."""

    def stream_encoder(self) -> StreamEncoder:
        class Encoder(RunEncoder):
            def push(self, data: bytes | memoryview) -> IdArray:
                ids = super().push(data)
                self.position += len(self.held)
                return ids

        return Encoder(self)


class Inside(RunTokenizer):
    """Gives ids that an encoder which starts there would not give: it begins runs of four anywhere."""

    def stream_encoder(self) -> StreamEncoder:
        class Encoder(RunEncoder):
            def push(self, data: bytes | memoryview) -> IdArray:
                ids = super().push(data)
                self.position = max(0, self.position - 1)
                return ids

        return Encoder(self)


class Greedy(RunTokenizer):
    """Loses NULs."""

    def ids(self, data: bytes | memoryview) -> IdArray:
        return super().ids(bytes(data).replace(b"\0", b""))


class Modest(RunTokenizer):
    """Says that it loses something, and does not."""

    lossless = False  # type: ignore[assignment]


class Wrapping(RunTokenizer):
    """Takes ids that it does not have."""

    def stream_decoder(self) -> StreamDecoder:
        class Decoder(RunDecoder):
            def push(self, ids: IdArray) -> bytes:
                return super().push(ids % 512)

        return Decoder(self)


class Splitting(RunTokenizer):
    """Loses the bytes of ids that come one at a time."""

    def stream_decoder(self) -> StreamDecoder:
        class Decoder(RunDecoder):
            def push(self, ids: IdArray) -> bytes:
                return super().push(ids) if len(ids) != 1 else b""

        return Decoder(self)


class Blind(RunTokenizer):
    """Has one codes hash for all that it could have learned."""

    @property
    def codes_hash(self) -> str:
        return "0" * 64


class Miscounting(RunTokenizer):
    def count(self, data: bytes | memoryview) -> int:
        return len(self.ids(data)) // 2 * 2


class Unsaved(RunTokenizer):
    """Comes back from a folder as another."""

    def tensors(self) -> dict[str, Tensor]:
        return {"order": torch.from_numpy(np.random.default_rng(7).permutation(512))}


class Shared(RunTokenizer):
    """Encoders of one tokenizer share what they hold."""

    def __init__(self, config: Any, order: Tensor) -> None:
        super().__init__(config, order)
        self.shared = b""

    def stream_encoder(self) -> StreamEncoder:
        class Encoder(RunEncoder):
            def push(self, data: bytes | memoryview) -> IdArray:
                self.held = self.tokenizer.shared  # type: ignore[attr-defined]
                ids = super().push(data)
                self.tokenizer.shared = self.held  # type: ignore[attr-defined]
                return ids

            def finish(self) -> IdArray:
                self.tokenizer.shared = b""  # type: ignore[attr-defined]
                return super().finish()

        return Encoder(self)


class Beyond(RunTokenizer):
    """Gives ids outside its vocabulary."""

    def __init__(self, config: Any, order: Tensor) -> None:
        super().__init__(config, order)
        self.vocab = (500,)


class Quadratic(RunTokenizer):
    """Takes four times as long for twice as much."""

    def ids(self, data: bytes | memoryview) -> IdArray:
        time.sleep(0.04 * (len(data) / 2**15) ** 2)
        return super().ids(data)


class Patient(RunTokenizer):
    """Takes anything for a sample."""

    def encode(self, x: Any, *arguments: Any, **conditions: Any) -> Any:
        return super().encode(
            x if isinstance(x, str | bytes | bytearray | memoryview | list) else b"", *arguments, **conditions
        )


BROKEN = (
    Forgetful, Ahead, Inside, Greedy, Modest, Wrapping, Splitting, Blind, Miscounting, Unsaved, Shared, Beyond,
    Quadratic, Patient,
)  # fmt: skip
