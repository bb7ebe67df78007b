"""Golden cases of E-ViLM: BEiT v2's quantizer, with one step of its learning rule. (The system comes later.)"""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.quantize import Commitment, NormalisedEMA, Quantize, Table, Trained
from tests.parity.adapters.images import asked, shaped
from tests.parity.golden import Case


def run_quantizer(case: Case) -> dict[str, Tensor]:
    config, state = case.config, case.state
    rows = state["quantize.embedding.weight"]
    started = bool(state.get("quantize.embedding.initted", torch.ones(1)))
    learn = NormalisedEMA(config.get("decay", 0.99), kmeans_iterations=0 if started else 10)
    table = Table(Trained(len(rows), rows.shape[1], init=lambda weight: weight.copy_(rows)), space="unit", learn=learn)
    table.ema_count.copy_(state["quantize.cluster_size"])
    quantizer = Quantize(table, terms=[Commitment(config.get("beta", 1.0))]).train()
    out = quantizer(case.outputs["pre_quant"])
    quantizer.update()
    outputs = {
        "codes": shaped(case, out.codes, "codes"),
        "zq": out.z.movedim(-1, 1).reshape(case.outputs["zq"].shape),
        "commit_loss": out.loss,
        "codebook_after": table.stored_rows(),
        "cluster_size_after": table.ema_count,
    }
    return asked(outputs, case.quantizer_outputs())
