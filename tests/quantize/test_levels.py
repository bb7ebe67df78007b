"""Tables of numbers per dimension: brute force, TokenBridge's published figures, Lloyd-Max against known levels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.quantize import Codebook, Commitment, Levels, Quantize, create
from smalti.quantize.levels import even_levels, lloyd_max_levels, normal_levels, quantile_levels

# TokenBridge's squared error on N(0, 1) by range and bits, measured with the official function (specs/tokenbridge.md).
PUBLISHED_ERRORS = {
    3.0: {2: 0.1317, 3: 0.0515, 4: 0.0211, 5: 0.0090, 6: 0.0041, 7: 0.0019},
    4.0: {2: 0.1244, 3: 0.0371, 4: 0.0109, 5: 0.0031},
    5.0: {2: 0.1580, 3: 0.0405, 4: 0.0103, 5: 0.0026},
}


def tables() -> list[Tensor]:
    """Unsorted, repeated and single numbers."""
    return [torch.tensor([0.5, -1.0, 0.5, 2.0]), torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.25])]


@pytest.mark.parametrize("slots", [None, (1, 1, 1), (2, 1)])
@pytest.mark.parametrize("order", ["little", "big"])
def test_nearest_levels_are_those_of_brute_force(slots: tuple[int, ...] | None, order: str) -> None:
    levels = Levels(tables(), slots=slots, order=order)  # type: ignore[arg-type]
    x = torch.cat([torch.randn(300, 3) * 2, torch.tensor([[0.5, 1.5, 0.0], [-0.25, 2.5, 9.0], [99.0, -99.0, 0.0]])])
    codes = levels.nearest(x)
    expected = torch.stack(
        [(x[:, i, None].double() - table.double()).abs().argmin(1) for i, table in enumerate(tables())], -1
    )
    assert torch.equal(levels.digits(codes), expected)
    assert torch.equal(levels.codes(expected), codes)
    vectors = torch.stack([table[expected[:, i]] for i, table in enumerate(tables())], -1)
    assert torch.equal(levels.lookup(codes), vectors)


def test_codebooks_list_what_codes_mean() -> None:
    levels = Levels(tables(), slots=(2, 1))
    assert levels.vocab == (12, 1)
    books = levels.codebooks()
    codes = torch.stack([torch.arange(12), torch.zeros(12, dtype=torch.int64)], -1)
    assert torch.equal(torch.cat([books[0], books[1][codes[:, 1]]], -1), levels.lookup(codes))


def test_candidates_are_the_cheapest_of_the_product() -> None:
    levels = Levels([torch.randn(4), torch.randn(3)])
    x = torch.randn(20, 2)
    codes, costs = levels.candidates(x, 5)
    distances = torch.cdist(x.double(), levels.codebooks()[0].double()).square()
    assert torch.allclose(costs, distances.sort(1).values[:, :5], atol=1e-9)
    assert torch.equal(codes[:, 0], levels.nearest(x))


def test_dropped_slots_are_zero() -> None:
    levels = Levels(tables(), slots=(2, 1))
    assert levels.lookup(torch.tensor([[-1, 0], [5, -1]])).tolist()[0] == [0.0, 0.0, 0.25]
    assert levels.lookup(torch.tensor([[5, -1]]))[0, 2] == 0


def test_latent_quantization_trains_its_numbers() -> None:
    torch.manual_seed(0)
    targets = torch.tensor([-2.0, 0.3, 1.1])
    alphabet = Levels([even_levels(3)], trained=True)
    vq = Quantize(alphabet, terms=[Codebook(1.0), Commitment(0.0)])
    optimizer = torch.optim.Adam(vq.parameters(), lr=0.05)
    for _ in range(300):
        z = targets[torch.randint(3, (1, 256, 1))]
        optimizer.zero_grad()
        vq(z).loss.backward()
        optimizer.step()
    assert torch.allclose(alphabet.codebooks()[0].flatten().sort().values, targets, atol=0.02)


def test_levels_start_evenly_with_one_at_zero() -> None:
    assert torch.equal(even_levels(5), torch.linspace(-0.5, 0.5, 5))
    assert torch.equal(even_levels(4), torch.arange(4) / 4 - 0.5)
    assert all(0.0 in even_levels(count) for count in range(2, 20))


def test_a_shared_table_is_one_parameter() -> None:
    table = torch.linspace(-1, 1, 4)
    assert len(list(Levels([table] * 5, trained=True).parameters())) == 1
    assert len(list(Levels([table, table.clone()], trained=True).parameters())) == 2


@pytest.mark.parametrize("bits", [1, 4, 6, 8])
def test_normal_levels_are_symmetric_ascending_and_stay_put(bits: int) -> None:
    levels = normal_levels(bits)
    assert torch.allclose(levels, -levels.flip(0), atol=1e-5) and bool((levels.diff() > 0).all())
    vq = create("dimension-wise", dim=3, bits=bits)
    codes = torch.arange(2**bits)[None, :, None].expand(-1, -1, 3).contiguous()
    assert torch.equal(vq.encode(vq.decode(codes)), codes)


def test_normal_levels_are_means_of_equally_likely_parts() -> None:
    torch.manual_seed(0)
    draws = torch.randn(2_000_000, dtype=torch.float64)
    draws = draws[draws.abs() < 3].sort().values
    bounds = torch.distributions.Normal(0.0, 1.0).icdf(torch.arange(1, 8) / 8).double()
    means = [part.mean() for part in torch.tensor_split(draws, torch.searchsorted(draws, bounds))]
    assert torch.allclose(torch.stack(means), normal_levels(3).double(), atol=5e-3)


@pytest.mark.parametrize("limit", sorted(PUBLISHED_ERRORS))
def test_squared_errors_on_normal_latents_are_the_published_ones(limit: float) -> None:
    torch.manual_seed(0)
    z = torch.randn(1, 200_000, 1)
    for bits, published in PUBLISHED_ERRORS[limit].items():
        vq = create("dimension-wise", dim=1, bits=bits, low=-limit, high=limit)
        codes = vq.encode(z)
        error = float((vq.decode(codes) - z).square().mean())
        assert error == pytest.approx(published, rel=0.03), (limit, bits)
        if bits == 6:
            assert len(codes.unique()) == 64


def test_quantile_levels_are_means_of_equally_filled_parts() -> None:
    samples = torch.tensor([5.0, 1.0, 2.0, 3.0, 9.0, 7.0])
    assert quantile_levels(samples, 3).tolist() == [1.5, 4.0, 8.0]
    with pytest.raises(InputError, match="at least as many samples"):
        quantile_levels(samples, 7)


def test_lloyd_max_finds_the_known_levels_of_a_normal_distribution() -> None:
    """Max (1960): for 4 levels ±0.4528, ±1.510, with squared error 0.1175."""
    torch.manual_seed(0)
    samples = torch.randn(500_000)
    levels = lloyd_max_levels(samples, 4)
    assert torch.allclose(levels, torch.tensor([-1.510, -0.4528, 0.4528, 1.510]), atol=0.01)
    vq = Quantize(Levels([levels]))
    z = samples.view(1, -1, 1)
    assert float((vq.decode(vq.encode(z)) - z).square().mean()) == pytest.approx(0.1175, rel=0.01)


def test_wrong_tables_name_themselves() -> None:
    with pytest.raises(ConfigError, match="table of numbers"):
        Levels([torch.zeros(2, 2)])
    with pytest.raises(ConfigError, match="slots"):
        Levels(tables(), slots=(2, 2))
