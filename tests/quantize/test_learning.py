"""Learning rules against what they stand for, step by step."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize import EMA, Affine, Expire, Gradient, InPlace, Quantize, StepwiseEMA, Table, Trained, create


def inside(vq: Quantize) -> Table:
    assert isinstance(vq.alphabet, Table)
    return vq.alphabet


def table(**rules: object) -> Table:
    torch.manual_seed(0)
    return Table(Trained(7, 3, nn.init.normal_), **rules)  # type: ignore[arg-type]


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 11, 3, generator=generator) for _ in range(count)]


def test_micro_batches_teach_what_one_batch_teaches() -> None:
    rules = [EMA(0.8), InPlace(partial(torch.optim.SGD, lr=3.0))]
    for rule in rules:
        one, many = Quantize(table(learn=rule)), Quantize(table(learn=rule))
        for _ in range(3):
            parts = batches(4)
            one(torch.cat(parts))
            for part in parts:
                many(part)
            one.update()
            many.update()
        for key, value in one.state_dict().items():
            assert torch.allclose(value, many.state_dict()[key], atol=1e-6), key


def test_in_place_is_gradient_descent_on_the_distance_to_the_latents() -> None:
    vq = Quantize(table(learn=InPlace(partial(torch.optim.SGD, lr=2.0, momentum=0.9))))
    rows = nn.Parameter(vq.codebooks()[0].detach().clone())
    optimizer = torch.optim.SGD([rows], lr=2.0, momentum=0.9)
    for z in batches(4):
        codes = vq(z).codes.flatten()
        vq.update()
        optimizer.zero_grad()
        nn.functional.mse_loss(rows[codes], z.flatten(0, 1)).backward()
        optimizer.step()
        assert torch.allclose(vq.codebooks()[0], rows, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in vq.parameters())


def test_stepwise_averages_take_a_step_for_each_batch_and_set_rows_once() -> None:
    vq, by_hand = Quantize(table(learn=StepwiseEMA(0.7))), table(learn=EMA(0.7))
    rows = by_hand.vectors.weight.detach().clone()
    count, total = by_hand.ema_count.clone(), by_hand.ema_sum.clone()
    for z in batches(3):
        codes = vq(z).codes.flatten()
        assert torch.equal(codes, torch.cdist(z.flatten(0, 1), rows).argmin(1))  # rows wait for the update
        one_hot = nn.functional.one_hot(codes, 7).float()
        count = 0.7 * count + 0.3 * one_hot.sum(0)
        total = 0.7 * total + 0.3 * one_hot.t() @ z.flatten(0, 1)
    vq.update()
    smoothed = (count + 1e-5) / (count.sum() + 7e-5) * count.sum()
    assert torch.allclose(vq.codebooks()[0], total / smoothed[:, None], atol=1e-5)


def test_rates_of_rows_follow_their_weights() -> None:
    frozen = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    weighted = Quantize(table(learn=EMA(0.5, weights=lambda counts, sums: frozen)))
    plain = Quantize(table(learn=EMA(0.5)))
    before = inside(weighted).ema_sum.clone()
    for vq in (weighted, plain):
        vq(batches(1)[0])
        vq.update()
    kept, moved = inside(weighted).ema_sum, inside(plain).ema_sum
    assert torch.equal(kept[frozen == 0], before[frozen == 0])
    assert torch.allclose(kept[frozen == 1], moved[frozen == 1])


def test_rows_that_learn_by_gradient_may_start_from_kmeans() -> None:
    vq = Quantize(table(learn=Gradient(20)))
    centres = torch.randn(7, 3) * 5
    z = centres.repeat(20, 1)[None] + 0.01 * torch.randn(1, 140, 3)
    vq(z, noise={"start_rows": torch.arange(7)})
    assert torch.cdist(centres, vq.codebooks()[0].detach()).min(1).values.max() < 0.05
    rows = vq.codebooks()[0].detach().clone()
    vq.update()
    assert torch.equal(vq.codebooks()[0], rows)  # nothing but the optimizer moves them
    assert inside(vq).stored_rows().requires_grad


def test_a_replaced_code_starts_with_the_count_that_the_rule_says() -> None:
    vq = Quantize(table(learn=EMA(0.9), revive=Expire(threshold=1.0, reset=5.0)))
    inner = vq.alphabet
    assert isinstance(inner, Table)
    with torch.no_grad():
        inner.vectors.weight[3] = 1e3
        inner.ema_count[3] = 0.5
    z = batches(1)[0]
    vq(z, noise={"replacement_rows": torch.arange(7)})
    vq.update()
    assert inner.ema_count[3] == 5.0
    assert torch.equal(inner.vectors.weight[3], z.flatten(0, 1)[3])
    assert torch.equal(inner.ema_sum[3], 5 * z.flatten(0, 1)[3])


def test_replacements_come_from_every_batch_since_the_last_update() -> None:
    vq = Quantize(table(revive=Expire(threshold=100.0)))
    parts = batches(3)
    for part in parts:
        vq(part, noise={"replacement_rows": torch.tensor([0, 21, 22, 43, 44, 65, 1])})
    vq.update()
    everything = torch.cat(parts).flatten(0, 1)
    assert torch.equal(vq.codebooks()[0], everything[[0, 21, 22, 43, 44, 65, 1]])


def test_a_recomputed_forward_pass_counts_once() -> None:
    from torch.utils.checkpoint import checkpoint

    for reentrant in (True, False):
        once, twice = Quantize(table(learn=EMA(0.8))), Quantize(table(learn=EMA(0.8)))
        z = batches(1)[0].requires_grad_()
        once(z).z.sum().backward()
        checkpoint(lambda z, vq: vq(z).z, z, twice, use_reentrant=reentrant).sum().backward()
        once.update()
        twice.update()
        assert torch.equal(once.codebooks()[0], twice.codebooks()[0])


def test_affine_rows_have_the_latents_mean_and_deviation() -> None:
    vectors = Affine(Trained(50, 3, nn.init.normal_))
    vq = Quantize(Table(vectors, learn=EMA(0.9)))
    generator = torch.Generator().manual_seed(0)
    z = 100 + torch.randn(1, 400, 3, generator=generator) * torch.tensor([1.0, 5.0, 0.1])
    vq(z)
    seen = vectors().detach()
    assert torch.allclose(seen.mean(0), z[0].mean(0), rtol=1e-5)
    assert torch.allclose(seen.std(0, unbiased=False), z[0].std(0, unbiased=False), rtol=1e-3)
    x = z[0, :5]
    there_and_back = (vectors.to_stored(x) - vectors.rows.weight.mean(0)) / vectors.rows.weight.std(0, unbiased=False)
    assert torch.allclose(there_and_back, (x - z[0].mean(0)) / z[0].std(0, unbiased=False), atol=1e-3)
    vq.update()
    assert torch.allclose(vectors.latent_moments[0], z[0].mean(0))


def test_affine_moments_of_micro_batches_are_those_of_the_whole() -> None:
    one, many = (Quantize(Table(Affine(Trained(9, 3, nn.init.ones_)), learn=EMA(0.9))) for _ in range(2))
    for parts in (batches(3), batches(2)):
        one(torch.cat(parts))
        one.update()
        for part in parts:
            many(part)
        many.update()
    first, second = (inside(vq).vectors for vq in (one, many))
    assert isinstance(first, Affine) and isinstance(second, Affine)
    assert torch.allclose(first.latent_moments, second.latent_moments, atol=1e-6)


def test_evaluation_leaves_affine_moments_alone() -> None:
    vq = Quantize(Table(Affine(Trained(9, 3, nn.init.normal_)), learn=EMA(0.9)))
    vq(batches(1)[0])
    vq.update()
    state = {key: value.clone() for key, value in vq.state_dict().items()}
    vq.eval()
    vq(batches(2)[1] * 7)
    vq.encode(batches(2)[1] * 7)
    vq.update()
    assert all(torch.equal(value, state[key]) for key, value in vq.state_dict().items())


def train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    quantizers = {name: create(name, dim=4, codes=16, **options) for name, options in SHARED_BY_RANKS.items()}
    torch.manual_seed(100 + rank)  # every rank draws its own data and its own random numbers
    for step in range(20):
        z = torch.randn(2, 30 + 5 * rank + step % 3, 4)
        for vq in quantizers.values():
            vq(z if step else z[:, :0])
            if step % 2 == 0:
                vq(z)  # a second micro-batch
            vq.update()
    torch.save({name: vq.state_dict() for name, vq in quantizers.items()}, f"{folder}/rank{rank}.pt")
    dist.barrier()  # a rank that leaves early can take the others down with it
    dist.destroy_process_group()


# Rows that learn by gradient are equal through the gradients' mean, which is not this package's: others are here.
SHARED_BY_RANKS: dict[str, dict[str, Any]] = {
    "affine": {"expire": 1.0},
    "in-place": {"expire": 1.0},
    "shared-residual": {"levels": 3, "dropout": True, "expire": 1.0},
    "sample-dropout-residual": {"levels": 3, "expire": 1.0},
    "beam-residual": {"levels": 2, "beam": 2, "expire": 1.0},
    "grouped-residual": {"levels": 2, "groups": 2, "dropout": True, "expire": 1.0},
    "multi-head": {"heads": 2, "expire": 1.0},
    "stochastic": {"expire": 1.0},
    "diveq": {"expire": 1.0},
}


def test_tables_are_bit_equal_on_all_ranks(tmp_path: Path) -> None:
    mp.spawn(train, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for name, state in first.items():
        for key, value in state.items():
            assert torch.equal(value, second[name][key]), (name, key)


def test_rules_that_can_not_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="weights"):
        StepwiseEMA(weights=lambda counts, sums: counts)
    with pytest.raises(ConfigError, match="decays"):
        Affine(Trained(3, 2), latent_decay=1.0)
