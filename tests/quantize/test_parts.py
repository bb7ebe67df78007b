"""Estimators, terms, scalar grids and compositions against formulas written out by hand."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smalti.errors import ConfigError, InputError
from smalti.quantize import (
    BitEntropy,
    BoundFSQ,
    Codebook,
    Commitment,
    Dropout,
    Parallel,
    Quantize,
    Residual,
    Rotation,
    Sampled,
    Scalars,
    SoftEntropy,
    StraightThrough,
    Table,
    Trained,
    UniformPrior,
    create,
)
from smalti.quantize.assign import Assigned


def gradient(estimator: object, x: torch.Tensor, q: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    out = estimator(x, q)  # type: ignore[operator]
    assert torch.equal(out, q)  # bit for bit
    out.backward(upstream)
    assert x.grad is not None
    return x.grad


def test_straight_through_copies_the_gradient() -> None:
    x, q, upstream = torch.randn(3, 5, 4).unbind(0)
    assert torch.equal(gradient(StraightThrough(), x, q, upstream), upstream)


def test_rotation_is_the_rotation_that_carries_x_to_q() -> None:
    x, q, upstream = torch.randn(3, 6, 4).unbind(0)
    got = gradient(Rotation(), x, q, upstream)
    for row in range(len(x)):
        u, v = x[row] / x[row].norm(), q[row] / q[row].norm()
        w = (u + v) / (u + v).norm()
        rotation = torch.eye(4) - 2 * torch.outer(w, w) + 2 * torch.outer(v, u)
        scaled = rotation * q[row].norm() / x[row].norm()
        assert torch.allclose(scaled @ x[row], q[row], atol=1e-5)
        assert torch.allclose(got[row], scaled.t() @ upstream[row], atol=1e-5)


@pytest.mark.parametrize("grid", ["symmetric", "fsq"])
@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("levels", [(2, 2, 2), (5, 4, 3), (8,)])
def test_scalar_codes_are_nearest_in_their_spelled_out_table(levels: tuple[int, ...], order: str, grid: str) -> None:
    scalars = Scalars(levels, groups=2, order=order, grid=grid, scale=0.7 if grid == "symmetric" else 1.0)  # type: ignore[arg-type]
    tables = scalars.codebooks()
    assert len(tables[0]) == math.prod(levels)
    assert len({tuple(row.tolist()) for row in tables[0]}) == math.prod(levels)
    x = torch.randn(200, scalars.dim)
    codes = scalars.nearest(x)
    for group, part in enumerate(x.split(len(levels), dim=1)):
        assert torch.equal(codes[:, group], torch.cdist(part.double(), tables[group].double()).argmin(1))
    whole = torch.arange(math.prod(levels))[:, None].expand(-1, 2)
    assert torch.equal(scalars.nearest(scalars.lookup(whole)), whole)


def test_the_first_dimension_is_the_fastest_or_the_slowest_digit() -> None:
    little, big = Scalars((2, 3), order="little"), Scalars((2, 3), order="big")
    assert little.codebooks()[0][1].tolist() == [1.0, -1.0]
    assert big.codebooks()[0][1].tolist() == [-1.0, 0.0]


def test_scalar_candidates_are_the_cheapest_of_the_whole_product() -> None:
    scalars = Scalars((3, 4), groups=2)
    x = torch.randn(20, 4)
    codes, costs = scalars.candidates(x, 9)
    table = scalars.codebooks()[0]
    every = torch.tensor(list(itertools.product(range(12), repeat=2)))
    vectors = torch.cat([table[every[:, 0]], table[every[:, 1]]], 1)
    distances = torch.cdist(x.double(), vectors.double()).square()
    assert torch.allclose(costs, distances.sort(1).values[:, :9], atol=1e-9)
    assert torch.allclose((scalars.lookup(codes) - x[:, None]).double().square().sum(-1), costs, atol=1e-6)


def test_zero_is_minus_one_where_levels_are_signs() -> None:
    assert Scalars((2, 2)).nearest(torch.tensor([[0.0, -0.0], [1e-30, -1e-30]])).flatten().tolist() == [0, 1]


@pytest.mark.parametrize("levels", [(8, 5), (4, 7), (3, 2)])
def test_bounded_latents_reach_every_level_and_none_beyond(levels: tuple[int, ...]) -> None:
    z = torch.linspace(-12, 12, 4001)[:, None].expand(-1, len(levels))
    bounded = BoundFSQ(levels)(z)
    for dimension, count in enumerate(levels):
        step = (bounded[:, dimension] * (count // 2)).round()
        assert step.unique().numel() == count
        assert int(step.min()) == -(count // 2) and int(step.max()) == count - 1 - count // 2


def test_bit_entropy_is_that_of_the_softmax_over_all_codes() -> None:
    x = torch.randn(50, 5).double() * 0.02
    scalars = Scalars((2,) * 5)
    sample, batch = BitEntropy(temperature=0.05).entropies(x, scalars)
    table = scalars.codebooks()[0].double()
    p = F.softmax(2 * x @ table.t() / 0.05, dim=1)
    assert torch.allclose(sample, -(p * p.log()).sum(1).mean())
    mean = p.mean(0)
    assert torch.allclose(batch, -(mean * mean.log()).sum())


def test_bit_entropy_of_64_bits_needs_no_table_and_has_a_gradient() -> None:
    vq = create("lookup-free", bits=16, groups=4)
    z = torch.randn(2, 30, 64, requires_grad=True)
    vq(z).loss.backward()
    assert z.grad is not None and bool(torch.isfinite(z.grad).all()) and bool(z.grad.any())


def test_soft_entropy_is_its_formula_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    table, x = Table(Trained(7, 3, nn.init.normal_)), torch.randn(11, 3, requires_grad=True)
    assigned = Assigned(torch.zeros(11, 1, dtype=torch.int64), x.detach())
    term = SoftEntropy(weight=1.0, temperature=0.5)
    a = -torch.cdist(x, table.rows()).square() / 0.5
    p = a.softmax(1)
    mean = p.mean(0)
    expected = -(p * (a + 1e-5).log_softmax(1)).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    monkeypatch.setattr("smalti.quantize.entropy.SOFT_BUFFER", 14)
    got = term(x, assigned, table)
    assert torch.allclose(got, expected, atol=1e-5)
    ours, theirs = torch.autograd.grad(got, x)[0], torch.autograd.grad(expected, x)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_commitment_and_codebook_push_their_own_side_only() -> None:
    for term, side in ((Commitment(0.5), "latents"), (Codebook(0.5), "table")):
        vq = Quantize(Table(Trained(4, 3, nn.init.normal_)), terms=[term])
        z = torch.randn(2, 5, 3, requires_grad=True)
        out = vq(z)
        expected = 0.5 * (z - vq.decode(out.codes)).square().mean()
        assert torch.allclose(out.loss, expected)
        out.loss.backward()
        rows = vq.alphabet.vectors.weight  # type: ignore[union-attr]
        assert bool((z.grad if side == "latents" else rows.grad).any())  # type: ignore[union-attr]
        assert (rows.grad if side == "latents" else z.grad) is None or not bool(
            (rows.grad if side == "latents" else z.grad).any()  # type: ignore[union-attr]
        )


def test_gumbel_draws_in_training_and_decides_in_evaluation() -> None:
    logits = nn.Linear(3, 6)
    vq = Quantize(Table(Trained(6, 3, nn.init.normal_)), assign=Sampled(logits, 0.7), terms=[UniformPrior(1.0)])
    z = torch.randn(1, 400, 3)
    out = vq(z, noise={"gumbel": torch.zeros(400, 6)})
    plain = logits(z[0])
    assert torch.equal(out.codes[0, :, 0], plain.argmax(1))
    q = plain.softmax(1)
    assert torch.allclose(out.terms["kl"], (q * (q * 6).log()).sum(1).mean(), atol=1e-6)
    assert not torch.equal(vq(z).codes, vq(z).codes)
    vq.eval()
    assert torch.equal(vq(z).codes[0, :, 0], plain.argmax(1))


def test_residual_error_falls_with_every_level() -> None:
    torch.manual_seed(0)
    rvq = create("residual", dim=6, codes=32, levels=4)
    for _ in range(30):
        rvq(torch.randn(4, 64, 6))
        rvq.update()
    rvq.eval()
    z = torch.randn(4, 64, 6)
    codes = rvq.encode(z)
    errors = [float((rvq.decode(codes[..., :n]) - z).square().mean()) for n in range(1, 5)]
    assert errors == sorted(errors, reverse=True)


def test_residual_gradient_is_one_unless_the_published_sum_is_asked_for() -> None:
    levels = [create("vq", dim=3, codes=8, commitment_weight=0.0) for _ in range(4)]
    for estimator, factor in ((None, 1.0), ("levels", 4.0)):
        z = torch.randn(1, 5, 3, requires_grad=True)
        Residual(levels, estimator=estimator).eval()(z).z.sum().backward()  # type: ignore[arg-type]
        assert torch.allclose(z.grad, torch.full_like(z, factor))  # type: ignore[arg-type]


def test_dropout_uses_a_prefix_and_marks_the_rest() -> None:
    rvq = Residual([create("vq", dim=3, codes=8) for _ in range(6)], dropout=Dropout(at_least=2, multiple_of=2))
    used = {int((rvq(torch.randn(1, 2, 3)).codes >= 0).sum(-1).max()) for _ in range(60)}
    assert used == {2, 4, 6}
    out = rvq(torch.randn(1, 2, 3), noise={"levels": torch.tensor(4)})
    assert (out.codes[..., :4] >= 0).all() and (out.codes[..., 4:] == -1).all()
    assert torch.allclose(rvq.decode(out.codes), rvq.decode(out.codes[..., :4]))


def test_beam_candidates_of_a_residual_are_never_worse_than_greedy() -> None:
    torch.manual_seed(0)
    rvq = Residual([Quantize(Table(Trained(8, 4, nn.init.normal_))) for _ in range(3)])
    z = torch.randn(2, 20, 4)
    greedy = (rvq.decode(rvq.encode(z)) - z).square().sum(-1)
    _, values, costs = rvq.candidates(z, 8)
    assert (costs[..., 0] <= greedy + 1e-5).all()
    assert torch.allclose((values - z[..., None, :]).square().sum(-1), costs.float(), atol=1e-5)


def test_parallel_parts_see_their_own_dimensions_or_everything() -> None:
    parts = [create("vq", dim=2, codes=8) for _ in range(3)]
    z = torch.randn(2, 5, 6)
    product = Parallel(parts)
    expected = torch.cat([part.encode(piece) for part, piece in zip(parts, z.split(2, -1), strict=True)], -1)
    assert torch.equal(product.encode(z), expected)
    added = Parallel(parts, join="sum")
    small = z[..., :2]
    assert torch.allclose(added.decode(added.encode(small)), sum(part.decode(part.encode(small)) for part in parts))  # type: ignore[arg-type]


def test_a_batch_without_real_positions_costs_nothing() -> None:
    vq = create("ema", dim=3, codes=4)
    z = torch.randn(1, 5, 3, requires_grad=True)
    out = vq(z, mask=torch.zeros(1, 5, dtype=torch.bool))
    out.loss.backward()
    vq.update()
    assert float(out.loss.detach()) == 0.0 and (out.codes == -1).all()


def test_perplexity_and_utilisation_are_those_of_the_histogram() -> None:
    vq = create("fsq", levels=(4, 4)).eval()
    out = vq(torch.randn(2, 300, 2))
    p = torch.bincount(out.codes.flatten(), minlength=16) / 600
    assert torch.allclose(out.terms["perplexity"][0].log(), -(p * p.clamp(min=1e-9).log()).sum(), atol=1e-4)
    assert torch.allclose(out.terms["utilisation"][0], (p > 0).float().mean())


def test_wrong_options_name_themselves() -> None:
    with pytest.raises(ConfigError, match="simvq"):
        create("no such")
    with pytest.raises(ConfigError, match="63 bits"):
        Scalars((2,) * 64)
    with pytest.raises(ConfigError, match="wings"):
        create("vq", dim=2, codes=2, wings=3)
    with pytest.raises(InputError, match="slots"):
        create("residual", dim=2, codes=4, levels=2).decode(torch.zeros(1, 3, dtype=torch.int64))


def test_candidates_of_gumbel_are_its_largest_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.quantize.assign.LOGITS", 100)
    torch.manual_seed(0)
    quantizer = create("gumbel", dim=4, codes=30).eval()
    assert isinstance(quantizer, Quantize)
    z = torch.randn(1, 50, 4)
    logits = quantizer.assign.logits(z[0]).sort(dim=1, descending=True, stable=True)  # type: ignore[operator, union-attr]
    codes, _, costs = quantizer.candidates(z, 4)
    assert torch.equal(codes[0, :, :, 0], logits.indices[:, :4])
    assert torch.allclose(costs[0], -logits.values[:, :4], atol=1e-6)
    assert torch.equal(quantizer.encode(z), codes[..., 0, :])
    margin = quantizer.encode_with_margin(z)[1][0, :, 0]
    assert torch.allclose(margin, logits.values[:, 0] - logits.values[:, 1], atol=1e-5)
    with pytest.raises(InputError, match="k must be in"):
        quantizer.candidates(z, 31)


@pytest.mark.parametrize("logits", [2**23, 90])
def test_gumbel_learns_in_chunks_as_from_the_whole_softmax(logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.quantize.assign.LOGITS", logits)
    torch.manual_seed(0)
    quantizer = create("gumbel", dim=4, codes=30, temperature=0.7, kl_weight=0.3).train()
    z, upstream, noise = torch.randn(1, 50, 4, requires_grad=True), torch.randn(50, 4), torch.randn(50, 30)
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = quantizer(z, noise={"gumbel": noise})
    assert max(sizes) <= 50 * 30 if logits == 2**23 else max(sizes) <= 4 * 30  # noise is given; nothing else is kept
    parameters = [z, *quantizer.parameters()]
    ours = torch.autograd.grad((out.z[0] * upstream).sum() + out.loss, parameters)
    rows = quantizer.codebooks()[0]
    scores = quantizer.assign.logits(z[0])  # type: ignore[operator, union-attr]
    soft = ((scores + noise) / 0.7).softmax(1)
    codes = soft.argmax(1)
    q = scores.softmax(1)
    divergence = 0.3 * (q * (q * 30).log()).sum(1).mean()
    vectors = (F.one_hot(codes, 30) + soft - soft.detach()) @ rows
    assert torch.equal(out.codes[0, :, 0], codes)
    assert torch.allclose(out.z[0], vectors, atol=1e-6) and torch.allclose(out.loss, divergence, atol=1e-6)
    theirs = torch.autograd.grad((vectors * upstream).sum() + divergence, parameters)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ["gumbel", "gumbel-straight-through"])
def test_soft_training_needs_no_more_memory_for_more_rows(name: str) -> None:
    program = f"""
import resource, torch
from smalti.quantize import create
torch.set_num_threads(1)
quantizer = create({name!r}, dim=4, codes=2**14)
peaks = []
for rows in (1024, 2048):  # whole chunks; each matrix of 1024 rows and all codes has 64 MiB
    out = quantizer(torch.randn(1, rows, 4, requires_grad=True))
    (out.z.sum() + out.loss).backward()
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0])
"""
    grown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert float(grown) < 64
