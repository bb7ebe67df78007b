"""Golden cases of equal-info: the reference coder's bits, greedy and exact windows, whichever a case asks for."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from smalti.text.equal_info.coder import PRECISION, encode_bits
from smalti.text.equal_info.counts import CountModel
from smalti.text.equal_info.windows import encode_windows, greedy_windows
from tests.parity.golden import Case

COUNTS = re.compile(r"order[01]_counts")
BITS = re.compile(r"ac_bits_precision(\d+)")
WINDOWS = re.compile(r"(exact|greedy)_b(\d+)_(?:words|lengths)")


def run(case: Case) -> dict[str, Tensor]:
    text = case.inputs["text"].numpy()
    counts = next(tensor for name, tensor in case.inputs.items() if COUNTS.fullmatch(name))
    model = CountModel.of_counts(counts.numpy())
    outputs: dict[str, Tensor] = {}
    for name in case.outputs:
        if name == "ac_bits_after_symbol":
            outputs[name] = torch.from_numpy(encode_bits(text, model, PRECISION)[1])
        elif match := BITS.fullmatch(name):
            outputs[name] = torch.from_numpy(encode_bits(text, model, int(match[1]))[0])
    for kind, bits in sorted({match.groups() for match in map(WINDOWS.fullmatch, case.outputs) if match}):
        if kind == "exact":
            found = encode_windows(text, model, int(bits))
        else:
            found = greedy_windows(
                text[: case.config.get("greedy_prefix_bytes", len(text))], model, int(bits), PRECISION
            )
        outputs[f"{kind}_b{bits}_words"] = torch.from_numpy(found.words.astype(np.int64))
        outputs[f"{kind}_b{bits}_lengths"] = torch.from_numpy(found.lengths)
    return outputs
