"""Golden cases of FVQ: its quantizer. (The system comes later.)"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smalti.quantize import (
    Bridged,
    Codebook,
    Commitment,
    LinearBridge,
    ModulatedBridge,
    Quantize,
    SoftEntropy,
    Table,
    Trained,
    Vectors,
    VQBridge,
)
from tests.parity.adapters.images import asked, channels_first, shaped
from tests.parity.golden import Case

BRIDGE = "quantize.qbridge."
# Beginnings of official keys below `quantize.qbridge.`, and ours.
RENAMED = {
    "x_embedder.proj.": "to_tokens.",
    "y_embedder.embedding_table.weight": "condition",
    "pos_embed": "positions",
    "final_layer.adaLN_modulation.1.": "modulation.",
    "final_layer.linear.": "to_patches.",
    "linear_5.": "",
    "linear.": "0.",
}
INSIDE = {
    ".attn.": ".attention.",
    ".mlp.fc1.": ".mlp.0.",
    ".mlp.fc2.": ".mlp.2.",
    ".adaLN_modulation.1.": ".modulation.",
}


def run_quantizer(case: Case) -> dict[str, Tensor]:
    quantizer = _quantizer(case)
    z = case.outputs["pre_quant"].permute(0, 2, 3, 1)
    out = quantizer.train()(z)
    outputs = {
        "codebook": quantizer.codebooks()[0],
        "indices": shaped(case, out.codes),
        "quant": channels_first(out.z),
        "vq_loss": out.terms["codebook"],
        "commit_loss": out.terms["commitment"],
        "entropy_loss": out.terms["entropy"],
    }
    return asked(outputs, case.quantizer_outputs())


def _quantizer(case: Case) -> Quantize:
    config, rows = case.config, case.state["quantize.embedding.weight"]
    terms = [
        Codebook(),
        Commitment(config.get("commit_loss_beta", 0.25)),
        SoftEntropy(config.get("entropy_loss_ratio", 0.0)),
    ]
    base = Trained(len(rows), rows.shape[1], init=lambda weight: weight.copy_(rows))
    return Quantize(Table(_vectors(base, case)), terms=terms)


def _vectors(base: Trained, case: Case) -> Vectors:
    state = {_renamed(key): value for key, value in case.state.items() if key.startswith(BRIDGE)}
    if not state:
        return base  # the ablation without a bridge
    network = _network(base, state, case)
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    given = {key: value.reshape(shapes[key]) for key, value in state.items()}
    with torch.no_grad():
        missing = network.load_state_dict(given, strict=False).missing_keys
    assert set(missing) <= {"registers"}, missing
    return Bridged(base, network)


def _network(base: Trained, state: dict[str, Tensor], case: Case) -> nn.Module:
    if "to_tokens.weight" not in state:
        return LinearBridge(base.dim, sum(key.endswith(".weight") for key in state))
    patch, hidden = state["to_tokens.weight"].shape[-1], len(state["to_tokens.weight"])
    heads = case.config.get("VQBridge", {}).get("num_heads", 4)
    form = ModulatedBridge if "condition" in state else VQBridge
    return form(
        base.codes,
        base.dim,
        patch=patch,
        head_dim=hidden // heads,
        heads=heads,
        depth=len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        mlp_ratio=len(state["blocks.0.mlp.0.bias"]) / hidden if "blocks.0.mlp.0.bias" in state else 2.0,
    )


def _renamed(key: str) -> str:
    own = key.removeprefix(BRIDGE)
    for theirs, ours in RENAMED.items():
        if own.startswith(theirs):
            return ours + own.removeprefix(theirs)
    for theirs, ours in INSIDE.items():
        own = own.replace(theirs, ours)
    return own
