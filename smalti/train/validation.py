"""What a run looks like from outside: a few held-out samples, encoded, decoded, measured and shown."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from smalti.audio.metrics import STOI, MelDistance
from smalti.errors import InputError
from smalti.image.metrics import PSNR, SSIM
from smalti.metric import SampleMean
from smalti.tokenizer import NeuralTokenizer
from smalti.train.run import RunFolder


class Validation:
    """Held-out samples and their measurement, through `encode` and `decode` as users call them.

    Args:
        samples: in the public range and at the tokenizer's rate, without a batch axis; may be none.
    """

    def __init__(self, samples: Sequence[Tensor]) -> None:
        self.samples = samples

    def check(self, tokenizer: NeuralTokenizer) -> None:
        """Measures the samples against themselves: one that can't be judged is found before training, not in it.

        Raises:
            InputError: naming the sample's number.
        """
        for index, sample in enumerate(self.samples):
            for metric in _metrics(tokenizer).values():
                try:
                    metric.update(sample[None], sample[None])
                except InputError as problem:
                    raise InputError(f"held-out sample {index} can't be measured: {problem}; hold out others") from None

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
