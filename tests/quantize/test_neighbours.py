"""Nearest codes are those of float64 brute force, whatever the chunk, the batch or the threads."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.errors import InputError
from smalti.quantize import nearest, nearest_k, neighbours
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


@pytest.mark.parametrize("k", [1, 7])
def test_nearest_k_is_brute_force_in_order(k: int) -> None:
    rows, table = torch.randn(100, 9), torch.randn(80, 9)
    codes, costs = nearest_k(rows, table, k)
    distances = brute_force(rows, table)
    assert (codes.numpy() == distances.argsort(1, kind="stable")[:, :k]).all()
    assert np.allclose(costs.numpy(), np.sort(distances, 1)[:, :k])


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


def exact_codes(rows: Tensor, table: Tensor) -> list[int]:
    """Nearest codes in rational arithmetic, lowest index first: no rounding at any magnitude."""
    numbers = [[Fraction(value) for value in code] for code in table.tolist()]
    codes = []
    for row in rows.tolist():
        z = [Fraction(value) for value in row]
        distances = [sum((a - b) ** 2 for a, b in zip(z, code, strict=True)) for code in numbers]
        codes.append(distances.index(min(distances)))
    return codes


MAGNITUDES = [1e-44, 1e-38, 1e-30, 1e-23, 1e-10, 1.0, 1e10, 1e15, 1e20, 1e30, 1e37]


@pytest.mark.parametrize("extent", MAGNITUDES)
@pytest.mark.parametrize("length", MAGNITUDES)
def test_codes_are_exact_at_every_magnitude(extent: float, length: float) -> None:
    generator = torch.Generator().manual_seed(3)
    # A table of 1e20 and rows of 1e15 once overflowed, and what was near 1e-23 was lost among denormal numbers.
    table = (torch.randn(37, 5, generator=generator).double() * extent).float()
    rows = (torch.randn(60, 5, generator=generator).double() * length).float()
    expected = exact_codes(rows, table)
    assert nearest(rows, table).tolist() == expected
    assert nearest_k(rows, table, 2)[0][:, 0].tolist() == expected


def test_a_row_far_away_among_near_ones_changes_no_code() -> None:
    rows, table = torch.randn(50, 6), torch.randn(20, 6) * 1e-3
    rows[7] *= 1e37
    assert nearest(rows, table).tolist() == exact_codes(rows, table)


def test_an_offset_at_the_end_of_the_range_does_not_hurt() -> None:
    generator = torch.Generator().manual_seed(4)
    for offset in (-3e38, 3e38):
        rows = torch.randn(40, 4, generator=generator) * 1e36 + offset
        table = torch.randn(30, 4, generator=generator) * 1e36 + offset
        assert nearest(rows, table).tolist() == exact_codes(rows, table)
    assert nearest(torch.full((2, 4), -3e38), torch.full((5, 4), 3e38)).tolist() == [0, 0]


@pytest.mark.parametrize("switch", [
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.backends.fp32_precision = 'tf32'",
])  # fmt: skip
def test_the_newer_precision_switches_change_no_code(switch: str) -> None:
    # In a process of its own: torch refuses to mix these switches with the older one ever after.
    program = f"""
import torch
from smalti.quantize import nearest
torch.manual_seed(0)
rows, table = torch.randn(200, 16), torch.randn(100, 16)
{switch}
expected = torch.stack([(row.double() - table.double()).square().sum(1).argmin() for row in rows])
assert torch.equal(nearest(rows, table), expected)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_searched_as_float32(dtype: torch.dtype) -> None:
    rows, table = torch.randn(50, 7).to(dtype), torch.randn(20, 7).to(dtype)
    expected = brute_force(rows.float(), table.float())
    assert nearest(rows, table).tolist() == expected.argmin(1).tolist()
    assert nearest_k(rows, table, 3)[0].tolist() == expected.argsort(1, kind="stable")[:, :3].tolist()


@pytest.mark.parametrize(("rows", "table", "message"), [
    (torch.randn(3, 5), torch.randn(4, 6), r"\(N, 6\).*\(3, 5\)"),
    (torch.randn(3, 1, 6), torch.randn(4, 6), r"\(3, 1, 6\)"),
    (torch.ones(3, 6, dtype=torch.int64), torch.randn(4, 6), "int64"),
    (torch.randn(3, 6), torch.ones(4, 6, dtype=torch.int32), "table must be floating"),
    (torch.randn(3, 6), torch.randn(0, 6), r"table.*\(0, 6\)"),
    (torch.randn(3, 0), torch.randn(4, 0), r"table.*\(4, 0\)"),
    (torch.randn(3, 6), torch.tensor([[1.0] * 6, [float("nan")] * 6]), "table holds NaN or infinity in 1 of 2"),
    (torch.randn(3, 6), torch.tensor([[float("inf")] + [0.0] * 5]), "table holds NaN or infinity in 1 of 1"),
])  # fmt: skip
def test_what_can_not_be_searched_is_refused_by_name(rows: Tensor, table: Tensor, message: str) -> None:
    for search in (nearest, lambda rows, table: nearest_k(rows, table, 1)):
        with pytest.raises(InputError, match=message):
            search(rows, table)


def test_nearest_k_measures_in_steps_and_looks_at_all_codes_where_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(30, 6)
    table = torch.cat([torch.randn(40, 6), torch.zeros(50, 6), torch.randn(40, 6)])
    rows[:4] *= 1e-4  # fifty codes at once are their nearest
    expected = brute_force(rows, table).argsort(1, kind="stable")[:, :9]
    measured: list[int] = []
    original = neighbours.squared_distances

    def watched(x: Tensor, y: Tensor) -> Tensor:
        measured.append(torch.broadcast_shapes(x.shape, y.shape).numel())
        return original(x, y)

    monkeypatch.setattr(neighbours, "RESCORED_AT_ONCE", 100)
    monkeypatch.setattr(neighbours, "squared_distances", watched)
    codes, _ = nearest_k(rows, table, 9)
    assert codes.numpy().tolist() == expected.tolist()
    assert max(measured) <= 100


class Search(torch.nn.Module):
    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, rows: Tensor) -> Tensor:
        return nearest(rows, self.table)


def hard_table() -> Tensor:
    """Over a part of the traced search: duplicates across parts, near-ties, and one code many times over."""
    base = torch.randn(400, 6, generator=torch.Generator().manual_seed(5))
    return torch.cat([base, base * (1 + 3e-8), torch.zeros(40, 6), base])


def hard_rows() -> Tensor:
    rows = torch.randn(60, 6, generator=torch.Generator().manual_seed(6))
    rows[:10] *= 1e-3
    rows[10] *= 1e30
    return rows


def test_compiled_search_decides_ties_like_brute_force() -> None:
    rows, table = hard_rows(), hard_table()
    compiled = torch.compile(nearest, backend="eager", fullgraph=True)
    assert compiled(rows, table).tolist() == exact_codes(rows, table)


def repeating_tables() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(7)
    some, more = torch.randn(40, 4, generator=draw), torch.randn(700, 4, generator=draw)
    return {
        "a few": some[:3].repeat(8, 1),
        "in several parts": some.repeat(40, 1),
        "pairs": more.repeat(2, 1)[torch.randperm(1400, generator=draw)],
        "one code": torch.zeros(60, 4),
        "runs of one code": torch.cat([some, torch.zeros(600, 4), some + 1, torch.zeros(600, 4)]),
        "different ones as near": torch.randint(-1, 2, (1500, 4), generator=draw).float(),
        "no duplicates": some,
    }


@pytest.mark.parametrize("k", [1, 2, 5, 24])
@pytest.mark.parametrize("name", repeating_tables())
def test_compiled_candidates_are_those_of_brute_force(name: str, k: int) -> None:
    table = repeating_tables()[name]
    whole = torch.randint(-2, 3, (10, 4)).float()
    rows = torch.cat([torch.randn(20, 4), torch.randn(10, 4) * 1e-3, whole, table[:3]])
    distances = torch.stack([squared_distances(row, table) for row in rows])
    expected = distances.argsort(dim=1, stable=True)[:, :k]
    torch.compiler.reset()
    codes, costs = torch.compile(nearest_k, backend="eager", fullgraph=True)(rows, table, k)
    assert codes.tolist() == expected.tolist() == nearest_k(rows, table, k)[0].tolist()
    assert torch.equal(costs, distances.gather(1, expected))


@pytest.mark.parametrize("extent", [1e-23, 1e20])
def test_compiled_search_is_exact_at_other_magnitudes(extent: float) -> None:
    rows, table = torch.randn(30, 8) * extent, torch.randn(600, 8) * extent
    compiled = torch.compile(nearest, backend="eager", fullgraph=True)
    assert compiled(rows, table).tolist() == exact_codes(rows, table)


def test_an_exported_search_runs_without_smalti(tmp_path: Path) -> None:
    rows, table = hard_rows(), hard_table()
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(Search(table), (rows[:7],), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "search.pt2")
    torch.save([rows, exact_codes(rows, table)], tmp_path / "expected.pt")
    check = f"""
import sys, torch
rows, expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
codes = torch.export.load({str(tmp_path / "search.pt2")!r}).module()(rows)
assert codes.tolist() == expected
assert not any(name.split('.')[0] == 'smalti' for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", check], check=True, cwd=tmp_path)


def test_a_traced_search_holds_no_table_of_all_scores() -> None:
    rows, table = torch.randn(64, 4), torch.randn(16384, 4)
    program = torch.export.export(Search(table), (rows,))
    sizes = [node.meta["val"].numel() for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert max(sizes) <= max(table.numel(), 64 * 16384 // 16)


def test_many_duplicates_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(40, 3)
    table = torch.randn(5, 3).repeat(1500, 1)[torch.randperm(7500)]
    measured: list[int] = []
    original = neighbours.squared_distances

    def watched(x: Tensor, y: Tensor) -> Tensor:
        measured.append(torch.broadcast_shapes(x.shape, y.shape).numel())
        return original(x, y)

    monkeypatch.setattr(neighbours, "squared_distances", watched)
    assert nearest(rows, table).tolist() == exact_codes(rows, table)
    assert sum(measured) < 40 * 3 * 100
    assert nearest(rows, torch.zeros(5000, 3)).tolist() == [0] * 40
