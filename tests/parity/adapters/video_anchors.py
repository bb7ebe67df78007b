"""Golden cases of video-anchors, their quantizers: FSQ of Cosmos and VidTok, VAR's multi-scale residual quantizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smalti.quantize import (
    BoundFSQ,
    Commitment,
    MultiScale,
    Quantize,
    ScalarEntropy,
    Scalars,
    Through,
    Warped,
    create,
)
from smalti.quantize.entropy import log_clamped
from smalti.quantize.scales import Smoothing
from tests.parity.golden import Case

STEP, STEPS, START = 500, 2000, 3.0  # of the case; the entropy weight falls from three times its value in so many steps


def run_quantizer(case: Case) -> dict[str, Tensor]:
    if "v_patch_nums" in case.config:
        return _var(case)
    return _vidtok(case) if "z" in case.outputs else _cosmos(case)


def _cosmos(case: Case) -> dict[str, Tensor]:
    vq = create("fsq", levels=case.config["levels"])
    given: dict[str, Tensor] = {}
    for key in [key for key in case.outputs if key.endswith("/z")]:
        name, out = key.removesuffix("/z"), vq(case.outputs[key].movedim(1, -1))
        given |= {f"{name}/codes": out.z.movedim(-1, 1), f"{name}/indices": out.codes[..., 0]}
    return given


def _vidtok(case: Case) -> dict[str, Tensor]:
    levels = case.config["levels"]
    bound = BoundFSQ(levels)
    weight = 0.1 * (1 + (START - 1) * max(0.0, 1 - STEP / STEPS))
    entropy = ScalarEntropy(weight, temperature=0.01, logarithm=log_clamped(1e-5))
    vq = Quantize(
        Warped(Scalars(levels, grid="fsq"), bound), estimator=Through(bound), terms=[entropy, Commitment(0.25)]
    )
    out = vq(case.outputs["z"].movedim(1, -1))
    return {"codes": out.z.movedim(-1, 1), "indices": out.codes[..., 0], "aux_loss": out.loss}


def _var(case: Case) -> dict[str, Tensor]:
    vq = var_quantizer(case.config, case.state)
    latents = case.inputs["f"].permute(0, 2, 3, 1)
    codes = vq.encode(latents)
    partials = vq.partials(codes)
    out = vq.train()(latents)
    return {
        **{f"indices_{scale}": part.flatten(1) for scale, part in enumerate(vq.split(codes))},
        "f_hat_first": partials[0].permute(0, 3, 1, 2),
        "f_hat_last": partials[-1].permute(0, 3, 1, 2),
        "f_hat_from_indices": vq.decode(codes).permute(0, 3, 1, 2),
        "f_hat_train": out.z.permute(0, 3, 1, 2),
        "vq_loss": out.loss,
        "var_input": vq.next_inputs(codes),
    }


def var_quantizer(config: dict[str, Any], state: dict[str, Tensor]) -> MultiScale:
    """VAR's quantizer from its configuration and its state below `quantize.`."""
    vq = create(
        "multi-scale",
        dim=config["Cvae"],
        codes=config["vocab_size"],
        sizes=config["v_patch_nums"],
        smoothings=config["share_quant_resi"],
        share=config["quant_resi"],
        unit=config["using_znorm"],
        commitment_weight=config["beta"],
    )
    assert isinstance(vq, MultiScale) and isinstance(vq.levels[0], Quantize)
    rows = next(vq.levels[0].alphabet.parameters())
    with torch.no_grad():
        rows.copy_(state["quantize.embedding.weight"])
        for index, smoothing in enumerate(dict.fromkeys(vq.smooth)):
            if isinstance(smoothing, Smoothing):
                _load(smoothing, state, index)
    return vq


def _load(smoothing: Smoothing, state: dict[str, Tensor], index: int) -> None:
    names = (f"qresi_ls.{index}.", f"{index}.", "qresi.")
    prefix = next(f"quantize.quant_resi.{name}" for name in names if f"quantize.quant_resi.{name}weight" in state)
    smoothing.conv.load_state_dict({key: state[prefix + key] for key in ("weight", "bias")})
