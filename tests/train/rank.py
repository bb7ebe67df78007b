"""A rank of test_loop's runs on two: trains, and leaves the digest of the weights that it ends with.

torchrun ... -m tests.train.rank PHOTOS OUT STRATEGY
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch

from smalti.tokenizer import NeuralTokenizer
from smalti.train.distributed import full_state
from smalti.train.fabric import make_fabric
from smalti.train.loop import train
from smalti.train.recipe import Model
from tests.train.runs import with_gan


def main(photos: str, out: str, strategy: str) -> None:
    torch.set_num_threads(1)
    trained: list[NeuralTokenizer] = []
    build = Model.build

    def kept(model: Model) -> NeuralTokenizer:
        trained.append(build(model))
        return trained[-1]

    Model.build = kept  # type: ignore[method-assign]
    fabric = make_fabric("cpu", 2, 1, strategy)
    train(with_gan(steps=20), data=Path(photos), out=Path(out), fabric=fabric)
    digest = hashlib.sha256()
    for name, tensor in sorted(full_state(trained[0]).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    Path(out, f"rank-{fabric.global_rank}").write_text(digest.hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
