"""Golden cases of TokenBridge, its quantizer: tables of a normal distribution, a code for every channel."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from smalti.quantize import Levels, Quantize, Quantizer
from smalti.quantize.bounds import Rescale
from smalti.quantize.levels import normal_levels
from tests.parity.golden import Case


def run_quantizer(case: Case) -> dict[str, Tensor]:
    latents = case.inputs["latents"].movedim(1, -1)
    given: dict[str, Tensor] = {}
    for name in case.outputs:
        setting = re.fullmatch(r"(?:idx|deq)_(b(\d+)_r(\d+(?:\.\d+)?))", name)
        if setting is None:
            continue
        label, bits, limit = setting.groups()
        vq = quantizer(latents.shape[-1], int(bits), float(limit), case.config["std_range"])
        codes = vq.encode(latents)
        given |= {f"idx_{label}": codes.movedim(-1, 1), f"deq_{label}": vq.decode(codes).movedim(-1, 1)}
    return given


def quantizer(dim: int, bits: int, limit: float, deviations: float) -> Quantizer:
    scale = Rescale(-limit, limit, deviations)
    table = normal_levels(bits, deviations=deviations, arithmetic=torch.float32)
    return Quantize(Levels([table] * dim, slots=(1,) * dim), before=scale, after=scale.back())
