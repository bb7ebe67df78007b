"""Golden cases of taming-transformers: VQGAN and minGPT."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.generate import Sampling
from smalti.image.taming import VQGAN, MinGPT
from smalti.tokens import Tokens
from tests.parity.adapters.images import asked, channels_first, shaped, tokenizer_outputs
from tests.parity.golden import Case


def run(case: Case) -> dict[str, Tensor]:
    return _mingpt(case) if "n_layer" in case.config else _tokenizer(case)


def run_quantizer(case: Case) -> dict[str, Tensor]:
    quantized = _load(case).quantizer(case.outputs["pre_quant"].permute(0, 2, 3, 1))
    outputs = {
        "indices": shaped(case, quantized.codes),
        "quant": channels_first(quantized.z),
        "quant_loss": quantized.loss,
        "kl": quantized.loss,
    }
    return asked(outputs, case.quantizer_outputs())


def _load(case: Case) -> VQGAN:
    # Gumbel cases were made with the default of the quantizer's class, which the published model overrides.
    config: dict[str, Any] = {"kl_weight": 5e-4, **case.config}
    return VQGAN.from_official(config, case.state, legacy_training=True)


def _tokenizer(case: Case) -> dict[str, Tensor]:
    vqgan = _load(case)
    parameters = dict(vqgan.named_parameters())
    gradients = {
        "grad_codebook": parameters["quantizer.alphabet.vectors.weight"],
        "grad_conv_in": parameters["encoder.conv_in.weight"],
    }
    outputs, out = tokenizer_outputs(case, vqgan, F.l1_loss, gradients)
    return asked({**outputs, "quant_loss": out.loss, "kl": out.loss}, case.outputs)


def _mingpt(case: Case) -> dict[str, Tensor]:
    indices = case.inputs["indices"]
    condition, codes = indices[:, :1], indices[:, 1:, None]
    model = MinGPT.from_official(case.config, case.state, positions=codes.shape[1:2], condition_length=1)
    tokens = Tokens.of(codes, model.config.streams["codes"].vocab)
    modelled = model(tokens, condition=condition)
    outputs = {"logits": modelled.logits, "loss": modelled.loss}
    for name in case.outputs:
        if match := re.fullmatch(r"greedy_from_(\d+)", name):
            prompt = tokens.prefix(positions=int(match[1]) - 1)
            drawn = model.generate(len(indices), prompt=prompt, sampling=Sampling(temperature=0), condition=condition)
            outputs[name] = torch.cat([condition, drawn.codes[..., 0]], dim=1)
    return asked(outputs, case.outputs)
