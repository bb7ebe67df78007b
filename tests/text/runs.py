"""A small tokenizer of bytes that has to look ahead: four equal bytes in a row are one token.

    bytes ──runs──► of n equal bytes b:  n // 4 times the id of bbbb, then n % 4 times the id of b

How a run ends is known only when it has ended, so blocks matter, and an encoder may start anew inside a run only after
a whole token. Which id a byte or a run has is a permutation: what such a tokenizer learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from smalti.errors import CheckpointError, InputError
from smalti.text.base import IdArray, StreamDecoder, StreamEncoder, TextTokenizer
from smalti.tokenizer import Tokenizer

RUN = 4


class RunTokenizer(TextTokenizer):
    """Bytes, and runs of four."""

    class Config(Tokenizer.Config):
        seed: int = Field(0, ge=0)

        def build(self) -> RunTokenizer:
            order = np.random.default_rng(self.seed).permutation(512)
            return RunTokenizer(self, torch.from_numpy(order))

        @classmethod
        def tiny(cls) -> Self:
            return cls(seed=1)

    name: ClassVar[str] = "runs"
    lossless: ClassVar[bool] = True
    config: Config

    def __init__(self, config: Config, order: Tensor) -> None:
        self.config, self.order, self.vocab = config, order, (512,)
        self.ids_of = order.numpy().astype(np.uint16)
        self.symbols = np.argsort(self.ids_of).astype(np.uint16)

    def stream_encoder(self) -> StreamEncoder:
        return RunEncoder(self)

    def stream_decoder(self) -> StreamDecoder:
        return RunDecoder(self)

    def tensors(self) -> dict[str, Tensor]:
        return {"order": self.order}

    @classmethod
    def from_tensors(cls, config: Any, tensors: Mapping[str, Tensor]) -> Self:
        if tensors.keys() != {"order"}:
            raise CheckpointError(f"expected the tensor 'order', got {sorted(tensors)}")
        return cls(config, tensors["order"])

    @classmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        return {"x": [np.repeat(rng.integers(0, 256, 50, np.uint8), 3 + i).tobytes() for i in range(batch)]}


class RunEncoder(StreamEncoder):
    def __init__(self, tokenizer: RunTokenizer) -> None:
        self.tokenizer = tokenizer
        self.held = b""  # the last run's bytes that are no token of four yet
        self.position = 0

    def push(self, data: bytes | memoryview) -> IdArray:
        return self._encode(self.held + bytes(data), last=False)

    def finish(self) -> IdArray:
        return self._encode(self.held, last=True)

    def _encode(self, data: bytes, last: bool) -> IdArray:
        values = np.frombuffer(data, np.uint8)
        starts = np.flatnonzero(np.diff(values, prepend=-1 if len(values) else []))
        sizes = np.diff(starts, append=len(values))
        whole, single = sizes // RUN, sizes % RUN
        self.held = b""
        if len(sizes) and not last:
            self.held = data[len(data) - int(single[-1]) :]
            single[-1] = 0
        self.position += len(data) - len(self.held)
        runs = values[starts].astype(np.uint16)
        symbols = np.repeat(np.stack([runs + 256, runs], 1).ravel(), np.stack([whole, single], 1).ravel())
        return self.tokenizer.ids_of[symbols]


class RunDecoder(StreamDecoder):
    def __init__(self, tokenizer: RunTokenizer) -> None:
        self.tokenizer = tokenizer

    def push(self, ids: IdArray) -> bytes:
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < 512:
            raise InputError(f"ids must be in 0..511, got {int(ids.min())}..{int(ids.max())}")
        symbols = self.tokenizer.symbols[ids]
        return np.repeat(symbols.astype(np.uint8), np.where(symbols >= 256, RUN, 1)).tobytes()

    def finish(self) -> bytes:
        return b""
