"""How close a set of images is to another set: Fréchet distance, kernel distance and inception score.

    images ──extractor──► features (N, d) ──► Moments ──► Fréchet distance       ||m1-m2||² + Tr(C1 + C2 - 2 (C1 C2)^½)
                                          ──► all rows ──► kernel distance        unbiased MMD², kernel (x·y/d + 1)³
    images ──classifier──► probabilities (N, classes) ──► inception score         exp(mean KL(p(y|x) || p(y)))

"FID" is not one number. The same images give different ones with the InceptionV3 port of pytorch-fid and torch-fidelity
(2048 features, bilinear resize to 299), with the reference batches of guided-diffusion, and with clean-fid's
antialiased resize; at another N; from JPEG files. So features come from an extractor that the caller hands over, whose
name and weights are part of `protocol`; Smalti ships no Inception weights and fetches none.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.errors import ConfigError, InputError
from smalti.metric import Metric

KERNEL_CHUNK = 1024  # rows of a kernel matrix at a time
RAW_SIDE = 8  # pixels a side of the raw-pixel features

NO_EXTRACTOR = (
    "{name} needs a feature extractor, and its value means nothing without naming it: InceptionV3 in the port of "
    "pytorch-fid and torch-fidelity (features of 2048, images resized to 299), guided-diffusion's evaluator with its "
    "reference batches, and clean-fid's resize give three different numbers. Smalti ships no Inception weights and "
    "fetches none: pass a FeatureExtractor around a file of your own, or raw_pixels() or random_convolutions() for "
    "smoke runs that compare with nothing published"
)


class RankWarning(UserWarning):
    """Fewer samples than features: the covariance is singular and the distance says little."""


@dataclass(frozen=True)
class Estimate:
    """A value and the standard deviation of its parts (splits or subsets); None where it has no parts."""

    mean: float
    std: float | None = None


# --- distances between feature distributions -------------------------------------------------------------------------


class Moments:
    """Count, mean and scatter of feature rows, gathered in float64.

    Batches and workers are joined by the update of Chan et al., which subtracts no large sums from each other.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Gathers rows: (N, d)."""
        rows = _rows(features)
        batch = Moments()
        batch.count, batch.mean = len(rows), rows.mean(0)
        centred = rows - batch.mean
        batch.scatter = centred.T @ centred
        self.merge(batch)

    def merge(self, other: Moments) -> None:
        """Takes in what another gathered."""
        if not other.count:
            return
        if not self.count:
            self.count, self.mean, self.scatter = other.count, other.mean.clone(), other.scatter.clone()
            return
        if other.mean.shape != self.mean.shape:
            raise InputError(
                f"features of {len(other.mean)} and of {len(self.mean)} dimensions can't be gathered together"
            )
        count = self.count + other.count
        step = other.mean - self.mean
        between = torch.outer(step, step) * (self.count * other.count / count)
        self.scatter = self.scatter + other.scatter + between
        self.mean = self.mean + step * (other.count / count)
        self.count = count

    @property
    def covariance(self) -> Tensor:
        """The sample covariance (divided by N - 1): (d, d)."""
        if self.count < 2:
            raise InputError(f"a covariance needs two samples at least, got {self.count}")
        return self.scatter / (self.count - 1)


class FeatureMetric(Metric):
    """Base of distances between the features of references and of samples.

    Args:
        features: name of the features, for the protocol: "inception-v3-pytorch-fid@1a2b3c".
    """

    name: str

    def __init__(self, features: str = "given") -> None:
        self.features = features

    @property
    def protocol(self) -> str:
        return f"{self.name}/{self.features}"

    def update(self, reference: Tensor | None = None, samples: Tensor | None = None) -> None:
        """Gathers feature rows (N, d) of references, of samples, or of both; they need not be equally many."""
        for side, features in (("reference", reference), ("samples", samples)):
            if features is not None:
                self._gather(side, features)

    @abstractmethod
    def _gather(self, side: str, features: Tensor) -> None:
        """Gathers feature rows of "reference" or "samples"."""


class FrechetDistance(FeatureMetric):
    """Fréchet distance between Gaussians fitted to both sets.

    It is biased upwards, more so for few samples: never compare it at different N.
    """

    name = "frechet"

    def __init__(self, features: str = "given") -> None:
        super().__init__(features)
        self.moments = {"reference": Moments(), "samples": Moments()}

    def _gather(self, side: str, features: Tensor) -> None:
        self.moments[side].update(features)

    def _take(self, other: Self) -> None:
        for side, moments in self.moments.items():
            moments.merge(other.moments[side])

    def compute(self) -> float:
        reference, samples = self.moments["reference"], self.moments["samples"]
        fewest, dim = min(reference.count, samples.count), len(reference.mean)
        if 2 <= fewest <= dim:
            warnings.warn(
                f"{self.protocol}: {fewest} samples can't fill {dim} feature dimensions, the covariance is singular",
                RankWarning,
                stacklevel=2,
            )
        return frechet_distance(reference.mean, reference.covariance, samples.mean, samples.covariance)


class KernelDistance(FeatureMetric):
    """KID: unbiased squared maximum mean discrepancy with the cubic kernel (x·y/d + 1)³.

    It keeps all feature rows. Unlike the Fréchet distance it is unbiased, so small sets give noise but no drift.

    Args:
        features: as in `FeatureMetric`.
        subsets: how many random subsets to average, as in most tables (100); 0 takes the full sets once.
        subset_size: rows of each set in a subset.
        seed: of the subsets.
    """

    name = "kid"

    def __init__(self, features: str = "given", subsets: int = 0, subset_size: int = 1000, seed: int = 0) -> None:
        super().__init__(features)
        if subsets < 0 or subset_size < 2:
            raise ConfigError(f"subsets must be 0 or more of 2 rows or more, got {subsets} of {subset_size}")
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed
        self.rows: dict[str, list[Tensor]] = {"reference": [], "samples": []}

    @property
    def protocol(self) -> str:
        how = f"{self.subsets}x{self.subset_size}-seed-{self.seed}" if self.subsets else "full"
        return f"{super().protocol}/{how}"

    def _gather(self, side: str, features: Tensor) -> None:
        self.rows[side].append(_rows(features))

    def _take(self, other: Self) -> None:
        for side, rows in self.rows.items():
            rows.extend(other.rows[side])

    def compute(self) -> Estimate:
        if not all(self.rows.values()):
            raise InputError(f"{self.protocol}: references and samples are both needed")
        reference, samples = (torch.cat(rows) for rows in self.rows.values())
        if not self.subsets:
            return Estimate(kernel_distance(reference, samples))
        if min(len(reference), len(samples)) < self.subset_size:
            raise InputError(
                f"{self.protocol}: {len(reference)} references and {len(samples)} samples are too few for such subsets"
            )
        generator = torch.Generator().manual_seed(self.seed)
        values = torch.tensor(
            [
                kernel_distance(*(_subset(rows, self.subset_size, generator) for rows in (reference, samples)))
                for _ in range(self.subsets)
            ],
            dtype=torch.float64,
        )
        return Estimate(float(values.mean()), float(values.std(correction=0)))


class InceptionScore(Metric):
    """exp of the mean divergence between each image's class distribution and that of its split.

    Splits are consecutive, so rows that are sorted by class must be shuffled before they come here.

    Args:
        splits: 10 in the original and in torch-fidelity, 1 in guided-diffusion's evaluator.
        classifier: name of the classifier, for the protocol.
    """

    def __init__(self, splits: int = 10, classifier: str = "given") -> None:
        if splits < 1:
            raise ConfigError(f"splits must be 1 or more, got {splits}")
        self.splits, self.classifier = splits, classifier
        self.rows: list[Tensor] = []

    @property
    def protocol(self) -> str:
        return f"inception-score/{self.classifier}/splits-{self.splits}"

    def update(self, probabilities: Tensor) -> None:
        """Gathers class probabilities: (N, classes), each row summing to 1.

        Raises:
            InputError: if rows are no distributions (logits, for example, need a softmax first).
        """
        rows = _rows(probabilities)
        if bool((rows < 0).any()) or bool(((rows.sum(1) - 1).abs() > 1e-4).any()):
            raise InputError("rows of class probabilities must be at least 0 and sum to 1: apply a softmax to logits")
        self.rows.append(rows)

    def _take(self, other: Self) -> None:
        self.rows.extend(other.rows)

    def compute(self) -> Estimate:
        """Mean and population standard deviation over the splits."""
        rows = torch.cat(self.rows) if self.rows else torch.zeros(0, 1)
        if len(rows) < self.splits:
            raise InputError(f"{self.protocol}: {len(rows)} samples can't be split into {self.splits}")
        bounds = [len(rows) * index // self.splits for index in range(self.splits + 1)]
        scores = torch.stack([_score(rows[start:end]) for start, end in pairwise(bounds)])
        return Estimate(float(scores.mean()), float(scores.std(correction=0)))


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """Squared Fréchet distance between two Gaussians: (d,), (d, d) each.

    The trace of (C1 C2)^½ is the sum of the singular values of C1^½ C2^½. That is what the eigenvalues of C1 C2 give
    too, but their square roots would turn the rounding errors of zero eigenvalues into errors of their root.
    """
    mean1, covariance1, mean2, covariance2 = (
        value.to(torch.float64) for value in (mean1, covariance1, mean2, covariance2)
    )
    if mean1.shape != mean2.shape or covariance1.shape != covariance2.shape:
        raise InputError(f"features of {len(mean1)} and of {len(mean2)} dimensions can't be compared")
    cross = torch.linalg.svdvals(_root(covariance1).T @ _root(covariance2)).sum()
    distance = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * cross
    return max(float(distance), 0.0)  # equal sets may come out at minus a rounding error


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy between feature rows (N, d) and (M, d), cubic kernel."""
    x, y = _rows(x), _rows(y)
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise InputError(f"two rows at least of equal dimensions are needed, got {tuple(x.shape)} and {tuple(y.shape)}")
    within_x = (_kernel_sum(x, x) - _kernel(x.square().sum(1), x.shape[1]).sum()) / (len(x) * (len(x) - 1))
    within_y = (_kernel_sum(y, y) - _kernel(y.square().sum(1), y.shape[1]).sum()) / (len(y) * (len(y) - 1))
    return float(within_x + within_y - 2 * _kernel_sum(x, y) / (len(x) * len(y)))


# --- over images -----------------------------------------------------------------------------------------------------


class FeatureExtractor(Protocol):
    """What turns images into features.

    Attributes:
        name: with everything that decides the features (network, layer, resize), for the protocol.
        weights_hash: of the network's weights; empty where it has none.
    """

    name: str
    weights_hash: str

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0,1] to features (B, d)."""
        ...


@dataclass(frozen=True)
class Extractor:
    """A `FeatureExtractor` around any function."""

    name: str
    function: Callable[[Tensor], Tensor]
    weights_hash: str = ""

    def __call__(self, images: Tensor) -> Tensor:
        return self.function(images)


class ImageDistance(Metric):
    """A distance over the features of images.

    Args:
        distance: "fid" or "kid".
        extractor: what makes the features.
        **options: of `KernelDistance`.

    Raises:
        ConfigError: without an extractor; the message explains the protocols.
    """

    def __init__(
        self, distance: Literal["fid", "kid"], extractor: FeatureExtractor | None = None, **options: Any
    ) -> None:
        if distance not in ("fid", "kid"):
            raise ConfigError(f"distance must be fid or kid, got {distance!r}")
        if extractor is None:
            raise ConfigError(NO_EXTRACTOR.format(name=distance))
        self.extractor = extractor
        features = extractor.name + (f"@{extractor.weights_hash[:12]}" if extractor.weights_hash else "")
        self.metric: Any = FrechetDistance(features) if distance == "fid" else KernelDistance(features, **options)

    @property
    def protocol(self) -> str:
        return self.metric.protocol

    def update(self, reference: Tensor | None = None, samples: Tensor | None = None) -> None:
        """Gathers images (B, 3, H, W) in [0,1] of references, of samples, or of both."""
        with torch.no_grad():
            self.metric.update(*(None if images is None else self.extractor(images) for images in (reference, samples)))

    def _take(self, other: Self) -> None:
        self.metric.merge(other.metric)

    def compute(self) -> Any:
        return self.metric.compute()


def raw_pixels() -> Extractor:
    """Images averaged down to 8x8 pixels: features without a network."""
    return Extractor(f"raw-{RAW_SIDE}x{RAW_SIDE}", lambda images: F.adaptive_avg_pool2d(images, RAW_SIDE).flatten(1))


def random_convolutions(seed: int = 0) -> Extractor:
    """A small network with fixed random weights, for tests and smoke runs: NOT comparable with any published number."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layer = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        nn.init.normal_(layer.weight, std=(2 / (9 * inputs)) ** 0.5, generator=generator)
        layers += [layer, nn.ReLU()]
    network = nn.Sequential(*layers).requires_grad_(False)
    return Extractor(f"rand-conv-NOT-comparable-{seed}", lambda images: network(images).mean((2, 3)))


# --- helpers ---------------------------------------------------------------------------------------------------------


def _rows(features: Tensor) -> Tensor:
    if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
        raise InputError(
            f"features must be floating, (samples, dimensions), got {features.dtype} {tuple(features.shape)}"
        )
    if not bool(torch.isfinite(features).all()):
        raise InputError("features contain NaN or infinity")
    return features.detach().to("cpu", torch.float64)


def _root(covariance: Tensor) -> Tensor:
    """A matrix R with R R^T = C."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * values.clamp(min=0).sqrt()


def _kernel(products: Tensor, dim: int) -> Tensor:
    return (products / dim + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([_kernel(rows @ y.T, x.shape[1]).sum() for rows in x.split(KERNEL_CHUNK)]).sum()


def _subset(rows: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:size]]


def _score(probabilities: Tensor) -> Tensor:
    marginal = probabilities.mean(0, keepdim=True)
    # xlogy is 0 at p = 0, where the divergence is 0 too; a class that no row has adds nothing either.
    divergences = torch.special.xlogy(probabilities, probabilities) - torch.special.xlogy(probabilities, marginal)
    return divergences.sum(1).mean().exp()
