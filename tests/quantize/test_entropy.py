"""Factorised entropies against the softmax over all codes, in float64."""

from __future__ import annotations

import math
import resource
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize import BitEntropy, DotEntropy, FreeBits, ScalarEntropy, Scalars, Softplus, Table, Trained, create
from smalti.quantize.assign import Assigned
from smalti.quantize.bounds import SoftClamp
from smalti.quantize.entropy import log_added, log_clamped
from smalti.quantize.warped import Warped


def brute(x: Tensor, table: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Row entropy, batch entropy and mean distribution from all codes at once."""
    p = F.softmax(2 * x.double() @ table.double().t() / temperature, dim=1)
    mean = p.mean(0)
    return -torch.special.xlogy(p, p).sum(1).mean(), -torch.special.xlogy(mean, mean).sum(), mean


def nothing() -> Assigned:
    return Assigned(torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0))


@pytest.mark.parametrize("bits", [1, 2, 7, 10])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_bit_entropy_and_its_gradient_are_those_of_the_softmax(bits: int, scale: float) -> None:
    scalars, term = Scalars((2,) * bits, scale=scale), BitEntropy(temperature=0.3, diversity=0.7, certainty=1.3)
    x = (torch.randn(60, bits) * 0.2).requires_grad_()
    sample, batch = term.entropies(x, scalars)
    expected = brute(x, scalars.codebooks()[0], 0.3)
    for got, wanted in zip((sample, batch), expected, strict=False):
        assert abs(float(got.detach()) - float(wanted.detach())) < 1e-5 * bits
    ours = torch.autograd.grad(term(x, nothing(), scalars), x)[0]
    theirs = torch.autograd.grad(1.3 * expected[0] - 0.7 * expected[1], x)[0]
    assert torch.allclose(ours, theirs.float(), atol=1e-5)


@pytest.mark.parametrize("grid", ["fsq", "symmetric"])
def test_entropy_of_any_levels_is_that_of_the_softmax(grid: str) -> None:
    scalars = Scalars((5, 4, 3, 2), grid=grid, groups=2)  # type: ignore[arg-type]
    x = (torch.randn(40, 8) * 0.3).requires_grad_()
    term = ScalarEntropy(temperature=0.2)
    sample, batch = term.entropies(x, scalars)
    tables = scalars.codebooks()
    each = [brute(part, table, 0.2) for part, table in zip(x.split(4, 1), tables, strict=True)]
    expected = [torch.stack([one[i] for one in each]).mean() for i in (0, 1)]
    assert torch.allclose(sample.double(), expected[0], atol=1e-5) and torch.allclose(
        batch.double(), expected[1], atol=1e-5
    )
    ours = torch.autograd.grad(sample - batch, x)[0]
    assert torch.allclose(ours, torch.autograd.grad(expected[0] - expected[1], x)[0].float(), atol=1e-5)


def test_bits_are_levels_of_two() -> None:
    scalars, x = Scalars((2,) * 6, groups=3), torch.randn(50, 18)
    for one, other in zip(
        BitEntropy(temperature=1.0).entropies(x, scalars),
        ScalarEntropy(temperature=1.0).entropies(x, scalars),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-5)


def test_pooled_groups_share_one_mean_distribution() -> None:
    scalars, x = Scalars((2,) * 5, groups=4), torch.randn(30, 20) * 0.1
    pooled = BitEntropy(temperature=0.1, pooled=True).entropies(x, scalars)
    expected = brute(x.reshape(-1, 5), scalars.codebooks()[0], 0.1)
    assert torch.allclose(pooled[0].double(), expected[0], atol=1e-5)
    assert torch.allclose(pooled[1].double(), expected[1], atol=1e-5)
    alone = [brute(part, scalars.codebooks()[0], 0.1)[1] for part in x.split(5, 1)]
    own = BitEntropy(temperature=0.1).entropies(x, scalars)[1]
    assert torch.allclose(own.double(), torch.stack(alone).mean(), atol=1e-5)
    assert float(pooled[1]) > float(own)


def test_independent_bits_have_the_same_entropy_in_any_parts() -> None:
    """BSQ's acceptance: groups of one bit agree with the joint entropy to 1e-3 where bits are independent."""
    torch.manual_seed(0)
    scalars = Scalars((2,) * 8, scale=8**-0.5)
    x = F.normalize(torch.randn(20_000, 8), dim=1)
    joint = BitEntropy(temperature=1.0).entropies(x, scalars)
    for size in (1, 2, 4):
        parts = BitEntropy(temperature=1.0, joint=2**size).entropies(x, scalars)
        assert torch.allclose(parts[0], joint[0])
        assert abs(float(parts[1] - joint[1])) < 1e-3


def test_parts_bound_the_joint_entropy_from_above() -> None:
    scalars = Scalars((2,) * 9)
    x = torch.randn(40, 3).repeat(1, 3) * 0.05  # bits that depend on each other
    values = [float(BitEntropy(temperature=0.1, joint=2**size).entropies(x, scalars)[1]) for size in (1, 3, 9)]
    assert values == sorted(values, reverse=True) and values[0] > values[-1] + 0.1


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scalars, x = Scalars((2,) * 8), (torch.randn(500, 8) * 0.05).requires_grad_()
    whole = BitEntropy(temperature=0.1).entropies(x, scalars)[1]
    monkeypatch.setattr("smalti.quantize.entropy.SOFT_BUFFER", 16 * 33)
    chunked = BitEntropy(temperature=0.1).entropies(x, scalars)[1]
    assert torch.allclose(whole, chunked, atol=1e-5)
    assert torch.allclose(torch.autograd.grad(whole, x)[0], torch.autograd.grad(chunked, x)[0], atol=1e-6)


def test_published_logarithms_are_their_formulas() -> None:
    scalars, x = Scalars((2,) * 6), torch.randn(20, 6)
    mean = brute(x, scalars.codebooks()[0], 0.5)[2]
    added = BitEntropy(temperature=0.5, logarithm=log_added(1e-5)).entropies(x, scalars)[1]
    clamped = BitEntropy(temperature=0.5, logarithm=log_clamped(1e-3)).entropies(x, scalars)[1]
    assert torch.allclose(added.double(), -(mean * (mean + 1e-5).log()).sum(), atol=1e-5)
    assert torch.allclose(clamped.double(), -(mean * mean.clamp(min=1e-3).log()).sum(), atol=1e-5)


def test_a_share_of_the_rows_estimates_their_entropy() -> None:
    torch.manual_seed(0)
    scalars, x = Scalars((2,) * 4), torch.randn(4000, 4) * 0.02
    whole = BitEntropy(temperature=0.1).entropies(x, scalars)
    part = BitEntropy(temperature=0.1, share=0.25).entropies(x, scalars)
    assert part[0] != whole[0] and abs(float(part[0] - whole[0])) < 0.05
    assert torch.equal(part[1], whole[1])


def test_20_bits_are_exact_jointly() -> None:
    scalars, x = Scalars((2,) * 20), torch.randn(6, 20) * 0.1
    expected = brute(x, scalars.codebooks()[0], 0.5)
    sample, batch = BitEntropy(temperature=0.5).entropies(x, scalars)
    assert abs(float(sample - expected[0])) < 1e-4 and abs(float(batch - expected[1])) < 1e-4


@pytest.mark.parametrize("name, options", [("group-wise", {"bits": 8, "groups": 8}), ("bsq", {"bits": 63})])
def test_64_bits_train_in_ordinary_memory(name: str, options: dict[str, int]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    vq = create(name, **options)
    z = torch.randn(4, 32 * 32, vq.dim, requires_grad=True)
    out = vq(z)
    (out.z.square().mean() + out.loss).backward()
    assert z.grad is not None and bool(torch.isfinite(z.grad).all()) and bool(z.grad.any())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 600  # MiB; one float for each of 2^64 codes would be 7e13 MiB


def test_one_slot_of_many_bits_is_taken_in_equal_parts() -> None:
    vq = create("lookup-free", bits=62)
    z = torch.randn(2, 200, 62, requires_grad=True)
    out = vq(z)
    out.loss.backward()
    assert z.grad is not None and bool(torch.isfinite(z.grad).all())
    assert -62 * math.log(2) * 0.1 - 1e-3 <= float(out.terms["entropy"].detach()) <= 62 * math.log(2) * 0.1


def test_entropy_sees_latents_before_a_bound() -> None:
    scalars, x = Scalars((4, 4), grid="fsq"), torch.randn(30, 2)
    term = ScalarEntropy(temperature=0.5)
    bounded = term.entropies(x, Warped(scalars, SoftClamp()))
    assert torch.equal(bounded[0], term.entropies(x, scalars)[0])


def test_entropies_refuse_alphabets_that_are_no_grid() -> None:
    table = Table(Trained(8, 2))
    with pytest.raises(ConfigError, match="Scalars"):
        ScalarEntropy().entropies(torch.randn(3, 2), table)
    with pytest.raises(ConfigError, match="levels are all 2"):
        BitEntropy().entropies(torch.randn(3, 2), Scalars((3, 3)))


def test_weights_are_attributes_that_a_schedule_may_change() -> None:
    vq = create("lookup-free", bits=4)
    z = torch.randn(1, 50, 4) * 0.01
    before = vq(z).terms["entropy"]
    vq.terms[0].weight *= 3  # type: ignore[index, union-attr]
    assert torch.allclose(vq(z).terms["entropy"], 3 * before)


def test_softplus_keeps_a_term_positive() -> None:
    scalars, x = Scalars((2,) * 5), torch.randn(50, 5)
    inner = BitEntropy()
    expected = F.softplus(inner(x, nothing(), scalars) + 5)
    assert torch.equal(Softplus(inner)(x, nothing(), scalars), expected) and float(expected) > 0


def test_free_bits_cost_nothing_until_they_are_spent() -> None:
    certain, open_ = torch.full((1, 6), 50.0), torch.zeros(1, 6)
    scalars = Scalars((2,) * 6)
    term = FreeBits(free=2 * math.log(2))
    assert float(term(open_, nothing(), scalars)) == 0.0
    assert math.isclose(float(term(certain, nothing(), scalars)), 4 * math.log(2), rel_tol=1e-5)


def test_dot_entropy_is_its_formula_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    table, x = Table(Trained(7, 3, nn.init.normal_)), torch.randn(11, 3, requires_grad=True)
    logits = x @ table.rows().t() / 0.5
    p = logits.softmax(1)
    mean = p.mean(0)
    expected = -(p * (logits + 1e-5).log_softmax(1)).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    monkeypatch.setattr("smalti.quantize.entropy.SOFT_BUFFER", 14)
    got = DotEntropy(1.0, 0.5)(x, nothing(), table)
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.allclose(torch.autograd.grad(got, x)[0], torch.autograd.grad(expected, x)[0], atol=1e-5)


def half_of_the_batch(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    gradients = []
    for real in masks():
        z = latents().requires_grad_()
        half = slice(2 * rank, 2 * rank + 2)
        out = create("lookup-free", bits=6, commitment_weight=0.0)(z[half], mask=real[half])
        out.terms["entropy"].backward()
        gradient = z.grad / 2  # type: ignore[operator]  # DDP averages over ranks
        dist.all_reduce(gradient)
        gradients.append(gradient)
    if rank == 0:
        torch.save(gradients, f"{folder}/gradients.pt")
    dist.barrier()  # a rank that leaves early can take the others down with it
    dist.destroy_process_group()


def latents() -> Tensor:
    return torch.randn(4, 20, 6, generator=torch.Generator().manual_seed(0)) * 0.02


def masks() -> list[Tensor]:
    """All positions real; then none of the second rank's, then none at all."""
    every = torch.ones(4, 20, dtype=torch.bool)
    half = every.clone()
    half[2:] = False
    return [every, half, torch.zeros_like(every)]


def test_two_ranks_have_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(half_of_the_batch, args=(str(tmp_path),), nprocs=2)
    ranks = torch.load(tmp_path / "gradients.pt", weights_only=True)
    term, scalars = BitEntropy(diversity=1.0), Scalars((2,) * 6)
    for real, gradient in zip(masks()[:2], ranks, strict=False):
        z = latents().requires_grad_()
        rows = z[real]
        sample, batch = term.entropies(rows, scalars)
        # A rank without rows halves what DDP averages of the rows' own entropy, as of any mean over rows.
        share = 1.0 if real.all() else 0.5
        expected = torch.autograd.grad(0.1 * (share * sample - batch), z)[0]
        assert torch.allclose(gradient, expected, atol=1e-6)
    assert not bool(ranks[2].any())
