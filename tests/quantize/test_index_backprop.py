"""IBQ's assignment against its formula with the whole softmax in memory."""

from __future__ import annotations

import resource

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smalti.quantize import DoubleQuantization, IndexBackprop, Quantize, Table, Trained


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


def test_many_codes_train_in_ordinary_memory() -> None:
    vq = quantizer(2**18, 8, DoubleQuantization())
    z = torch.randn(1, 256, 8, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = vq(z)
    (out.z.sum() + out.loss).backward()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 256 * 2**18 * 4 / 2**20 * 0.75  # MiB; below one matrix of logits
    assert z.grad is not None and bool(torch.isfinite(z.grad).all())
