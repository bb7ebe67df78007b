"""Golden cases of WavTokenizer: whole models in both published layouts, and the training of its codebook."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smalti.audio.wavtokenizer import Decode, WavTokenizer
from smalti.quantize import EMA, Commitment, Quantize, Table, Trained, kmeans
from tests.parity.golden import Case


def run(case: Case) -> dict[str, Tensor]:
    return run_quantizer(case) if "codebook_size" in case.config and "dim" in case.config else _whole(case)


def run_quantizer(case: Case) -> dict[str, Tensor]:
    config, inputs = case.config, case.inputs
    means, counts = kmeans(
        inputs["kmeans_samples"], config["codebook_size"], config["kmeans_iters"], start=inputs["kmeans_init_indices"]
    )
    outputs = {"kmeans_means": means, "kmeans_bins": counts}
    table = Table(
        Trained(config["codebook_size"], config["dim"]),
        learn=EMA(decay=config["decay"], eps=config["epsilon"]),
        revive=None,  # the published replacement of dead codes is overwritten in the step that makes it
    )
    table.load_state_dict(
        {
            "vectors.weight": case.state["_codebook.embed"],
            "ema_count": case.state["_codebook.cluster_size"],
            "ema_sum": case.state["_codebook.embed_avg"],
            "started": case.state["_codebook.inited"][0] != 0,
        }
    )
    quantizer = Quantize(table, terms=[Commitment(config["commitment_weight"])]).train()
    step = 1
    while f"x_{step}" in inputs:
        outputs |= _train_step(quantizer, table, inputs[f"x_{step}"], config["threshold_ema_dead_code"], step)
        step += 1
    return outputs


def _train_step(quantizer: Quantize, table: Table, x: Tensor, threshold: float, step: int) -> dict[str, Tensor]:
    expired = table.ema_count < threshold
    z = x.transpose(1, 2).clone().requires_grad_()
    out = quantizer(z)
    (gradient,) = torch.autograd.grad(out.z.square().sum() + out.loss, z)
    quantizer.update()
    state = {
        "inited": table.started[None].float(),
        "cluster_size": table.ema_count.clone(),
        "embed": table.rows().detach().clone(),
        "embed_avg": table.ema_sum.clone(),
    }
    return {
        f"quantized_{step}": out.z.transpose(1, 2),
        f"indices_{step}": out.codes[..., 0],
        f"commit_loss_{step}": out.loss[None],
        f"grad_x_{step}": gradient.transpose(1, 2),
        f"expired_mask_{step}": expired.long(),
        **{f"state_after_{step}/_codebook.{name}": value for name, value in state.items()},
    }


@torch.no_grad()
def _whole(case: Case) -> dict[str, Tensor]:
    model = WavTokenizer.from_official(_published(case.config), case.state)
    bandwidth = int(case.inputs["bandwidth_id"][0]) if "bandwidth_id" in case.inputs else 0
    wav = case.inputs["wav"][:, None]
    tokens = model.encode(wav, raw=True)
    vectors = model.embed(tokens)
    outputs = {
        "latents": model.latents(wav, raw=True).transpose(1, 2),
        "codes": tokens.codes.permute(2, 0, 1),
        "features": vectors.transpose(1, 2),
        "pos_net": model.backbone.pos_net(model.backbone.embed(vectors)).transpose(1, 2),
        "backbone": model.backbone(vectors, bandwidth),
        "audio": model.decode(tokens, Decode(bandwidth), raw=True)[:, 0],
    }
    return {name: value for name, value in outputs.items() if name in case.outputs}


def _published(config: dict[str, Any]) -> dict[str, Any]:
    """The shrunken configuration in the form of the published file: config.json as it is, the yaml rebuilt."""
    if config.get("model_type") == "wavtokenizer":
        return config
    features = {"dowmsamples": config["encoder"]["ratios(dowmsamples)"], "vq_bins": config["vq_bins"]}
    return {
        "model": {
            "init_args": {
                "sample_rate": config["sample_rate"],
                "feature_extractor": {"init_args": features},
                "backbone": {"init_args": config["backbone"]},
                "head": {"init_args": config["head"]},
            }
        }
    }
