"""What a run looks like from outside: a few held-out samples, encoded, decoded, measured and shown."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from smalti.audio.metrics import STOI, MelDistance
from smalti.image.metrics import PSNR, SSIM
from smalti.metric import SampleMean
from smalti.tokenizer import NeuralTokenizer
from smalti.train.run import RunFolder


class Validation:
    """Held-out samples and their measurement, through `encode` and `decode` as users call them.

    Args:
        tokenizer: in training.
        samples: in the public range, without a batch axis; may be none.
    """

    def __init__(self, tokenizer: NeuralTokenizer, samples: Sequence[Tensor]) -> None:
        self.tokenizer, self.samples = tokenizer, samples

    def measure(self) -> tuple[dict[str, float], list[Tensor]]:
        """Metrics by name, and the reconstructions. The first metric is the one that `best` goes by; more is better."""
        if not self.samples:
            return {}, []
        rebuilt = [self.tokenizer.decode(self.tokenizer.encode(each[None]))[0].cpu() for each in self.samples]
        metrics = self._metrics()
        for original, copy in zip(self.samples, rebuilt, strict=True):
            for metric in metrics.values():
                metric.update(original[None], copy[None])
        return {f"validation_{name}": float(metric.compute()) for name, metric in metrics.items()}, rebuilt

    def show(self, folder: RunFolder, step: int, rebuilt: Sequence[Tensor]) -> None:
        """Writes the samples where people look."""
        if rebuilt and self.tokenizer.modality == "image":
            folder.show_images(step, self.samples, rebuilt)
        elif rebuilt:
            folder.show_sounds(step, self.samples, rebuilt, self._rate)

    @property
    def _rate(self) -> int:
        return int(getattr(self.tokenizer, "sample_rate", 0))

    def _metrics(self) -> dict[str, SampleMean]:
        if self.tokenizer.modality == "image":
            return {"psnr": PSNR(), "ssim": SSIM()}
        return {"stoi": STOI(self._rate), "mel": MelDistance(self._rate)}
