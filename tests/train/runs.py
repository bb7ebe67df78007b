"""Small runs for the tests of training: pictures, recipes, journals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from smalti.image.io import write_image
from smalti.train.loop import train
from smalti.train.recipe import Recipe

CODES = {
    "type": "residual",
    "dim": 4,
    "codes": 16,
    "levels": 2,
    "decay": 0.98,
    "expire": 0.03,
    "commitment_weight": 0.25,
}
TINY = {"patch": 2, "widths": [8, 8], "encoder_blocks": [1, 1], "decoder_blocks": [1, 1], "quantizer": CODES}


GAN = {"type": "image", "adversary": {"network": {"width": 8, "layers": 1}, "weight": 0.1, "start": 10}}


def pictures(folder: Path, count: int = 12, size: int = 40) -> Path:
    """Smooth random pictures; the last two are meant to be held out."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        coarse = torch.rand(1, 3, 5, 5, generator=generator)
        fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)[0]
        write_image(folder / f"{index:02d}.png", fine)
    return folder


def recipe(**changes: Any) -> Recipe:
    """A tiny photo tokenizer with EMA codebooks; `changes` replace top-level fields, `stage` those of the one stage."""
    stage = {
        "steps": 30,
        "batch": 4,
        "average": 0.9,
        "objective": {"type": "image", "l2_weight": 1.0},
        "optimizers": {"model": {"rate": 2e-3, "warmup": 5, "decay": "cosine", "clip": 1.0}},
        **changes.pop("stage", {}),
    }
    content = {
        "name": "tiny",
        "model": {"system": "smalti-photo-f8", "config": TINY},
        "data": {"type": "images", "held_out": ["1[01].png"], "rules": [{"type": "random-crop", "size": 16}]},
        "stages": [stage],
        "watch": {"log": 1, "samples": 10, "checkpoint": 10, "shown": 2},
        **changes,
    }
    return Recipe(**content)


def with_gan(steps: int = 30, **stage: object) -> Recipe:
    """The same with a discriminator, and Muon for the hidden layers."""
    muon = {"parameters": ["encoder.*.conv?.weight", "decoder.*.conv?.weight"], "rate": 1e-3}
    optimizers = {"model": {"rate": 1e-3, "muon": muon}, "discriminator": {"rate": 1e-3, "betas": (0.5, 0.9)}}
    return recipe(stage={"steps": steps, "objective": GAN, "optimizers": optimizers, **stage})


def run(plan: Recipe, data: Path, out: Path, **options: Any) -> list[dict[str, float]]:
    """Trains, and gives the journal's lines with losses."""
    train(plan, data=data, out=out, **options)
    return journal(out)


def journal(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def numbers(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """Journal lines without what a clock put in."""
    return [{name: value for name, value in line.items() if name != "samples_per_second"} for line in lines]


class KilledError(Exception):
    """Stands for a kill in the middle of a run."""


def killed_at(step: int) -> Callable[[Mapping[str, float]], None]:
    """A report that ends the run at a step, without any warning."""

    def report(line: Mapping[str, float]) -> None:
        if line["step"] >= step:
            raise KilledError

    return report
