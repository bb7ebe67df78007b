"""Nearest codes are those of float64 brute force, whatever the chunk, the batch or the threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.errors import InputError
from smalti.quantize import nearest, nearest_k
from smalti.quantize.neighbours import squared_distances


def brute_force(rows: Tensor, table: Tensor) -> np.ndarray:
    """Squared distances in float64, one row at a time."""
    z, e = rows.double().numpy(), table.double().numpy()
    return np.stack([((row - e) ** 2).sum(1) for row in z]) if len(z) else np.zeros((0, len(e)))


def assert_exact(rows: Tensor, table: Tensor, codes: Tensor) -> None:
    distances = brute_force(rows, table)
    best = distances.min(1)
    centre = table.double().mean(0)
    size = (rows.double() - centre).square().sum(1).numpy() + (table.double() - centre).square().sum(1).max().item()
    chosen = distances[np.arange(len(rows)), codes.numpy()]
    assert (chosen - best <= 1e-6 * size).all()
    second = np.partition(distances, 1, axis=1)[:, 1] if len(table) > 1 else best + 1e9
    clear = second - best > 1e-6 * size
    assert (codes.numpy()[clear] == distances.argmin(1)[clear]).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 300), st.integers(1, 40), st.integers(1, 200), st.sampled_from([0.0, 100.0]), st.integers(0, 2**31)
)
def test_codes_are_those_of_brute_force(count: int, dim: int, codes: int, offset: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, dim, generator=generator) + offset
    table = torch.randn(codes, dim, generator=generator) + offset
    assert_exact(rows, table, nearest(rows, table))


def test_duplicated_codes_give_the_lowest_index() -> None:
    table = torch.randn(50, 6)
    table = torch.cat([table, table, table])
    codes = nearest(torch.randn(500, 6), table)
    assert int(codes.max()) < 50
    assert nearest(torch.zeros(4, 3), torch.zeros(7, 3)).tolist() == [0] * 4


def test_exact_ties_give_the_lowest_index() -> None:
    table = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert nearest(torch.tensor([[0.0, 0.0], [0.0, 3.0]]), table).tolist() == [1, 1]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("buffer", [64, 2**12, 2**22])
def test_near_ties_do_not_depend_on_chunk_batch_or_threads(
    buffer: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    # Codes a rounding error apart, so that a float32 product decides them by chance.
    base = torch.randn(8, 24, generator=generator)
    table = torch.cat([base * (1 + k * 3e-8) + k * 1e-8 for k in range(20)])
    rows = torch.randn(257, 24, generator=generator)
    reference = torch.tensor([int(brute_force(row[None], table).argmin()) for row in rows])
    before = torch.get_num_threads()
    monkeypatch.setattr("smalti.quantize.neighbours.CPU_BUFFER", buffer)
    torch.set_num_threads(threads)
    try:
        whole = nearest(rows, table)
        alone = torch.cat([nearest(row[None], table) for row in rows])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole, alone)
    assert torch.equal(whole, reference)


def test_low_matmul_precision_does_not_change_codes() -> None:
    rows, table = torch.randn(300, 32), torch.randn(500, 32)
    expected = nearest(rows, table)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(nearest(rows, table), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_every_code_is_its_own_nearest_neighbour() -> None:
    table = torch.randn(3000, 12)
    assert torch.equal(nearest(table, table), torch.arange(3000))


def test_nearest_k_is_brute_force_in_order() -> None:
    rows, table = torch.randn(100, 9), torch.randn(80, 9)
    codes, costs = nearest_k(rows, table, 7)
    distances = brute_force(rows, table)
    assert (codes.numpy() == distances.argsort(1, kind="stable")[:, :7]).all()
    assert np.allclose(costs.numpy(), np.sort(distances, 1)[:, :7])


def test_nearest_k_of_duplicates_takes_the_lowest_indices() -> None:
    table = torch.randn(1, 4).expand(60, 4)
    codes, _ = nearest_k(torch.randn(3, 4), table, 3)
    assert codes.tolist() == [[0, 1, 2]] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_are_refused(value: float) -> None:
    rows = torch.randn(5, 3)
    rows[2, 1] = value
    with pytest.raises(InputError, match="1 of 5"):
        nearest(rows, torch.randn(4, 3))


def test_distances_are_summed_in_one_fixed_order() -> None:
    x, y = torch.randn(3, 4, 7), torch.randn(3, 4, 7)
    alone = torch.stack([squared_distances(a, b) for a, b in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True)])
    assert torch.equal(squared_distances(x, y).flatten(), alone)
    assert torch.allclose(squared_distances(x, y), (x.double() - y.double()).square().sum(-1))


def test_compiled_search_gives_the_same_codes() -> None:
    rows, table = torch.randn(200, 16), torch.randn(64, 16)
    compiled = torch.compile(nearest, backend="eager", fullgraph=True)
    assert torch.equal(compiled(rows, table), nearest(rows, table))
