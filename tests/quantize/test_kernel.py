"""The Triton kernel, in Triton's interpreter on a CPU, against float64 brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.quantize.neighbours import nearest_by_kernel, prepare

kernel = pytest.importorskip("smalti.quantize.kernel", reason="the kernel needs triton, which is for Linux")


def brute(rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The lowest index among the nearest, by float64 differences."""
    return (rows.double()[:, None] - table.double()).square().sum(-1).argmin(1)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 150),
    codes=st.sampled_from([1, 2, 127, 300, 1024, 1025, 2500]),
    dim=st.sampled_from([1, 3, 32, 45]),
    offset=st.sampled_from([0.0, 100.0]),
    seed=st.integers(0, 2**16),
)
def test_codes_are_those_of_float64_brute_force(rows: int, codes: int, dim: int, offset: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, dim, generator=generator) + offset
    table = torch.randn(codes, dim, generator=generator) + offset
    found = nearest_by_kernel(z, prepare(table))
    gap = (z.double() - table[found].double()).square().sum(1) - (
        z.double() - table[brute(z, table)].double()
    ).square().sum(1)
    assert (gap.abs() <= 1e-12 * z.double().square().sum(1)).all()


def test_among_duplicates_the_lowest_index_wins() -> None:
    table = torch.randn(40, 8).repeat(60, 1)  # the same codes in every block, and many times in each
    z = table[torch.randint(40, (70,))]
    assert torch.equal(nearest_by_kernel(z, prepare(table)), brute(z, table))


def test_codes_that_tf32_cannot_tell_apart_are_told_apart() -> None:
    base = torch.randn(8)
    table = base + 1e-5 * torch.randn(1500, 8)
    z = base + 1e-5 * torch.randn(50, 8)
    table = torch.cat([table, torch.randn(100, 8)])
    assert torch.equal(nearest_by_kernel(z, prepare(table)), brute(z, table))


def test_the_reach_bounds_what_tf32_does_to_a_score() -> None:
    z, ready = torch.randn(60, 33), prepare(torch.randn(200, 33))
    moved = torch.addcmul(ready.shift, z, ready.scale)
    extended = torch.cat([moved, torch.ones(60, 1)], 1)
    values, winners, _ = kernel.block_winners(extended, ready.columns)
    exact = extended.double() @ ready.columns.double()
    error = (values[:, 0].double() - exact.gather(1, winners)[:, 0]).abs()
    reach = kernel.reach(moved.norm(dim=1), ready.longest, ready.longest.expand(60), 33)
    assert (error <= reach).all()
    assert error.max() > 1e-6, "operands were not rounded: the test would say nothing about TF32"
