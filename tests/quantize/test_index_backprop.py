"""IBQ's assignment against its formula with the whole softmax in memory."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smalti.errors import InputError
from smalti.quantize import DotEntropy, DoubleQuantization, IndexBackprop, Quantize, SoftEntropy, Table, Trained
from smalti.quantize.index_backprop import _largest_traced, largest_k, largest_products


def quantizer(codes: int, dim: int, *terms: object) -> Quantize:
    table = Table(Trained(codes, dim, nn.init.normal_))
    return Quantize(table, assign=IndexBackprop(), terms=list(terms))  # type: ignore[arg-type]


@pytest.mark.parametrize("buffer", [2**22, 50])
def test_gradients_are_those_of_the_soft_one_hot(buffer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.quantize.index_backprop.BUFFER", buffer)
    vq = quantizer(9, 4)
    rows = vq.alphabet.vectors.weight  # type: ignore[union-attr]
    z, upstream = torch.randn(1, 30, 4, requires_grad=True), torch.randn(30, 4)
    out = vq(z)
    ours = torch.autograd.grad((out.z[0] * upstream).sum(), [z, rows])  # type: ignore[list-item]
    p = (z[0] @ rows.t()).softmax(1)  # type: ignore[operator]
    hard = F.one_hot(p.argmax(1), 9).float()
    expected = (hard + p - p.detach()) @ rows  # type: ignore[operator]
    theirs = torch.autograd.grad((expected * upstream).sum(), [z, rows])  # type: ignore[list-item]
    assert torch.allclose(out.z[0], expected, atol=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_every_row_learns_in_one_step() -> None:
    vq = quantizer(64, 8)
    vq(torch.randn(1, 32, 8)).z.square().sum().backward()
    gradient = vq.alphabet.vectors.weight.grad  # type: ignore[union-attr]
    assert gradient is not None and int((gradient.abs().sum(1) > 0).sum()) == 64  # type: ignore[union-attr]


def test_codes_are_the_largest_inner_products_not_the_nearest() -> None:
    vq = quantizer(50, 5)
    z = torch.randn(1, 400, 5) * 3
    rows = vq.codebooks()[0].detach().double()
    assert torch.equal(vq.encode(z)[0, :, 0], (z[0].double() @ rows.t()).argmax(1))
    assert not torch.equal(vq.encode(z)[0, :, 0], torch.cdist(z[0].double(), rows).argmin(1))


@pytest.mark.parametrize("dim", [8, 100, 256])
def test_of_equal_rows_the_first_is_taken_in_every_batch(dim: int) -> None:
    torch.manual_seed(0)
    base, x = torch.randn(37, dim), torch.randn(120, dim)
    table = base.repeat(29, 1)
    expected = []
    for row in x[:20]:  # in exact arithmetic
        numbers = [[Fraction(float(number)) for number in each] for each in [row, *base]]
        products = [sum(a * b for a, b in zip(numbers[0], each, strict=True)) for each in numbers[1:]]
        expected.append(products.index(max(products)))
    codes = largest_products(x, table)
    assert codes[:20].tolist() == expected
    assert torch.equal(codes, (x.double() @ base.double().t()).argmax(1))
    assert torch.equal(codes, torch.cat([largest_products(row[None], table) for row in x]))
    assert torch.equal(_largest_traced(x, table), codes)
    best, products = largest_k(x, table, 40)  # more than repeat one row, and more than a first look keeps
    exact = (x.double() @ table.double().t()).sort(dim=1, descending=True).values[:, :40]
    assert torch.equal(best[:, :29], codes[:, None] + 37 * torch.arange(29))
    assert torch.allclose(products, exact, rtol=0, atol=1e-12)


def test_rows_and_tables_without_length_get_the_first_code() -> None:
    assert not largest_products(torch.zeros(3, 4), torch.randn(50, 4)).any()
    assert not largest_products(torch.randn(3, 4), torch.zeros(500, 4)).any()
    assert not largest_products(torch.randn(3, 4), torch.ones(500, 4)).any()


def test_candidates_and_margins_are_those_of_products() -> None:
    vq = quantizer(3, 2)
    with torch.no_grad():
        vq.alphabet.vectors.weight.copy_(torch.tensor([[10.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))  # type: ignore
    codes, _, costs = vq.candidates(torch.tensor([[1.0, 0.0]]), 3)
    assert codes[0, :, 0].tolist() == [0, 2, 1] and costs.tolist() == [[-10.0, -1.0, 0.0]]
    assert vq.encode_with_margin(torch.tensor([[1.0, 0.0]]))[1].item() == 9.0
    vq, z = quantizer(300, 5), torch.randn(1, 200, 5)
    products = (z[0].double() @ vq.codebooks()[0].detach().double().t()).sort(dim=1, descending=True, stable=True)
    codes, _, costs = vq.candidates(z, 7)
    assert torch.equal(codes[0, :, :, 0], products.indices[:, :7])
    assert torch.allclose(costs[0], -products.values[:, :7], rtol=0, atol=1e-12)
    margin = vq.encode_with_margin(z)[1][0, :, 0]
    assert torch.allclose(margin, (products.values[:, 0] - products.values[:, 1]).float(), rtol=1e-6, atol=0)
    with pytest.raises(InputError, match="k must be in"):
        vq.candidates(z, 301)


def test_the_loss_is_its_three_parts() -> None:
    vq = quantizer(12, 4, DoubleQuantization(commitment=0.25))
    z = torch.randn(1, 20, 4, requires_grad=True)
    rows = vq.alphabet.vectors.weight  # type: ignore[union-attr]
    p = (z[0] @ rows.t()).softmax(1)  # type: ignore[operator]
    hard = F.one_hot(p.argmax(1), 12).float()
    soft = (hard + p - p.detach()) @ rows  # type: ignore[operator]
    q = hard @ rows  # type: ignore[operator]
    expected = (
        (soft - z[0]).square().mean() + (q.detach() - z[0]).square().mean() + 0.25 * (q - z[0].detach()).square().mean()
    )
    loss = vq(z).loss
    assert torch.allclose(loss, expected, atol=1e-6)
    ours, theirs = (torch.autograd.grad(each, [z, rows]) for each in (loss, expected))  # type: ignore[list-item]
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("choice", [DotEntropy, SoftEntropy])
def test_chunked_training_has_the_gradients_of_the_whole_softmax(
    choice: type[SoftEntropy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smalti.quantize.index_backprop.BUFFER", 40)
    monkeypatch.setattr("smalti.quantize.entropy.SOFT_BUFFER", 40)
    vq = quantizer(13, 4, DoubleQuantization(commitment=0.25), choice(weight=0.3, temperature=0.7))
    rows = vq.alphabet.vectors.weight  # type: ignore[union-attr]
    z, upstream = torch.randn(2, 17, 4, requires_grad=True), torch.randn(2, 17, 4)
    out = vq(z)
    x, e = z.detach().double().flatten(0, 1).requires_grad_(), rows.detach().double().requires_grad_()  # type: ignore
    p = (x @ e.t()).softmax(1)
    hard = F.one_hot(p.argmax(1), 13).double()
    soft, q = (hard + p - p.detach()) @ e, hard @ e
    double = F.mse_loss(soft, x) + F.mse_loss(x, q.detach()) + 0.25 * F.mse_loss(q, x.detach())
    logits = x @ e.t() if choice is DotEntropy else -torch.cdist(x, e).square()
    logp = (logits / 0.7).log_softmax(1)
    mean = logp.exp().mean(0)
    entropy = -(logp.exp() * logp).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    loss = double + 0.3 * entropy
    assert torch.allclose(out.loss.double(), loss, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # arithmetic stays float32 in the backward pass, too
        ours = torch.autograd.grad((out.z * upstream).sum() + out.loss, [z, rows])  # type: ignore[list-item]
    theirs = torch.autograd.grad((soft * upstream.double().flatten(0, 1)).sum() + loss, [x, e])
    assert torch.allclose(ours[0].double().flatten(0, 1), theirs[0], atol=1e-5)
    assert torch.allclose(ours[1].double(), theirs[1], atol=1e-5)


def test_nothing_of_rows_times_codes_is_kept_for_the_backward_pass() -> None:
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    vq, z = quantizer(300, 2, DoubleQuantization(), DotEntropy()), torch.randn(1, 200, 2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = vq(z)
        loss = out.z.sum() + out.loss
    assert max(sizes) <= 300 * 2
    loss.backward()


def test_the_traced_choice_is_the_first_of_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.quantize.index_backprop.TRACED_WIDTH", 5)
    monkeypatch.setattr("smalti.quantize.index_backprop.TRACED_PARTS", 4)
    distinct = torch.randn(9, 3)
    table, x = torch.cat([distinct, distinct, distinct[:5]]), torch.randn(200, 3)  # 23 rows; ties across parts
    assert torch.equal(_largest_traced(x, table), (x.double() @ distinct.double().t()).argmax(1))


def test_memory_of_2_to_18_codes_does_not_grow_with_rows() -> None:
    grown = {rows: peak_of_training(rows) for rows in (16, 256)}
    assert grown[256] - grown[16] < 0.25 * (256 - 16)  # MiB; one row of logits is 1 MiB


def peak_of_training(rows: int) -> float:
    """MiB that one training step adds to the peak of a process of its own."""
    program = f"""
import resource, torch
from smalti.quantize import create
torch.manual_seed(0)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
vq, z = create("ibq", dim=8, codes=2**18), torch.randn(1, {rows}, 8, requires_grad=True)
before = peak()
out = vq(z)
(out.z.sum() + out.loss).backward()
assert z.grad is not None and bool(torch.isfinite(z.grad).all())
print(peak() - before)
"""
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
