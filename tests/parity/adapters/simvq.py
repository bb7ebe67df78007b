"""Golden cases of SimVQ, images and audio."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from smalti.image.simvq import SimVQImage
from smalti.quantize import Quantized
from tests.parity.adapters.images import asked, channels_first, shaped, tokenizer_outputs
from tests.parity.golden import Case


def run(case: Case) -> dict[str, Tensor]:
    return _image(case) if "image" in case.inputs else _audio(case)


def run_quantizer(case: Case) -> dict[str, Tensor]:
    return _image_quantizer(case) if "image" in case.inputs else _audio_quantizer(case)


def _image(case: Case) -> dict[str, Tensor]:
    model = SimVQImage.from_official(case.config, case.state, legacy_training=True)
    parameters = dict(model.named_parameters())
    gradients = {
        "grad_proj_weight": parameters["quantizer.alphabet.vectors.network.weight"],
        "grad_proj_bias": parameters["quantizer.alphabet.vectors.network.bias"],
        "grad_conv_in": parameters["encoder.conv_in.weight"],
    }
    outputs, out = tokenizer_outputs(case, model, F.l1_loss, gradients)
    assert out.quantized is not None
    return asked({**outputs, **_quantizer_outputs(case, model, out.quantized)}, case.outputs)


def _image_quantizer(case: Case) -> dict[str, Tensor]:
    model = SimVQImage.from_official(case.config, case.state, legacy_training=True)
    quantized = model.quantizer(case.outputs["pre_quant"].permute(0, 2, 3, 1))
    outputs = {
        "indices": shaped(case, quantized.codes),
        "quant": channels_first(quantized.z),
        **_quantizer_outputs(case, model, quantized),
    }
    return asked(outputs, case.quantizer_outputs())


def _quantizer_outputs(case: Case, model: SimVQImage, quantized: Quantized) -> dict[str, Tensor]:
    base = model.state_dict()["quantizer.alphabet.vectors.weight"]
    return {
        "codebook": model.quantizer.codebooks()[0],
        "commit_loss": quantized.loss,
        "raw_entry_of_indices": channels_first(base[quantized.codes[..., 0]]),
    }
