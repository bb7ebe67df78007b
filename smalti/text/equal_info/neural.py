"""M1 of the paper: a small causal transformer over bytes, read as weights of the next byte.

    start, bytes ──embedding──► Transformer ──head──► logits ──float64 softmax──► max(1, p * 2^20 cut off)

Windows are short, so it is trained on short crops that begin anywhere, with positions counted from 0, and reads
nothing longer. In a table its rounding is harmless, because the table is the truth. While encoding it is not: the
cursor runs in float64, a byte at a time, the same way in both directions, and `online` checks every block.
"""

from __future__ import annotations

import hashlib
import platform
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import smalti.config
from smalti.errors import InputError
from smalti.nn.transformer import KeyValueCache, Rotary, Transformer, init_weights
from smalti.text.base import Sample, as_bytes
from smalti.text.equal_info.model import BYTES, SCALE_BITS, ByteArray, Cursor, NextByte, WeightArray

START = BYTES  # the id that every window begins with
IGNORED = -100  # a target that cross-entropy leaves out
_CODING = threading.RLock()
BETAS, WEIGHT_DECAY, CLIP, WARM_UP = (0.9, 0.95), 0.1, 1.0, 0.05


class Training(smalti.config.Config):
    """How M1 is trained.

    Args:
        steps: of AdamW, the rate falling to zero by a cosine after a short warm-up.
        batch: crops per step.
        rate: the highest learning rate.
        seed: of the weights and of the crops.
    """

    steps: int = Field(2000, ge=1)
    batch: int = Field(64, ge=1)
    rate: float = Field(1e-3, gt=0)
    seed: int = 0


class ByteTransformer(nn.Module):
    """Logits of the next byte after a start state and some bytes.

    Args:
        layers, width, heads: of the transformer; the defaults have 3.3 M parameters.
        longest: bytes of the longest window that it reads.

    Shape:
        contexts: (batch, depth), int64, depth < longest  ->  (batch, depth + 1, 256)
    """

    def __init__(self, layers: int = 4, width: int = 256, heads: int = 8, longest: int = 64) -> None:
        super().__init__()
        config = Transformer.Config(
            width=width, layers=layers, heads=heads, hidden=4 * width, context=longest, norm="rms", bias=False,
            positions=Rotary(),
        )  # fmt: skip
        self.embedding = nn.Embedding(BYTES + 1, width)
        self.body = Transformer(config)
        self.head = nn.Linear(width, BYTES)
        self.longest = longest
        init_weights(self.embedding)
        init_weights(self.head)

    def forward(self, contexts: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(F.pad(contexts, (1, 0), value=START))))

    def step(self, byte: int, cache: KeyValueCache) -> Tensor:
        """(256,): logits after one more byte (or `START`); the cache holds what came before."""
        x = self.embedding(torch.tensor([[byte]], device=self.head.weight.device))
        return self.head(self.body(x, cache=cache))[0, 0]


class NeuralModel(NextByte):
    """A network as a model of the next byte.

    Args:
        network: in float64 where it is asked while encoding.
    """

    def __init__(self, network: ByteTransformer) -> None:
        self.network, self.longest = network.eval(), network.longest

    @torch.no_grad()
    def weights(self, contexts: ByteArray) -> WeightArray:
        if contexts.shape[1] >= self.network.longest:
            return np.ones((len(contexts), BYTES), np.int64)
        return integer_weights(self.network(torch.from_numpy(contexts.astype(np.int64)))[:, -1])

    def cursor(self) -> Cursor:
        return _NeuralCursor(self.network)


class _NeuralCursor(Cursor):
    def __init__(self, network: ByteTransformer) -> None:
        self._network, self._cache = network, network.body.cache()
        self._next: int | None = START  # what the network has not read yet
        self._row: WeightArray = np.ones(BYTES, np.int64)

    @property
    @torch.no_grad()
    def weights(self) -> WeightArray:
        if self._next is not None:
            self._row = integer_weights(self._network.step(self._next, self._cache))
            self._next = None
        return self._row

    def push(self, byte: int) -> None:
        _ = self.weights  # the network reads one byte at a time, whoever asks
        if self._cache.length < self._network.longest:
            self._next = byte
        else:
            self._row = np.ones(BYTES, np.int64)


def integer_weights(logits: Tensor) -> WeightArray:
    """The fixed recipe of 3.4 of the sheet: max(1, floor(p * 2^20)) of a float64 softmax, over the last axis."""
    scaled = (logits.double().softmax(-1) * (1 << SCALE_BITS)).floor().clamp(min=1)
    return scaled.to(torch.int64).cpu().numpy()


def train_network(network: ByteTransformer, samples: Iterable[Sample], training: Training) -> None:
    """Next-byte cross-entropy on crops that begin at random positions; none crosses the border between samples.

    Raises:
        InputError: if there is no byte to train on.
    """
    texts = [np.frombuffer(as_bytes(sample), np.uint8) for sample in samples]
    text: ByteArray = np.concatenate([np.zeros(0, np.uint8), *texts])
    ends = np.cumsum([len(each) for each in texts])
    if not len(text):
        raise InputError("there is no byte to train on")
    draw = np.random.default_rng(training.seed)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=training.rate, betas=BETAS, weight_decay=WEIGHT_DECAY, foreach=True
    )
    warm_up = max(1, round(WARM_UP * training.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * np.cos(np.pi * step / training.steps))
    )
    network.train()
    for _ in range(training.steps):
        starts = draw.integers(len(text), size=training.batch)
        places = starts[:, None] + np.arange(network.longest)
        inside = places < ends[np.searchsorted(ends, starts, side="right")][:, None]
        crops = torch.from_numpy(text[np.minimum(places, len(text) - 1)].astype(np.int64))
        targets = crops.masked_fill(~torch.from_numpy(inside), IGNORED)
        loss = F.cross_entropy(network(crops[:, :-1]).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        schedule.step()
    network.eval()


# --- what the weights hang on ----------------------------------------------------------------------------------------


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch on so many threads; one caller at a time, because the number belongs to the process."""
    with _CODING:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def fingerprint(network: ByteTransformer, count: int) -> Mapping[str, str]:
    """Everything that the last bit of a weight may hang on: equal fingerprints promise equal weights.

    Args:
        network: the weights' own digest is part of it.
        count: of threads.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return {
        "torch": torch.__version__,
        "build": hashlib.sha256(torch.__config__.show().encode()).hexdigest(),
        "device": f"{network.head.weight.device}, {_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(count),
        "dtype": str(network.head.weight.dtype).removeprefix("torch."),
        "weights": digest.hexdigest(),
    }


def _processor() -> str:
    """The processor's model: libraries choose their kernels by it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"{platform.machine()} {platform.processor()}"
