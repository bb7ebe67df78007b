"""Golden cases of the quantizer zoo: many sub-cases in a file, each of a class of vector-quantize-pytorch or iFSQ."""

from __future__ import annotations

import importlib.util

from torch import Tensor

from tests.parity.adapters import zoo_vectors
from tests.parity.golden import Case

RUNS = dict(zoo_vectors.RUNS)
if importlib.util.find_spec("tests.parity.adapters.zoo_scalars") is not None:
    RUNS |= importlib.import_module("tests.parity.adapters.zoo_scalars").RUNS


def run(case: Case) -> dict[str, Tensor]:
    given: dict[str, Tensor] = {}
    for name, sub in case.config.items():
        if sub["cls"] not in RUNS:
            continue
        state, inputs, outputs = (_below(part, name) for part in (case.state, case.inputs, case.outputs))
        found = RUNS[sub["cls"]](sub["options"], state, inputs, outputs.keys())
        given |= {f"{name}/{key}": value for key, value in found.items() if key in outputs}
    return given


def run_quantizer(case: Case) -> dict[str, Tensor]:
    wanted = set(case.quantizer_outputs())
    return {key: value for key, value in run(case).items() if key in wanted}


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}/")}
