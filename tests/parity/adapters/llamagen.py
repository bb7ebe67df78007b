"""Golden cases of LlamaGen: the tokenizer, and the transformer of classes or of text."""

from __future__ import annotations

import re
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from smalti.generate import Sampling
from smalti.image.llamagen import LlamaGen, LlamaGenAR
from smalti.quantize import Quantized
from smalti.tokens import Tokens
from tests.parity.adapters.images import asked, channels_first, shaped, tokenizer_outputs
from tests.parity.golden import Case

LOSSES = {"vq_loss": "codebook", "commit_loss": "commitment", "entropy_loss": "entropy"}


def run(case: Case) -> dict[str, Tensor]:
    return _transformer(case) if "n_layer" in case.config else _tokenizer(case)


def run_quantizer(case: Case) -> dict[str, Tensor]:
    model = LlamaGen.from_official(case.config, case.state)
    quantized = model.quantizer(case.outputs["pre_quant"].permute(0, 2, 3, 1))
    outputs = {
        "indices": shaped(case, quantized.codes),
        "quant": channels_first(quantized.z),
        **_losses(quantized),
    }
    return asked(outputs, case.quantizer_outputs())


def _losses(quantized: Quantized) -> dict[str, Tensor]:
    return {name: quantized.terms[term] for name, term in LOSSES.items()}


def _tokenizer(case: Case) -> dict[str, Tensor]:
    model = LlamaGen.from_official(case.config, case.state)
    parameters = dict(model.named_parameters())
    gradients = {
        "grad_codebook": parameters["quantizer.alphabet.vectors.weight"],
        "grad_conv_in": parameters["encoder.conv_in.weight"],
    }
    outputs, out = tokenizer_outputs(case, model, F.mse_loss, gradients)
    assert out.quantized is not None
    return asked({**outputs, **_losses(out.quantized)}, case.outputs)


def _transformer(case: Case) -> dict[str, Tensor]:
    model = LlamaGenAR.from_official(case.config, case.state)
    spec = model.config.streams["codes"]
    indices = case.inputs["indices"]
    tokens = Tokens.of(indices.reshape(-1, *spec.positions, 1), spec.vocab)
    conditions = _conditions(case, model)
    modelled = model(tokens, **conditions)
    outputs = {"logits": modelled.logits, "loss": modelled.loss}
    for name in case.outputs:
        if match := re.fullmatch(r"greedy_cfg([\d.]+)", name):
            sampling = Sampling(temperature=0, guidance=max(1.0, float(match[1])))
            drawn = model.generate(len(indices), sampling=sampling, **conditions)
            outputs[name] = drawn.flat()
    return asked(outputs, case.outputs)


def _conditions(case: Case, model: LlamaGenAR) -> dict[str, Any]:
    condition = case.inputs["cond"]
    if "label" in model.conditions:
        return {"label": condition}
    masks = [tensor for name, tensor in case.inputs.items() if "mask" in name]
    length = model.config.condition.length
    return {
        "features": condition[:, :length],
        "features_mask": masks[0][:, :length] if masks else None,
    }
