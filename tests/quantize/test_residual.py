"""Residual levels: searches against exhaustive ones, conditional tables against brute force, dropped levels."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smalti.errors import ConfigError, InputError
from smalti.quantize import (
    EMA,
    Beam,
    CodebookOnly,
    Commitment,
    Conditional,
    DiVeQ,
    Dropout,
    Expire,
    Parallel,
    Quantize,
    Quantizer,
    Residual,
    ResidualMLP,
    SampleDropout,
    Table,
    Trained,
    create,
)
from smalti.quantize.beam import search


def level(codes: int = 5, dim: int = 3, **rules: Any) -> Quantize:
    return Quantize(Table(Trained(codes, dim, nn.init.normal_), **rules), terms=[Commitment(1.0)])


def levels(count: int = 3, **rules: Any) -> list[Quantize]:
    torch.manual_seed(0)
    return [level(**rules) for _ in range(count)]


def conditional_levels(dim: int = 3, codes: int = 6) -> Residual:
    torch.manual_seed(0)
    return create("qinco", dim=dim, codes=codes, levels=3, hidden=4, depth=2)  # type: ignore[return-value]


def exhaustive(quantizer: Residual, z: Tensor) -> tuple[Tensor, Tensor]:
    """The best of all code sequences of each position, by decoding every one of them: codes and squared errors."""
    every = torch.tensor(list(itertools.product(*[range(size) for size in quantizer.vocab])))
    values = quantizer.decode(every[None])[0].detach()
    errors = (z[..., None, :].double() - values.double()).square().sum(-1)
    return every[errors.argmin(-1)], errors.amin(-1)


@pytest.mark.parametrize("rvq", [Residual(levels(), search=Beam(25)), conditional_levels()], ids=["tables", "qinco"])
def test_a_beam_of_full_width_is_an_exhaustive_search(rvq: Residual) -> None:
    rvq.search = Beam(36)
    z = torch.randn(2, 7, 3)
    codes, errors = exhaustive(rvq, z)
    assert torch.equal(rvq.encode(z), codes)
    ends, values, costs = rvq.candidates(z, 36)
    assert torch.equal(ends[..., 0, :], codes)
    assert torch.allclose(costs[..., 0], errors, atol=1e-5)
    assert torch.allclose(rvq.decode(ends), values, atol=1e-5)


def test_a_beam_never_does_worse_than_the_greedy_choice_and_trains_every_level() -> None:
    rules: dict[str, Any] = {"learn": EMA(0.8)}
    greedy, beam = Residual(levels(4, **rules)), Residual(levels(4, **rules), search=Beam(3))
    z = torch.randn(3, 40, 3)
    before = [table.clone() for table in beam.codebooks()]
    errors = [(z - rvq(z).z).square().sum(-1).mean() for rvq in (greedy, beam)]
    assert errors[1] < errors[0]
    out = beam(z)
    residual, codes = z.flatten(0, 1), out.codes.flatten(0, 1)
    beam.update()
    for index, (table, old) in enumerate(zip(beam.codebooks(), before, strict=True)):
        one_hot = nn.functional.one_hot(codes[:, index], 5).float()
        count = 0.8 + 0.2 * 2 * one_hot.sum(0)  # two forward passes with the same latents
        total = 0.8 * old + 0.2 * 2 * one_hot.t() @ residual
        assert torch.allclose(table, total / ((count + 1e-5) / (count.sum() + 5e-5) * count.sum())[:, None], atol=1e-5)
        residual = residual - old[codes[:, index]]
    beam.eval()
    assert not torch.equal(beam.encode(z), Residual(beam.levels).encode(z))  # it searches in evaluation too


def test_a_beam_of_encoding_alone_leaves_training_as_it_is_and_finds_the_nearest_sums() -> None:
    def trained(eval_beam: int) -> Quantizer:
        torch.manual_seed(0)
        return create("residual-diveq", dim=3, codes=8, levels=2, eval_beam=eval_beam)

    z = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(1))
    greedy, beam = trained(1), trained(8)  # as wide as a level, which leaves no sum out
    for rvq in (greedy, beam):
        torch.manual_seed(2)
        for _ in range(2):
            rvq(z).z.square().sum().backward()
            rvq.update()
    pairs = zip(greedy.named_parameters(), beam.named_parameters(), strict=True)
    assert all(torch.equal(one, other) and torch.equal(one.grad, other.grad) for (_, one), (_, other) in pairs)
    greedy.eval()
    beam.eval()
    errors = [(rvq.decode(rvq.encode(z)) - z).square().sum(-1) for rvq in (greedy, beam)]
    first, second = beam.codebooks()
    nearest = torch.cdist(z.flatten(0, 1), (first[:, None] + second).flatten(0, 1)).square().amin(-1)
    torch.testing.assert_close(errors[1].flatten(), nearest, rtol=1e-4, atol=1e-5)
    assert errors[1].mean() < 0.95 * errors[0].mean()
    assert torch.equal(beam(z).codes, beam.encode(z))


@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 2.0)])
def test_few_paths_of_a_beam_are_the_first_of_all_that_it_keeps(weights: tuple[float, ...] | None) -> None:
    rvq, x = Residual(levels(3)), torch.randn(100, 3)
    everything = search(rvq.levels, x, 6, weights)
    for paths in (1, 2, 5):
        few = search(rvq.levels, x, 6, weights, paths=paths)
        assert all(torch.equal(one, other[:, :paths]) for one, other in zip(few, everything, strict=True))


def test_one_candidate_is_the_code_of_encoding_whatever_the_beam_of_training() -> None:
    rvq = Residual(levels(3), search=Beam(4, 1)).eval()
    z = torch.randn(1, 50, 3)
    assert torch.equal(rvq.candidates(z, 1)[0][..., 0, :], rvq.encode(z))
    assert torch.equal(rvq.encode(z), Residual(rvq.levels).eval().encode(z))


def test_beam_weights_cost_every_level() -> None:
    rvq = Residual(levels(2), search=Beam(25, level_weights=(2.0, 0.5)))
    z = torch.randn(1, 30, 3)
    first, second = (table.detach().double() for table in rvq.codebooks())
    residual = z[0, :, None, None].double() - first[:, None]  # rows, first codes, 1, dim
    costs = 2.0 * residual.square().sum(-1) + 0.5 * (residual - second).square().sum(-1)
    best = costs.flatten(1).argmin(1)
    assert torch.equal(rvq.encode(z)[0], torch.stack([best // 5, best % 5], 1))


def test_beam_codes_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rvq = Residual(levels(4), search=Beam(4))
    z = torch.randn(2, 33, 3)
    whole = rvq.encode(z)
    monkeypatch.setattr("smalti.quantize.beam.HELD", 100)
    assert torch.equal(rvq.encode(z), whole)


def test_conditional_codes_are_those_of_the_tables_spelled_out() -> None:
    torch.manual_seed(1)
    network = ResidualMLP(4, 5, depth=3)
    alphabet = Conditional(Trained(9, 4, nn.init.normal_), network)
    x, context = torch.randn(2, 50, 4).unbind(0)
    tables = torch.empty(50, 9, 4)
    for row in range(50):
        for code in range(9):
            pair = torch.cat([context[row], alphabet.vectors.weight[code]])
            value = network.proj_in(pair)
            for block in network.layers:
                value = value + block(value)
            tables[row, code] = value.detach()
    distances = (x[:, None].double() - tables.double()).square().sum(-1)
    found, costs = alphabet.given(context).candidates(x, 4)
    assert torch.equal(found[..., 0], distances.argsort(1)[:, :4])
    assert torch.allclose(costs, distances.sort(1).values[:, :4], atol=1e-4)
    assert torch.equal(alphabet.given(context).nearest(x)[:, 0], distances.argmin(1))
    chosen = alphabet.given(context).lookup(found[:, 0])
    assert torch.allclose(chosen, tables[torch.arange(50), found[:, 0, 0]], atol=1e-5)


def test_conditional_levels_train_codes_and_network_through_the_chosen_codes() -> None:
    rvq = conditional_levels()
    out = rvq(torch.randn(2, 20, 3))
    out.loss.backward()
    for name, parameter in rvq.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    with pytest.raises(InputError, match="conditional"):
        rvq.levels[1](torch.randn(1, 2, 3))


def test_errors_fall_with_every_level() -> None:
    rvq = create("residual", dim=4, codes=16, levels=6)
    z = torch.randn(2, 200, 4)
    for _ in range(5):
        rvq(z)
        rvq.update()
    rvq.eval()
    codes = rvq.encode(z)
    errors = [(z - rvq.decode(codes[..., :count])).square().mean() for count in range(1, 7)]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


def test_levels_that_share_a_table_learn_from_the_sum_of_what_chose_it() -> None:
    shared = level(learn=EMA(0.9), revive=Expire(0.01))
    rvq = Residual([shared] * 3)
    old = shared.codebooks()[0].clone()
    z = torch.randn(2, 30, 3)
    codes = rvq(z).codes.flatten(0, 1)
    residual, count, total = z.flatten(0, 1), torch.zeros(5), torch.zeros(5, 3)
    for index in range(3):
        one_hot = nn.functional.one_hot(codes[:, index], 5).float()
        count, total = count + one_hot.sum(0), total + one_hot.t() @ residual
        residual = residual - old[codes[:, index]]
    rvq.update()
    count, total = 0.9 + 0.1 * count, 0.9 * old + 0.1 * total
    expected = total / ((count + 1e-5) / (count.sum() + 5e-5) * count.sum())[:, None]
    assert torch.allclose(shared.codebooks()[0], expected, atol=1e-5)
    assert len(list(rvq.parameters())) == 1


def test_the_same_seed_drops_the_same_levels() -> None:
    rvq = Residual(levels(6), dropout=Dropout(at_least=2))
    z, seen = torch.randn(1, 5, 3), []
    for seed in [*range(40), *range(40)]:
        torch.manual_seed(seed)
        kept = (rvq(z).codes[0, 0] >= 0).tolist()
        assert kept == sorted(kept, reverse=True)
        seen.append(sum(kept))
    assert seen[:40] == seen[40:]
    assert set(seen) == {2, 3, 4, 5, 6}


@pytest.mark.parametrize(("cutoff", "multiple"), [(0, 1), (1, 2), (2, 4), (0, 5)])
def test_levels_of_a_seed_are_those_that_were_published(cutoff: int, multiple: int) -> None:
    dropout = Dropout(at_least=cutoff + 1, multiple_of=multiple)
    rvq = Residual(levels(8), dropout=dropout)
    for seed in range(20):
        last = random.Random(seed).randrange(cutoff, 8)
        last = min(-(-(last + 1) // multiple) * multiple - 1, 7)
        codes = rvq(torch.randn(1, 4, 3), noise={"levels": dropout.from_seed(seed, 8)}).codes
        assert (codes[..., : last + 1] >= 0).all()
        assert (codes[..., last + 1 :] == -1).all()


def test_every_sample_drops_its_own_levels_and_only_those() -> None:
    rvq = Residual(levels(4), dropout=SampleDropout())
    z, used = torch.randn(5, 6, 3), torch.tensor([1, 4, 2, 3, 4])
    out = rvq(z, noise={"levels": used})
    rvq.eval()
    whole = rvq.encode(z)
    for sample, count in enumerate(used.tolist()):
        assert torch.equal(out.codes[sample, :, :count], whole[sample, :, :count])
        assert (out.codes[sample, :, count:] == -1).all()
        assert torch.allclose(out.z[sample], rvq.decode(whole[sample : sample + 1, :, :count])[0], atol=1e-6)
    mask = torch.rand(5, 6) > 0.3
    rvq.train()
    masked = rvq(z, mask=mask, noise={"levels": used}).codes
    assert torch.equal(masked, out.codes.masked_fill(~mask[..., None], -1))


def test_a_share_of_samples_keeps_every_level() -> None:
    rvq = Residual(levels(4), dropout=SampleDropout(share=0.25))
    codes = rvq(torch.randn(2000, 1, 3)).codes
    kept = (codes >= 0).sum(-1)
    assert 0.75 + 0.25 / 4 - 0.04 < (kept == 4).float().mean() < 0.75 + 0.25 / 4 + 0.04
    assert kept.min() == 1


def test_dropped_levels_learn_nothing_and_say_so() -> None:
    rvq = Residual(levels(3, learn=EMA(0.5)), dropout=Dropout())
    before = [table.clone() for table in rvq.codebooks()]
    out = rvq(torch.randn(1, 30, 3), noise={"levels": torch.tensor(1)})
    rvq.update()
    same = [torch.equal(table, old) for table, old in zip(rvq.codebooks(), before, strict=True)]
    assert same == [False, True, True]
    assert out.terms["level_loss"].tolist()[1:] == [0.0, 0.0]
    assert out.terms["utilisation"].tolist()[1:] == [0.0, 0.0]


def test_groups_drop_the_same_levels() -> None:
    parts = [Residual(levels(5), dropout=Dropout()) for _ in range(3)]
    grouped = Parallel(parts, dropout=Dropout())
    for seed in range(10):
        torch.manual_seed(seed)
        kept = (grouped(torch.randn(1, 2, 9)).codes >= 0)[0, 0].view(3, 5).sum(-1)
        assert len(set(kept.tolist())) == 1


def test_levels_estimators_multiply_a_straight_through_gradient_and_the_default_does_not() -> None:
    z = torch.randn(1, 4, 3, requires_grad=True)
    for estimator, factor in ((None, 1), ("levels", 4)):
        rvq = Residual(levels(4), estimator=estimator)  # type: ignore[arg-type]
        (found,) = torch.autograd.grad(rvq(z).z.sum(), z)
        assert torch.equal(found, torch.full_like(z, factor))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_gradient_that_passes_the_subtraction(share: float) -> None:
    """With straight-through levels the residual's slope is (1 - share) per level."""
    z = torch.randn(1, 4, 3, requires_grad=True)
    rvq = Residual(levels(3), estimator="levels", passed_gradient=share)
    (found,) = torch.autograd.grad(rvq(z).z.sum(), z)
    assert torch.allclose(found, torch.full_like(z, sum((1 - share) ** index for index in range(3))))


def test_residual_diveq_moves_every_level() -> None:
    torch.manual_seed(0)
    parts: list[Quantizer] = [
        Quantize(Table(Trained(5, 3, nn.init.normal_)), estimator=CodebookOnly()) for _ in range(3)
    ]
    rvq = Residual(parts, estimator=DiVeQ(0.01))
    z = torch.randn(2, 10, 3, requires_grad=True)
    noise = torch.randn(2, 10, 3)
    out = rvq(z, noise={"directions": noise})
    total = rvq.decode(out.codes)
    error = total - z
    direction = nn.functional.normalize(error + 0.1 * noise, dim=-1).detach()
    assert torch.allclose(out.z, z + error.norm(dim=-1, keepdim=True) * direction, atol=1e-5)
    out.z.square().sum().backward()
    assert z.grad is not None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in rvq.parameters())


def test_autocast_changes_nothing() -> None:
    torch.manual_seed(0)
    rvq = Residual(levels(3), before=nn.Linear(6, 3), after=nn.Linear(3, 6), dim=6)
    z = torch.randn(2, 9, 6)
    codes, vectors = rvq.encode(z), rvq(z).z
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rvq.encode(z), codes)
        assert torch.equal(rvq(z).z, vectors)


def test_settings_that_can_not_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one path"):
        Beam(0)
    with pytest.raises(ConfigError, match="weights"):
        Residual(levels(3), search=Beam(2, level_weights=(1.0,)))
    with pytest.raises(ConfigError, match="Quantize"):
        Residual([Residual(levels(2))], search=Beam(2))
    with pytest.raises(ConfigError, match="share"):
        Residual(levels(2), dropout=SampleDropout(share=0.0))


def test_padding_changes_nothing_that_residual_diveq_draws() -> None:
    vq = create("residual-diveq", dim=4, codes=8, levels=2)
    z = torch.randn(2, 5, 4)
    padded, mask = torch.cat([z, torch.full((2, 3, 4), 1e4)], 1), torch.arange(8).expand(2, 8) < 5
    given = []
    for x, real in ((z, None), (padded, mask)):
        own = copy.deepcopy(vq)
        torch.manual_seed(0)
        own(z)  # the codebook starts
        torch.manual_seed(1)
        given.append(own(x, mask=real))
    assert torch.equal(given[0].codes, given[1].codes[:, :5])
    assert torch.equal(given[0].z, given[1].z[:, :5]) and not bool(given[1].z[:, 5:].any())


@pytest.mark.parametrize("name", ["qinco", "beam-residual"])
def test_the_best_candidate_of_a_beam_is_its_code(name: str) -> None:
    torch.manual_seed(0)
    narrow = {"hidden": 8, "depth": 2} if name == "qinco" else {"eval_beam": 8}
    quantizer = create(name, dim=8, codes=16, levels=4, beam=8, **narrow)
    z = torch.randn(2, 100, 8)
    quantizer(z)
    quantizer.update()
    quantizer.eval()
    for k in (1, 3, 8):
        codes, values, costs = quantizer.candidates(z, k)
        assert codes.shape == (2, 100, k, 4)
        assert torch.equal(codes[..., 0, :], quantizer.encode(z))
        assert torch.allclose(costs.float(), (z[..., None, :] - values).square().sum(-1), atol=1e-4)


def test_a_weighted_beam_weighs_its_candidates_too() -> None:
    torch.manual_seed(0)
    levels = [create("vq", dim=4, codes=9) for _ in range(3)]
    beam, z = Beam(3, 5, level_weights=(4.0, 1.0, 0.5)), torch.randn(1, 200, 4) * 0.05
    quantizer = Residual(levels, search=beam).eval()
    assert torch.equal(quantizer.candidates(z, 2)[0][..., 0, :], quantizer.encode(z))
