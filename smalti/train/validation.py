"""What a run looks like from outside: a few held-out samples, encoded, decoded, measured and shown."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from smalti.audio.metrics import STOI, MelDistance
from smalti.errors import InputError, SmaltiError
from smalti.image.metrics import PSNR, SSIM
from smalti.metric import SampleMean
from smalti.tokenizer import NeuralTokenizer
from smalti.train.data import Files
from smalti.train.run import RunFolder


class Validation:
    """Held-out samples and their measurement, through `encode` and `decode` as users call them.

    Args:
        samples: in the public range and at the tokenizer's rate, without a batch axis; may be none.
    """

    def __init__(self, samples: Sequence[Tensor]) -> None:
        self.samples = samples

    @classmethod
    def of(cls, data: Files, paths: Sequence[Path], tokenizer: NeuralTokenizer) -> Validation:
        """Samples of those files that can be read and judged; the others are left out, and the log says why.

        Raises:
            InputError: if there are files, and none of them can be.
        """
        samples, error = [], None
        for path in paths:
            try:
                sample = data.watched(path, getattr(tokenizer, "sample_rate", None))
                for metric in _metrics(tokenizer).values():
                    metric.update(sample[None], sample[None])  # what can't be judged shows now, not in training
            except (SmaltiError, OSError) as problem:
                error = problem
                logging.getLogger("smalti").warning("%s is left out of what is watched: %s", path, problem)
            else:
                samples.append(sample)
        if paths and not samples:
            raise InputError(f"none of {len(paths)} held-out files can be measured; the last one: {error}")
        return cls(samples)

    def measure(self, tokenizer: NeuralTokenizer) -> tuple[dict[str, float], list[Tensor]]:
        """Metrics by name, and the reconstructions. The first metric is what `best` goes by; more is better."""
        if not self.samples:
            return {}, []
        rebuilt = [tokenizer.decode(tokenizer.encode(each[None]))[0].cpu() for each in self.samples]
        metrics = _metrics(tokenizer)
        for original, copy in zip(self.samples, rebuilt, strict=True):
            for metric in metrics.values():
                metric.update(original[None], copy[None])
        return {f"validation_{name}": float(metric.compute()) for name, metric in metrics.items()}, rebuilt

    def show(self, folder: RunFolder, step: int, rebuilt: Sequence[Tensor], rate: int | None) -> None:
        """Writes the samples where people look; sound at `rate` Hz."""
        if rebuilt and rate is None:
            folder.show_images(step, self.samples, rebuilt)
        elif rebuilt and rate is not None:
            folder.show_sounds(step, self.samples, rebuilt, rate)


def _metrics(tokenizer: NeuralTokenizer) -> dict[str, SampleMean]:
    if tokenizer.modality == "image":
        return {"psnr": PSNR(), "ssim": SSIM()}
    rate = int(getattr(tokenizer, "sample_rate", 0))
    return {"stoi": STOI(rate), "mel": MelDistance(rate)}
