"""Golden cases of SimVQ, images and audio."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.audio.simvq import SimVQAudio
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


def _audio(case: Case) -> dict[str, Tensor]:
    model = SimVQAudio.from_official(case.config, case.state, legacy_training=True)
    waveform = case.inputs["waveform"]
    with torch.no_grad():
        latents = model.latents(waveform, raw=True)
        tokens = model.encode(waveform, raw=True)
        outputs = {
            "pre_quant": latents.transpose(1, 2),
            "features": model.backbone(model.embed(tokens)),
            "recon": model.decode(tokens, raw=True),
        }
    return asked({**outputs, **_audio_codebook(model, latents)}, case.outputs)


def _audio_quantizer(case: Case) -> dict[str, Tensor]:
    model = SimVQAudio.from_official(case.config, case.state, legacy_training=True)
    return _audio_codebook(model, case.outputs["pre_quant"].transpose(1, 2))


def _audio_codebook(model: SimVQAudio, latents: Tensor) -> dict[str, Tensor]:
    out = model.quantizer(latents)
    weight = dict(model.named_parameters())["quantizer.alphabet.vectors.network.weight"]
    return {
        "codebook": model.quantizer.codebooks()[0],
        "indices": out.codes.flatten(),
        "quant": out.z.transpose(1, 2),
        "commit_loss": out.loss,
        "grad_proj_weight": torch.autograd.grad(out.loss, weight)[0],
    }
