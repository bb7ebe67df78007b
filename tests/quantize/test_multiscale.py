"""Codes at several scales: the contract of positions, prefixes and partial sums, and the published choices."""

from __future__ import annotations

import math
from math import prod

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.errors import ConfigError, InputError
from smalti.quantize import (
    DROPPED,
    Interpolate,
    MultiScale,
    PartialSums,
    Prefixes,
    Quantize,
    Residual,
    Scalars,
    Sizes,
    Smoothing,
    SoftClamp,
    Strides,
    Table,
    Trained,
    create,
)
from smalti.quantize.scales import average, repeat, shared_smoothings


def scalar_scales(sizes: tuple[int | tuple[int, ...], ...], axes: int) -> MultiScale:
    """Scales of scalar codes: nothing is learned, smoothing is random."""
    levels = [Quantize(Scalars((7, 7), scale=0.5**k), before=SoftClamp(0.5**k)) for k in range(len(sizes))]
    return MultiScale(
        levels,
        Sizes(sizes, axes=axes),
        down=Interpolate("area"),
        up=Interpolate("linear"),
        smooth=[Smoothing(2, 0.3, axes=axes) for _ in sizes],
        estimator="levels",
    )


def cases() -> dict[str, tuple[MultiScale, tuple[int, ...]]]:
    torch.manual_seed(0)
    unit = create("multi-scale", dim=5, codes=30, sizes=(1, 2, 3), smoothings=0, unit=True)
    made = {
        "VAR": (create("multi-scale", dim=4, codes=40, sizes=(1, 2, 3, 5)), (5, 5)),
        "VAR, cosine": (unit, (3, 3)),
        "VAR, no smoothing": (create("multi-scale", dim=4, codes=40, sizes=(1, 4), share=0), (4, 4)),
        "SNAC": (create("multi-rate", dim=6, codes=20, strides=(4, 2, 1)), (12,)),
        "SNAC, coarse finest": (create("multi-rate", dim=6, codes=20, strides=(8, 2)), (16,)),
        "one axis": (scalar_scales((1, 3, 7), 1), (7,)),
        "oblong": (scalar_scales(((1, 1), (2, 3), (4, 6)), 2), (4, 6)),
        "video": (scalar_scales((1, (1, 2, 2), (2, 3, 4)), 3), (2, 3, 4)),
    }
    for name, (vq, _) in made.items():
        assert isinstance(vq, MultiScale), name
        with torch.no_grad():
            for parameter in vq.parameters():
                nn.init.normal_(parameter, std=0.4)
    return made  # type: ignore[return-value]


CASES = cases()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[MultiScale, tuple[int, ...]]:
    vq, full = CASES[request.param]
    return vq.eval(), full


Case = tuple[MultiScale, tuple[int, ...]]


def test_codes_are_those_of_all_scales_one_after_another(case: Case) -> None:
    vq, full = case
    z = torch.randn(3, *full, vq.dim)
    codes = vq.encode(z)
    extents = vq.extents(full)
    assert codes.shape == (3, sum(prod(extent) for extent in extents), len(vq.vocab))
    maps = vq.split(codes)
    assert [tuple(part.shape[1:-1]) for part in maps] == extents
    assert torch.equal(vq.join(maps), codes)
    out = vq(z)
    assert torch.equal(out.codes, codes)
    assert torch.allclose(out.z, vq.decode(codes), atol=1e-5)
    assert out.z.shape == z.shape


def test_decoding_adds_up_what_each_scale_gives_alone(case: Case) -> None:
    """Decode is the sum over scales of smoothed, upsampled vectors: each scale alone, the others dropped."""
    vq, full = case
    codes = vq.encode(torch.randn(2, *full, vq.dim))
    maps = vq.split(codes)
    alone = []
    for index in range(len(maps)):
        kept = [part if i == index else torch.full_like(part, DROPPED) for i, part in enumerate(maps)]
        alone.append(vq.decode(vq.join(kept), extent=full))
    assert torch.allclose(torch.stack(alone).sum(0), vq.decode(codes), atol=1e-4)
    assert torch.allclose(torch.stack(alone).cumsum(0), vq.partials(codes), atol=1e-4)


def test_residuals_are_what_the_coarser_scales_left(case: Case) -> None:
    vq, full = case
    z = torch.randn(2, *full, vq.dim)
    codes = vq.encode(z)
    partials, maps = vq.partials(codes), vq.split(codes)
    for index in range(1, len(maps)):
        rest = (z - partials[index - 1]).movedim(-1, 1)
        small = vq.down(rest, vq.extents(full)[index]).movedim(1, -1)
        assert float((vq.levels[index].encode(small) == maps[index]).float().mean()) > 0.98  # but for ties of rounding


def test_candidates_begin_with_the_codes_and_come_best_first(case: Case) -> None:
    vq, full = case
    z = torch.randn(2, *full, vq.dim)
    codes, values, costs = vq.candidates(z, 3)
    assert torch.equal(codes[:, :, 0], vq.encode(z))
    assert bool((costs.diff(dim=-1) >= 0).all())
    starts = [0, *torch.tensor([prod(extent) for extent in vq.extents(full)]).cumsum(0).tolist()]
    for level, start, stop in zip(vq.levels, starts, starts[1:], strict=False):
        assert torch.allclose(level.decode(codes[:, start:stop]), values[:, start:stop], atol=1e-5)
    with pytest.raises(InputError, match="NaN"):
        vq.candidates(z * torch.nan, 1)


def test_candidates_are_nearest_to_what_the_coarser_scales_left() -> None:
    vq, full = CASES["VAR"]
    z = torch.randn(2, *full, vq.dim)
    codes, _, costs = vq.eval().candidates(z, 4)
    table, partials, start = vq.codebooks()[0].double(), vq.partials(codes[:, :, 0]), 0
    for index, extent in enumerate(vq.extents(full)):
        rest = z if index == 0 else z - partials[index - 1]
        small = vq.down(rest.movedim(-1, 1), extent).movedim(1, -1).flatten(1, -2).double()
        least = (small[:, :, None] - table).square().sum(-1).sort(-1).values[..., :4]
        own = slice(start, start + prod(extent))
        assert torch.allclose(costs[:, own].double(), least, atol=1e-4)
        start = own.stop


def test_prefixes_of_scales_decode(case: Case) -> None:
    vq, full = case
    codes = vq.encode(torch.randn(2, *full, vq.dim))
    ends = torch.tensor([prod(extent) for extent in vq.extents(full)]).cumsum(0).tolist()
    for index, end in enumerate(ends):
        prefix = vq.decode(codes[:, :end], extent=full)
        assert torch.allclose(prefix, vq.partials(codes)[index], atol=1e-5)
        dropped = codes.clone()
        dropped[:, end:] = DROPPED
        assert torch.allclose(vq.decode(dropped), prefix, atol=1e-5)


def test_next_inputs_are_partial_sums_brought_down(case: Case) -> None:
    vq, full = case
    codes = vq.encode(torch.randn(2, *full, vq.dim))
    partials, extents = vq.partials(codes), vq.extents(full)
    expected = [
        vq.down(partials[index].movedim(-1, 1), extents[index + 1]).flatten(2).transpose(1, 2)
        for index in range(len(extents) - 1)
    ]
    assert torch.allclose(vq.next_inputs(codes), torch.cat(expected, 1), atol=1e-5)


def test_samples_do_not_depend_on_their_batch(case: Case) -> None:
    vq, full = case
    z = torch.randn(4, *full, vq.dim)
    assert torch.equal(vq.encode(z), torch.cat([vq.encode(row[None]) for row in z]))
    rough = z.bfloat16()
    assert torch.equal(vq.encode(rough), vq.encode(rough.float())) and vq(rough).z.dtype == torch.bfloat16


def test_dropped_codes_are_zero_and_bad_input_is_refused(case: Case) -> None:
    vq, full = case
    z = torch.randn(2, *full, vq.dim)
    codes = vq.encode(z)
    assert not bool(vq.decode(torch.full_like(codes, DROPPED)).any())
    with pytest.raises(InputError, match="outside"):
        vq.decode(codes.clone().fill_(vq.vocab[0]))
    with pytest.raises(InputError, match="NaN"):
        vq.encode(z.clone().fill_(float("nan")))
    with pytest.raises(InputError, match=r"axes|latents"):
        vq.encode(z[:, 0])
    with pytest.raises(InputError, match="scale"):
        vq.decode(codes[:, :-1], extent=full)
    assert vq.lookup(codes).shape[:3] == codes.shape


def test_gradients_reach_latents_and_tables(case: Case) -> None:
    vq, full = case
    z = torch.randn(2, *full, vq.dim, requires_grad=True)
    out = vq.train()(z)
    (out.z.square().sum() + out.loss).backward()
    assert z.grad is not None and bool(torch.isfinite(z.grad).all()) and bool(z.grad.any())
    for name, parameter in vq.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
    vq.zero_grad()


@pytest.mark.parametrize("name", ["SNAC", "one axis"])
def test_padding_influences_nothing(name: str) -> None:
    vq, full = CASES[name]
    vq.eval()
    z = torch.randn(2, *full, vq.dim)
    mask = torch.ones(2, *full, dtype=torch.bool)
    mask[1, -3:] = False
    garbled = torch.where(mask[..., None], z, torch.full_like(z, 1e4))
    one, other = vq(z, mask=mask), vq(garbled, mask=mask)
    assert torch.equal(one.codes, other.codes) and torch.allclose(one.loss, other.loss)
    assert torch.allclose(one.z, other.z) and not bool(one.z[1, -3:].any())
    assert torch.equal(vq.encode(z, mask=mask), one.codes)
    assert torch.allclose(vq.decode(one.codes), one.z, atol=1e-5)
    assert torch.equal(one.codes[:1], vq.encode(z[:1]))


def test_masked_means_count_real_positions_alone() -> None:
    vq = CASES["SNAC"][0].eval()
    z = torch.randn(1, 8, 6)
    mask = torch.ones(1, 8, dtype=torch.bool)
    mask[0, 6:] = False
    codes = vq.split(vq.encode(z, mask=mask))[0]
    mean = torch.stack([z[0, :4].mean(0), z[0, 4:6].mean(0)])[None]
    assert torch.equal(codes, vq.levels[0].encode(mean))


# --- published choices -----------------------------------------------------------------------------------------------


def test_strides_average_and_repeat() -> None:
    x = torch.arange(12.0).view(1, 1, 12)
    assert average(x, (3,)).flatten().tolist() == [1.5, 5.5, 9.5]
    assert torch.allclose(average(x, (3,)), F.avg_pool1d(x, 4))
    assert repeat(torch.tensor([[[1.0, 2.0]]]), (6,)).flatten().tolist() == [1.0] * 3 + [2.0] * 3
    scales = Strides((4, 2, 1))
    assert scales.extents((12,)) == [(3,), (6,), (12,)] and scales.full(21) == (12,)
    with pytest.raises(InputError, match="multiple"):
        scales.extents((10,))
    with pytest.raises(InputError, match="whole length"):
        scales.full(20)


def test_snac_is_a_residual_of_averages() -> None:
    """With all strides 1 it is an ordinary residual quantizer with projections."""
    vq = create("multi-rate", dim=6, codes=20, strides=(1, 1)).eval()
    assert isinstance(vq, MultiScale)
    flat = Residual(list(vq.levels), estimator="levels").eval()
    z = torch.randn(2, 10, 6)
    codes = vq.encode(z)
    assert torch.equal(torch.cat(vq.split(codes), -1), flat.encode(z))
    assert torch.allclose(vq.decode(codes), flat.decode(flat.encode(z)), atol=1e-6)


@pytest.mark.parametrize("scales", [1, 2, 3, 7, 10, 11])
@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_smoothings_are_chosen_by_float64_ticks(scales: int, count: int) -> None:
    made: list[nn.Module] = [nn.Identity() for _ in range(count)]
    chosen = [made.index(smoothing) for smoothing in shared_smoothings(made, scales)]
    edge = 1 / (3 * count) if count == 4 else 1 / (2 * count)
    ticks = np.linspace(edge, 1 - edge, count)
    for scale, number in enumerate(chosen):
        distances = np.abs(ticks - scale / max(1, scales - 1))
        assert distances[number] == distances.min() and number == int(np.argmin(distances))


def test_the_middle_of_an_odd_number_of_scales_is_decided_as_published() -> None:
    """VAR with 7 scales and 4 convolutions: the middle lies between two ticks, and rounding decides."""
    made: list[nn.Module] = [nn.Identity() for _ in range(4)]
    ticks32 = torch.linspace(1 / 12, 11 / 12, 4)
    middle = shared_smoothings(made, 7)[3]
    ticks = np.linspace(1 / 12, 11 / 12, 4)
    assert middle is made[int(np.argmin(np.abs(ticks - 0.5)))]
    assert abs(float(ticks32[1]) + float(ticks32[2]) - 1) < 1e-6  # as near in exact numbers


def test_the_loss_over_partial_sums_is_its_formula() -> None:
    vq = create("multi-scale", dim=4, codes=20, sizes=(1, 2, 4), commitment_weight=0.25)
    assert isinstance(vq, MultiScale)
    nn.init.normal_(vq.codebooks()[0])
    z = torch.randn(2, 4, 4, 4, requires_grad=True)
    out = vq.train()(z)
    partials = vq.partials(out.codes)
    expected = torch.stack(
        [(p - z.detach()).square().mean() + 0.25 * (p.detach() - z).square().mean() for p in partials]
    ).mean()
    assert torch.allclose(out.loss, expected, atol=1e-6)
    assert torch.allclose(
        torch.autograd.grad(out.loss, z, retain_graph=True)[0], torch.autograd.grad(expected, z)[0], atol=1e-6
    )
    upstream = torch.randn_like(z)
    assert torch.equal(torch.autograd.grad((out.z * upstream).sum(), z)[0], upstream)  # straight through


def test_training_prefixes_uses_the_first_scales() -> None:
    vq = scalar_scales((1, 2, 4), 2)
    vq.prefixes = Prefixes(at_least=1, probability=0.5)
    vq.train()
    used = [len([p for p in vq.split(vq(torch.randn(1, 4, 4, 2)).codes) if bool((p >= 0).all())]) for _ in range(200)]
    assert set(used) == {1, 2, 3} and abs(used.count(3) / 200 - 0.5) < 0.15
    out = vq(torch.randn(1, 4, 4, 2), noise={"scales": torch.tensor(2)})
    assert bool((out.codes[:, :5] >= 0).all()) and bool((out.codes[:, 5:] == DROPPED).all())


def test_shared_codebooks_learn_from_all_scales() -> None:
    def total(shared: bool) -> Tensor:
        torch.manual_seed(0)
        level = create("ema", dim=2, codes=4, kmeans_iterations=0, expire=0)
        other = create("ema", dim=2, codes=4, kmeans_iterations=0, expire=0)
        vq = MultiScale(
            [level, level if shared else other],
            Sizes((1, 2), axes=1),
            down=Interpolate("area"),
            up=Interpolate("nearest"),
        )
        vq.train()(torch.randn(6, 2, 2))
        vq.update()
        return level.alphabet.ema_count.sum()  # type: ignore[union-attr, operator]

    assert torch.allclose(total(True) - total(False), torch.tensor(0.01 * 12))


def test_wrong_scales_name_themselves() -> None:
    level = Quantize(Table(Trained(4, 2)))
    resize = {"down": Interpolate("area"), "up": Interpolate("nearest")}
    with pytest.raises(ConfigError, match="as many levels"):
        MultiScale([level], Sizes((1, 2)), **resize)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="share dimension"):
        MultiScale([level, Quantize(Table(Trained(5, 2)))], Sizes((1, 2)), **resize)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sizes"):
        Sizes((0, 1))
    assert PartialSums().commitment == 0.25


class Encode(nn.Module):
    """What is exported."""

    def __init__(self, vq: MultiScale) -> None:
        super().__init__()
        self.vq = vq

    def forward(self, z: Tensor) -> Tensor:
        return self.vq.encode(z)


@pytest.mark.parametrize("name", ["VAR", "SNAC", "video"])
def test_encode_compiles_and_exports(name: str) -> None:
    vq, full = CASES[name]
    vq.eval()
    z = torch.randn(3, *full, vq.dim)
    torch.compiler.reset()
    assert torch.equal(torch.compile(vq.encode, backend="eager", fullgraph=True)(z), vq.encode(z))
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Encode(vq), (z,), dynamic_shapes=({0: batch},))
    more = torch.randn(5, *full, vq.dim)
    assert torch.equal(program.module()(more), vq.encode(more))


@pytest.mark.parametrize("padding", [math.nan, math.inf])
def test_margins_of_scales_do_not_meet_what_is_masked(padding: float) -> None:
    torch.manual_seed(0)
    quantizer = create("multi-scale", dim=6, codes=20, sizes=(1, 2, 4)).eval()
    z, mask = torch.randn(2, 4, 4, 6), torch.ones(2, 4, 4, dtype=torch.bool)
    mask[1, 2:] = False
    codes, margin = quantizer.encode_with_margin(z.masked_fill(~mask[..., None], padding), mask=mask)
    assert torch.equal(codes, quantizer.encode(z, mask=mask))
    assert torch.equal(margin, quantizer.encode_with_margin(z, mask=mask)[1])
    assert bool((margin[codes < 0] == math.inf).all()) and bool((margin >= 0).all())
