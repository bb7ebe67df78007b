"""Golden cases: reading them, and the rules by which outputs are compared.

A case is a pair SLUG/NAME.safetensors (tensors `state/<official key>`, `input/<name>`, `output/<name>`) and
SLUG/NAME.json (the official configuration, what each tensor is, how to compare).
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

DEFAULT_SCALED = 2e-4


@dataclass(frozen=True)
class Case:
    """What an adapter gets.

    Args:
        slug: the folder's name.
        name: the file's name.
        json: the whole JSON.
        state: official key -> tensor.
        inputs: name -> tensor.
        outputs: name -> tensor, what the official implementation gave.
    """

    slug: str
    name: str
    json: dict[str, Any]
    state: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def config(self) -> dict[str, Any]:
        return self.json["config"]

    def rule(self, output: str) -> dict[str, Any]:
        """The rule for an output; empty for the default."""
        for pattern, rule in self.json.get("compare", []):
            if fnmatch.fnmatchcase(output, pattern):
                return rule
        return {}

    def quantizer_outputs(self) -> list[str]:
        """The outputs that the quantizer alone is asked for; empty if the case does not test it alone."""
        return self.json.get("parts", {}).get("quantizer", {}).get("outputs", [])


def find_cases(folder: Path, slug: str | None = None) -> list[Path]:
    """The JSON files of all cases below a folder, of one slug if it is named."""
    files = sorted(file for file in folder.glob("*/*.json") if file.with_suffix(".safetensors").exists())
    return [file for file in files if slug is None or file.parent.name == slug]


def read_case(file: Path) -> Case:
    tensors = load_file(file.with_suffix(".safetensors"))
    parts: dict[str, dict[str, Tensor]] = {"state": {}, "input": {}, "output": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        parts[kind][name] = tensor
    return Case(
        file.parent.name, file.stem, json.loads(file.read_text()), parts["state"], parts["input"], parts["output"]
    )


@dataclass(frozen=True)
class Comparison:
    """One line of the report."""

    output: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'} {self.output}: {self.detail}"


def compare_case(
    case: Case, given: Mapping[str, Any], expected: list[str], missing: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Comparison]:
    """Compares what an adapter gave, an output at a time.

    Args:
        case: the case.
        given: name -> tensor; `state/<key>` and `json/<field>` are compared with those of the case.
        expected: outputs that must be given.
        missing: outputs that the case's own state does not determine, and why.
    """
    for name in expected:
        if name in given:
            yield compare(name, given[name], case.outputs[name], case.rule(name))
        elif name in missing:
            yield Comparison(name, True, f"not compared: {missing[name]}")
        elif "skip" in case.rule(name):
            yield Comparison(name, True, f"skipped: {case.rule(name)['skip']}")
        else:
            yield Comparison(name, False, "the adapter does not give it")
    for name in sorted(given.keys() - set(expected)):
        kind, _, key = name.partition("/")
        if kind == "state":
            yield compare(name, given[name], case.state[key], case.rule(name))
        elif kind == "json":
            same = given[name] == case.json[key]
            yield Comparison(
                name, same, "equal" if same else f"{given[name]!r:.100} instead of {case.json[key]!r:.100}"
            )
        else:
            yield Comparison(name, False, "the case has no such output")


def compare(name: str, ours: Tensor, theirs: Tensor, rule: Mapping[str, Any]) -> Comparison:
    """Compares one tensor by one rule of the golden cases' README."""
    if "skip" in rule:
        return Comparison(name, True, f"skipped: {rule['skip']}")
    ours, theirs = ours.detach().cpu(), theirs.cpu()
    if ours.shape != theirs.shape:
        return Comparison(name, False, f"shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}")
    if ours.is_floating_point() != theirs.is_floating_point() or ours.is_complex() != theirs.is_complex():
        return Comparison(name, False, f"{ours.dtype} instead of {theirs.dtype}")
    if "overlap" in rule:
        share = _overlap(ours, theirs)
        return Comparison(name, share >= rule["overlap"], f"overlap {share:.5f}, at least {rule['overlap']} needed")
    if rule.get("rows_as_sets"):
        ours, theirs, rule = ours.sort(-1).values, theirs.sort(-1).values, {}
    if "equal" in rule:
        return _equal(name, ours, theirs, rule["equal"])
    if not theirs.is_floating_point() and not theirs.is_complex():
        return _equal(name, ours, theirs, 1.0)
    return _close(name, ours, theirs, rule or {"scaled": DEFAULT_SCALED})


def _equal(name: str, ours: Tensor, theirs: Tensor, share: float) -> Comparison:
    same = float((ours == theirs).double().mean()) if theirs.numel() else 1.0
    return Comparison(name, same >= share, f"{same:.6f} equal, at least {share} needed")


def _close(name: str, ours: Tensor, theirs: Tensor, rule: Mapping[str, float]) -> Comparison:
    wide = torch.complex128 if theirs.is_complex() else torch.float64
    ours, theirs = ours.to(wide), theirs.to(wide)
    special = ~torch.isfinite(theirs) | ~torch.isfinite(ours)
    matching = (ours == theirs) | (torch.isnan(ours) & torch.isnan(theirs))
    if bool((special & ~matching).any()):
        return Comparison(name, False, "NaN or infinity in other places")
    error = torch.where(special, 0.0, (ours - theirs).abs())
    size = torch.where(special, 0.0, theirs.abs())
    worst = float(error.max()) if error.numel() else 0.0
    if "scaled" in rule:
        largest = float(size.max()) if size.numel() else 0.0
        limit = rule["scaled"] * max(1.0, largest)
        return Comparison(name, worst <= limit, f"error {worst:.3g}, at most {limit:.3g}")
    within = (error <= rule.get("atol", 0.0) + rule.get("rtol", 0.0) * size).double()
    share, needed = float(within.mean()) if within.numel() else 1.0, rule.get("share", 1.0)
    return Comparison(name, share >= needed, f"error {worst:.3g}, {share:.6f} within the rule, {needed} needed")


def _overlap(ours: Tensor, theirs: Tensor) -> float:
    rows = zip(ours.reshape(-1, ours.shape[-1]).tolist(), theirs.reshape(-1, theirs.shape[-1]).tolist(), strict=True)
    shares = [len(set(a) & set(b)) / max(1, len(set(b))) for a, b in rows]
    return sum(shares) / max(1, len(shares))
