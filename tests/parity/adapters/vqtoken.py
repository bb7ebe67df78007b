"""Golden cases of VQToken: its clustering. (Its attention comes with the system.)"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.quantize.adaptive import cluster_means, cosine_kmeans, elbow
from tests.parity.adapters.images import asked
from tests.parity.golden import Case


def run(case: Case) -> dict[str, Tensor]:
    pytest.skip("vqtoken: planned, only its clustering is there yet")


def run_quantizer(case: Case) -> dict[str, Tensor]:
    config, start = case.config, case.inputs["init_centroids"]
    rows = case.inputs["tokens"].flatten(0, -2)
    whole = cosine_kmeans(rows, start, iterations=config["max_iteration"], tolerance=config["tol"])
    once = cosine_kmeans(rows, start, iterations=1, tolerance=config["tol"])
    means = cluster_means(F.normalize(rows, dim=1), whole.labels, torch.zeros_like(start))
    outputs = {
        "labels": whole.labels,
        "centroids": whole.centroids,
        "labels_1": once.labels,
        "centroids_1": once.centroids,
        "cluster_means": means,
    }
    for name, curve in case.inputs.items():
        if name.startswith("elbow_distortions"):
            chosen = elbow(curve, config["min_K"], published=True)
            outputs[name.replace("distortions", "K")] = torch.tensor(chosen)
    return asked(outputs, case.quantizer_outputs())
