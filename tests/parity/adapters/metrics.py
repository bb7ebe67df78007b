"""metrics: every output of golden/metrics through the public metric classes."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from smalti.bench.codes import CodeStatistics, SlotStatistics
from smalti.image.distribution import FrechetDistance, InceptionScore, KernelDistance
from smalti.image.metrics import MSSSIM, PSNR, SSIM, PixelMetric
from smalti.shape.metrics import ChamferDistance, match

# The first pattern that fits an output's name gives the metric of each image.
IMAGE_METRICS: tuple[tuple[str, PixelMetric], ...] = (
    ("psnr_*", PSNR()),
    ("ssim_skimage_default_*", SSIM("skimage-default")),
    ("ssim_skimage_gray_gauss*", SSIM("skimage-gauss", colour="luma")),
    ("ssim_skimage_gauss_*", SSIM("skimage-gauss")),
    ("ssim_torchmetrics*", SSIM("torchmetrics")),
    ("ssim_pytorch_msssim*", SSIM("pytorch_msssim")),
    ("*ms_ssim*", MSSSIM()),
    ("*msssim*", MSSSIM()),
)


def run(case: Any) -> dict[str, Tensor]:
    outputs = {name: _output(name, case.config, case.inputs) for name in case.outputs}
    return {name: value for name, value in outputs.items() if value is not None}


def _output(name: str, config: dict[str, Any], inputs: dict[str, Tensor]) -> Tensor | None:
    for pattern, metric in IMAGE_METRICS:
        if fnmatchcase(name, pattern):
            return metric.values(inputs["image_ref_uint8"], inputs["image_rec_uint8"])
    if name.startswith("code_"):
        statistics = _codes(config, inputs)
        field = name.removeprefix("code_").removesuffix("_bits")
        return _scalar(getattr(statistics, field))
    if name.startswith("chamfer_"):
        chamfer = ChamferDistance("l1" if name.startswith("chamfer_l1") else "l2")
        return chamfer.values(inputs["points_gt"], inputs["points_pred"])[0]
    if name.startswith("fscore_"):
        found = match(inputs["points_gt"], inputs["points_pred"], config["fscore_tau"])
        return torch.tensor([found.precision, found.recall, found.f_score], dtype=torch.float64)
    return _distribution(name, config, inputs)


def _distribution(name: str, config: dict[str, Any], inputs: dict[str, Tensor]) -> Tensor | None:
    if name.startswith("inception_score"):
        score = InceptionScore(splits=config["is_splits"])
        score.update(inputs["class_probs"])
        estimate = score.compute()
        return torch.tensor([estimate.mean, estimate.std], dtype=torch.float64)
    if name.startswith("frechet"):
        frechet = FrechetDistance()
        frechet.update(inputs["features_a"], inputs["features_b"])
        return _scalar(frechet.compute())
    if name.startswith("kid"):
        kernel = KernelDistance()
        kernel.update(inputs["features_a"], inputs["features_b"])
        return _scalar(kernel.compute().mean)
    return None


def _codes(config: dict[str, Any], inputs: dict[str, Tensor]) -> SlotStatistics:
    statistics = CodeStatistics((config["codebook_size"],))
    statistics.update(inputs["codes"][..., None])
    return statistics.compute().slots[0]


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
