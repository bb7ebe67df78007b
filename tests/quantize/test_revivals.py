"""Dead-code rules: each against numbers made by hand, and that the steps after a replacement leave it alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize import (
    EMA,
    Anchors,
    BelowMean,
    Bridged,
    Expire,
    IntervalRestart,
    Quantize,
    RarelyUsed,
    Revive,
    Table,
    TiledEMA,
    TiledRestart,
    Trained,
    Unused,
)

NEAR, FAR = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[90.0, 90.0], [-90.0, 90.0]])


def table(revive: Revive, *, learn: EMA | None = None, rows: Tensor | None = None) -> Table:
    rows = torch.cat([NEAR, FAR]) if rows is None else rows
    return Table(Trained(*rows.shape, init=lambda weight: weight.copy_(rows)), learn=learn, revive=revive).train()


def steps(made: Table, count: int, z: Tensor | None = None, noise: dict[str, Tensor] | None = None) -> None:
    quantizer = Quantize(made).train()
    for _ in range(count):
        quantizer(torch.cat([NEAR, NEAR + 0.1]) if z is None else z, noise=noise or {})
        quantizer.update()


RULES = {
    "expire": Expire(0.9),
    "below mean": BelowMean(share=0.97, every=2),
    "interval": IntervalRestart(every=3),
    "unused": Unused(steps=3),
    "rarely used": RarelyUsed(share=0.5, every=3),
    "tiled": TiledRestart(threshold=0.95),
    "anchors": Anchors(),
}


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("learn", [None, EMA(decay=0.9)])
def test_dead_codes_come_to_the_latents_and_stay_there(name: str, learn: EMA | None) -> None:
    torch.manual_seed(0)
    made = table(RULES[name], learn=learn)
    moved_at = None
    for step in range(40):
        steps(made, 1)
        if moved_at is None and float(made.stored_rows().detach().abs().max()) < 3:
            moved_at = step
        # Nothing brings a replaced row back, least of all the next steps of the moving average.
        assert moved_at is None or float(made.stored_rows().detach().abs().max()) < 3
        assert bool((made.ema_count > 0).all())
    assert moved_at is not None


def test_mimi_replaces_every_fifth_step_what_is_below_a_tenth_of_the_mean() -> None:
    made = table(BelowMean())
    made.ema_count.copy_(torch.tensor([10.0, 10.0, 0.5, 1.2]))
    noise = {"replacement_rows": torch.tensor([3, 2, 1, 0])}
    steps(made, 4, noise=noise)
    assert torch.equal(made.stored_rows()[2:], FAR)
    steps(made, 1, noise=noise)
    counts = torch.tensor([10.0, 10.0, 0.5, 1.2]) * 0.99**5 + torch.tensor([2.0, 2.0, 0, 0]) * (1 - 0.99**5)
    assert counts[2] < 0.1 * counts.mean() < counts[3]
    assert torch.equal(made.stored_rows()[2], NEAR[1])  # latent number 1
    assert torch.equal(made.stored_rows()[3], FAR[1])
    assert torch.allclose(made.ema_count, torch.where(torch.tensor([0, 0, 1, 0]).bool(), counts.mean(), counts))


def test_glm_restarts_what_decayed_below_one_choice() -> None:
    made = table(IntervalRestart(every=4), learn=EMA())
    made.ema_count.copy_(torch.tensor([1.0, 1.0, 0.999, 1.001]))
    steps(made, 3)
    assert torch.equal(made.ema_count < 0.99**3, torch.tensor([False, False, True, False]))
    assert float(made.stored_rows()[2:].abs().max()) > 50
    steps(made, 1)
    assert float(made.stored_rows()[2].abs().max()) < 3 and float(made.stored_rows()[3].abs().max()) > 50
    assert float(made.ema_count[2]) == 1
    assert torch.equal(made.ema_sum[2], made.stored_rows()[2])


def test_vat_counts_steps_since_the_last_choice() -> None:
    made = table(Unused(steps=100))
    steps(made, 99)
    assert made.revival_memory.tolist() == [0, 0, 99, 99]
    steps(made, 1, FAR[:1])  # in the last step something chooses code 2
    assert made.revival_memory.tolist() == [1, 1, 0, 0]
    assert torch.equal(made.stored_rows(), torch.cat([NEAR, FAR[:1], FAR[:1]]))  # the only latent took code 3's place


def test_slot_mllm_copies_codes_that_live() -> None:
    made = table(RarelyUsed(share=0.25, every=8))
    noise = {"copies": torch.tensor([0, 0, 1, 0]), "directions": torch.ones(4, 2)}
    steps(made, 7, noise=noise)
    steps(made, 1, torch.cat([NEAR, FAR[:1]]), noise)  # code 2 in one step of eight: less than a quarter
    assert torch.allclose(made.stored_rows(), torch.cat([NEAR, NEAR[1:] + 0.02, NEAR[:1] + 0.02]))
    assert made.revival_memory.tolist() == [0, 0, 0, 0]
    drawn = table(RarelyUsed(share=0.5, every=1, jitter=0.0), rows=torch.cat([NEAR, FAR, FAR + 5]))
    steps(drawn, 1)
    copies = [int((drawn.stored_rows() == row).all(1).sum()) for row in NEAR]
    assert copies == [3, 3]  # in equal parts


def test_titok_moves_every_code_to_its_nearest_latent_by_the_published_share() -> None:
    made, z = table(Anchors()), torch.tensor([[0.1, 0.0], [0.0, 0.2], [1.0, 1.0], [3.0, 3.0]])
    start, p = made.stored_rows().detach().double().clone(), torch.zeros(4, dtype=torch.float64)
    for _ in range(3):
        chosen = torch.cdist(z.double(), start).argmin(1)
        p = 0.99 * p + 0.01 * torch.bincount(chosen, minlength=4) / 4
        share = torch.exp(-(p * 4 * 10) / (1 - 0.99) - 1e-3)[:, None]
        start = start * (1 - share) + z.double()[torch.cdist(start, z.double()).argmin(1)] * share
        steps(made, 1, z)
        assert torch.allclose(made.stored_rows().double(), start, atol=1e-5)
    assert float(made.stored_rows().detach().abs().max()) < 4
    with pytest.raises(ConfigError, match="Bridged"):
        Table(Bridged(Trained(4, 2), nn.Linear(2, 2)), revive=Anchors())


def test_a_small_batch_is_tiled_with_jitter() -> None:
    rows = torch.full((7, 2), 50.0)
    made = table(TiledRestart(jitter=torch.rand_like), rows=rows)
    made.ema_count.zero_()
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    steps(made, 1, z, {"replacement_rows": torch.arange(7), "tiled_jitter": torch.full((8, 2), 1.0)})
    expected = z.repeat(4, 1)[:7] + 0.01 / math.sqrt(2)
    assert torch.allclose(made.stored_rows()[1:], expected[1:])  # code 0 was chosen: it still counts little
    assert made.ema_count.tolist() == [1.0] * 7


def test_tiled_ema_starts_from_the_first_batch() -> None:
    torch.manual_seed(0)
    made = Table(Trained(6, 2), learn=TiledEMA(eps=1e-7)).train()
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-5.0, 0.0]])
    made.start(z, {})
    distance = torch.cdist(made.stored_rows(), z).amin(1)
    assert bool((distance < 0.05).all()) and bool((distance > 0).any())
    assert made.ema_count.tolist() == [1.0] * 6 and torch.equal(made.ema_sum, made.stored_rows())
    before = made.stored_rows().clone()
    made.start(z + 100, {})
    assert torch.equal(made.stored_rows(), before)  # only once
    large = Table(Trained(2, 2), learn=TiledEMA()).train()
    large.start(z, {})
    assert bool((torch.cdist(large.stored_rows(), z).amin(1) == 0).all())  # enough latents: no jitter


@pytest.mark.parametrize("name", sorted(RULES))
def test_rules_do_nothing_without_latents(name: str) -> None:
    made = table(RULES[name])
    quantizer = Quantize(made).train()
    quantizer(torch.zeros(1, 2, 2), mask=torch.zeros(1, 2, dtype=torch.bool))
    quantizer.update()
    assert torch.equal(made.stored_rows(), torch.cat([NEAR, FAR]))
