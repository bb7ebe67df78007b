"""What the adapters of image tokenizers share: their golden cases have the same inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smalti.image.base import ImageTokenizer
from smalti.tokenizer import Reconstruction
from tests.parity.golden import Case


def channels_first(rows: Tensor) -> Tensor:
    """(B, H, W, D) -> (B, D, H, W), as the official code has it."""
    return rows.permute(0, 3, 1, 2)


def tokenizer_outputs(
    case: Case, tokenizer: ImageTokenizer, reconstruction_loss: Any, gradients: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], Reconstruction]:
    """Latents, codes, reconstructions, the training loss and its gradients, under the names that the cases use.

    Args:
        case: the case.
        tokenizer: loaded from it.
        reconstruction_loss: of the reconstruction and the image; the quantizer's is added.
        gradients: output name -> the parameter whose gradient it is.
    """
    image = case.inputs["image"]
    tokens = tokenizer.encode(image, raw=True)
    out = tokenizer(image, raw=True)
    assert out.x is not None and out.quantized is not None  # these tokenizers have both
    outputs = {
        "pre_quant": channels_first(tokenizer.latents(image, raw=True)),
        "indices": shaped(case, tokens.codes),
        "quant": channels_first(out.quantized.z),
        "recon": out.x,
        "recon_from_indices": tokenizer.decode(tokens, raw=True),
        "train_loss": reconstruction_loss(out.x, image) + out.loss,
    }
    wanted = {name: parameter for name, parameter in gradients.items() if name in case.outputs}
    if wanted:
        values = torch.autograd.grad(outputs["train_loss"], list(wanted.values()), retain_graph=True)
        outputs.update(zip(wanted, values, strict=True))
    return outputs, out


def shaped(case: Case, codes: Tensor, name: str = "indices") -> Tensor:
    """Codes as the official code gives them, flat or on their grid, under a name."""
    return codes.reshape(case.outputs[name].shape)


def asked(outputs: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Those outputs that the case compares."""
    wanted = set(names)
    return {name: value for name, value in outputs.items() if name in wanted}
