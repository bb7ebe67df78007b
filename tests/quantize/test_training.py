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


MASKED = {
    "mimi": {"dim": 8, "codes": 12, "levels": 3, "code_dim": 4},
    "residual-fsq": {"levels": (5, 5, 3), "stages": 3},
    "residual": {"dim": 8, "codes": 12, "levels": 3},
    "rotation-trick": {"dim": 8, "codes": 12},
}


@pytest.mark.parametrize("name", sorted(MASKED))
def test_what_stands_at_masked_positions_reaches_no_gradient(name: str) -> None:
    torch.manual_seed(0)
    quantizer = create(name, **MASKED[name]).train()
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 4:] = False
    z = torch.randn(2, 9, quantizer.dim)
    z[~mask] = torch.nan
    z.requires_grad_()
    out = quantizer(z, mask=mask)
    (out.z.square().sum() + out.loss).backward()
    assert z.grad is not None and bool((z.grad[~mask] == 0).all()) and bool(torch.isfinite(z.grad).all())
    for key, parameter in quantizer.named_parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), key


def test_a_loaded_state_starts_anew_from_data() -> None:
    vq = create("ema", dim=4, codes=12, kmeans_iterations=3)
    before = copy.deepcopy(vq.state_dict())
    vq(torch.randn(2, 40, 4))
    vq.update()
    vq(torch.randn(2, 40, 4))  # gathered, and not applied
    vq.load_state_dict(before)
    vq.update()
    assert torch.equal(vq.state_dict()["ema_count" if "ema_count" in before else "alphabet.ema_count"], torch.ones(12))
    vq(torch.randn(2, 40, 4))
    assert bool(vq.state_dict()["alphabet.started"])


def test_a_model_that_is_cast_leaves_its_quantizer_float32() -> None:
    for name, options in LEARNING.items():
        quantizer = create(name, **options)
        rows = [table.clone() for table in quantizer.codebooks()]
        torch.nn.Sequential(quantizer).to(torch.bfloat16).half()
        for table, same in zip(quantizer.codebooks(), rows, strict=True):
            assert table.dtype == torch.float32 and torch.equal(table, same)


def test_decoding_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    for name, options in {"simvq": {"dim": 16, "codes": 9}, **MASKED}.items():
        quantizer = create(name, **options).eval()
        codes = quantizer.encode(torch.randn(2, 5, quantizer.dim))
        expected, own = quantizer.decode(codes), quantizer.lookup(codes)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(quantizer.decode(codes), expected), name
            assert torch.equal(quantizer.lookup(codes), own), name
