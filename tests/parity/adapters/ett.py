"""Golden cases of ETT: the quantizer of IBQ, with its gradients. (The system comes later.)"""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.quantize import DotEntropy, DoubleQuantization, IndexBackprop, Quantize, Table, Trained
from tests.parity.adapters.images import asked, channels_first, shaped
from tests.parity.golden import Case


def run_quantizer(case: Case) -> dict[str, Tensor]:
    config, rows = case.config, case.state["quantize.embedding.weight"]
    table = Table(Trained(len(rows), rows.shape[1], init=lambda weight: weight.copy_(rows)))
    quantizer = Quantize(
        table, assign=IndexBackprop(), terms=[DoubleQuantization(commitment=config.get("beta", 0.25))]
    ).train()
    latent = case.outputs["latent"].requires_grad_()
    z = latent.permute(0, 2, 3, 1)
    out = quantizer(z)
    sample, batch = DotEntropy(temperature=config.get("entropy_temperature", 0.01)).entropies(z.flatten(0, -2), table)
    certainty = config.get("sample_minimization_weight", 1.0)
    entropy = certainty * sample - config.get("batch_maximization_weight", 1.0) * batch
    outputs = {
        "codes": shaped(case, out.codes, "codes"),
        "zq": channels_first(out.z),
        "quant_loss": out.loss,
        "sample_entropy": sample,
        "avg_entropy": batch,
        "entropy_loss": entropy,
    }
    weighted = (channels_first(out.z) * case.inputs["cotangent"]).sum()
    for name, scalar in (("zq", weighted), ("quant_loss", out.loss), ("entropy", entropy)):
        to_latent, to_rows = torch.autograd.grad(scalar, [latent, table.stored_rows()], retain_graph=True)
        outputs[f"grad_latent_from_{name}"], outputs[f"grad_codebook_from_{name}"] = to_latent, to_rows
    return asked(outputs, case.quantizer_outputs())
