"""Golden cases of pyramid codes: pulses, numbers, and the levels of the amplitude."""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.quantize import nearest
from smalti.quantize.enumeration import Enumeration, count_table, to_words
from smalti.quantize.pyramid import beta_levels, directions, least_squares_gain, nearest_pulses
from tests.parity.adapters.images import asked
from tests.parity.golden import Case


def run(case: Case) -> dict[str, Tensor]:
    return asked(_codes(case), case.outputs)


def run_quantizer(case: Case) -> dict[str, Tensor]:
    return asked(_codes(case), case.quantizer_outputs())


def _codes(case: Case) -> dict[str, Tensor]:
    dim, pulses, levels = case.config["L"], case.config["K"], 2 ** case.config["scale_bits"]
    weight = case.inputs["W"]
    groups = weight.reshape(len(weight), -1, dim)
    enumeration = Enumeration(dim, pulses)
    points = nearest_pulses(groups.flatten(0, 1), pulses, "l1")
    gain = least_squares_gain(groups.flatten(0, 1), points)
    unit = directions(points).view_as(groups)
    norm = weight.double().norm(dim=1)
    share = groups.double().square().sum(-1) / norm.square()[:, None]
    table = beta_levels(dim, groups.shape[1], levels)
    chosen = nearest(share.float().reshape(-1, 1), table[:, None]).view(share.shape)
    length = (table.double()[chosen].sqrt() * norm[:, None])[..., None]
    rows, columns = case.outputs["count_table"].shape
    return {
        "pulses": points,
        "index_words_le32": to_words(enumeration.numbers(points), -(-enumeration.bits // 32)),
        "ls_scale": gain,
        "row_norm": norm.float(),
        "frac": share.float(),
        "beta_levels": table,
        "frac_index": chosen,
        "rec_ls": (unit * gain.view(*share.shape, 1)).reshape(weight.shape),
        "rec_q": (unit * length).float().reshape(weight.shape),
        "count_table": torch.tensor(count_table(rows - 1, columns - 1)),
    }
