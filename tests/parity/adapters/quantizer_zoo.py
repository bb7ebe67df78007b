"""Golden cases of the quantizer zoo: many sub-cases in a file, each of a class of vector-quantize-pytorch or iFSQ."""

from __future__ import annotations

from torch import Tensor

from tests.parity.adapters import zoo_scalars, zoo_vectors
from tests.parity.golden import Case

RUNS = {**zoo_vectors.RUNS, **zoo_scalars.RUNS}


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


def incomplete(case: Case) -> dict[str, str]:
    """Outputs of sub-cases whose state lacks a tensor that decides them."""
    why = "the stored state lacks vq.project_in.*, which the published class has here, and which decides the codes"
    found: dict[str, str] = {}
    for name, sub in case.config.items():
        if sub["cls"] == "RandomProjectionQuantizer" and zoo_vectors.lacks_projection(
            sub["options"], _below(case.state, name)
        ):
            found |= {output: why for output in case.outputs if output.startswith(f"{name}/")}
    return found


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}/")}
