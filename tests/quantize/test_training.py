"""What training gathers counts once: over micro-batches, and where activations are computed again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from smalti.quantize import Quantizer, create

LEARNING = {
    "ema": {"dim": 4, "codes": 12, "kmeans_iterations": 3, "expire": 0.0},
    "residual": {"dim": 4, "codes": 12, "levels": 3, "kmeans_iterations": 3, "expire": 0.0},
    "product": {"dim": 4, "codes": 12, "parts": 2, "kmeans_iterations": 3, "expire": 0.0},
}


def started(name: str) -> Quantizer:
    """After a first step, so that k-means has set the rows."""
    torch.manual_seed(0)
    quantizer = create(name, **LEARNING[name]).train()
    quantizer(torch.randn(2, 40, 4))
    quantizer.update()
    return quantizer


def step(quantizer: Quantizer, *batches: Tensor) -> dict[str, Tensor]:
    for batch in batches:
        out = quantizer(batch)
        (out.z.square().sum() + out.loss).backward()
    quantizer.update()
    return quantizer.state_dict()


@pytest.mark.parametrize("name", sorted(LEARNING))
def test_micro_batches_teach_what_their_whole_teaches(name: str) -> None:
    one = started(name)
    two = copy.deepcopy(one)
    z = torch.randn(6, 20, 4, requires_grad=True)
    whole, parts = step(one, z), step(two, *z.split([1, 3, 2]))
    for key, value in whole.items():
        assert torch.allclose(value, parts[key], atol=1e-6), key


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", sorted(LEARNING))
def test_activation_checkpointing_counts_once(name: str, reentrant: bool) -> None:
    plain = started(name)
    again = copy.deepcopy(plain)
    z = torch.randn(3, 20, 4, requires_grad=True)
    expected = step(plain, z)
    gradient, z.grad = z.grad, None

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        out = again(x)
        return out.z, out.loss

    vectors, loss = checkpoint(forward, z, use_reentrant=reentrant)
    (vectors.square().sum() + loss).backward()
    again.update()
    for key, value in expected.items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert gradient is not None and torch.allclose(gradient, z.grad)
