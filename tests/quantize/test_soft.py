"""Soft choices and terms against their formulas spelled out over all codes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize import (
    CrossEntropyCommitment,
    Diversity,
    Drawn,
    Heads,
    Mutual,
    Orthogonal,
    Quantize,
    Scalars,
    Soft,
    Table,
    Trained,
    code_cross_entropy,
)

DIM, CODES = 4, 9


def table(space: str = "euclidean", seed: int = 0) -> Table:
    torch.manual_seed(seed)
    return Table(Trained(CODES, DIM, nn.init.normal_), space=space)  # type: ignore[arg-type]


def scores(x: Tensor, rows: Tensor, space: str) -> Tensor:
    return x @ rows.t() if space == "unit" else -torch.cdist(x, rows)


@pytest.mark.parametrize("space", ["euclidean", "unit"])
def test_drawn_codes_have_the_probabilities_of_their_scores(space: str) -> None:
    vq = Quantize(table(space), assign=Drawn(0.5))
    z = torch.randn(1, 1, DIM).expand(1, 40_000, DIM)
    shares = torch.bincount(vq(z).codes.flatten(), minlength=CODES) / 40_000
    x = vq.alphabet.project(z[0, :1])
    expected = F.softmax(scores(x, vq.codebooks()[0], space) / 0.5, 1)[0]
    assert (shares - expected).abs().max() < 0.012


def test_evaluation_and_temperature_zero_take_the_nearest() -> None:
    vq = Quantize(table(), assign=Drawn(1.0))
    z = torch.randn(2, 30, DIM)
    nearest = torch.cdist(z.flatten(0, 1), vq.codebooks()[0]).argmin(1).view(2, 30)
    assert torch.equal(vq.encode(z)[..., 0], nearest)
    assert not torch.equal(vq(z).codes[..., 0], nearest)
    vq.assign.temperature = 0.0  # type: ignore[assignment]
    assert torch.equal(vq(z).codes[..., 0], nearest)
    vq.assign.temperature = 1.0  # type: ignore[assignment]
    vq.eval()
    assert torch.equal(vq(z).codes[..., 0], nearest)


def test_given_gumbel_noise_decides_the_codes() -> None:
    vq, z, noise = Quantize(table(), assign=Drawn(0.7)), torch.randn(1, 20, DIM), torch.randn(20, 1, CODES)
    expected = (scores(z[0], vq.codebooks()[0], "euclidean") / 0.7 + noise[:, 0]).argmax(1)
    assert torch.equal(vq(z, noise={"gumbel": noise}).codes[0, :, 0], expected)


@pytest.mark.parametrize("buffer", [2**22, 3 * CODES])
@pytest.mark.parametrize("space", ["euclidean", "unit"])
def test_soft_gradients_are_those_of_the_mean_code(space: str, buffer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.quantize.soft.SOFT_BUFFER", buffer)
    vq = Quantize(table(space), assign=Soft(temperature=0.6))
    z = torch.randn(1, 20, DIM, requires_grad=True)
    upstream = torch.randn(1, 20, DIM)
    out = vq(z)
    assert isinstance(vq.alphabet, Table)
    rows = vq.alphabet.vectors.weight
    assert torch.equal(out.z, vq.decode(vq.encode(z)))
    found = torch.autograd.grad(out.z, [z, rows], upstream)
    x, e = vq.alphabet.project(z), vq.codebooks()[0]
    mean = F.softmax(scores(x[0], e, space) / 0.6, 1) @ e
    expected = torch.autograd.grad(mean[None], [z, rows], upstream)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))


def test_heads_that_share_a_table_are_as_many_searches_of_it() -> None:
    shared, single = Quantize(Heads(table(), 3)), Quantize(table())
    z = torch.randn(2, 7, 3 * DIM)
    expected = torch.cat([single.encode(part) for part in z.split(DIM, -1)], -1)
    assert torch.equal(shared.encode(z), expected)
    assert shared.vocab == (CODES,) * 3
    assert torch.allclose(shared.decode(expected), torch.cat([single.decode(c) for c in expected.split(1, -1)], -1))


def test_heads_candidates_are_those_of_all_combinations() -> None:
    heads = Quantize(Heads([table(seed=1), table(seed=2)]))
    z = torch.randn(1, 6, 2 * DIM)
    every = torch.cartesian_prod(torch.arange(CODES), torch.arange(CODES))
    costs = (z[0, :, None].double() - heads.decode(every[None])[0].double()).square().sum(-1)
    codes, _, found = heads.candidates(z, 5)
    assert torch.allclose(found[0], costs.sort(1).values[:, :5], atol=1e-5)
    assert torch.equal(codes[0], every[costs.argsort(1)[:, :5]])


def run(alphabet: Table | Heads, term: object, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Quantize]:
    vq = Quantize(alphabet, terms=[term])  # type: ignore[list-item]
    return vq(z, mask=mask).loss, vq


@pytest.mark.parametrize("buffer", [2**22, 4 * CODES])
@pytest.mark.parametrize("space", ["euclidean", "unit"])
def test_cross_entropy_commitment(space: str, buffer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.quantize.soft.SOFT_BUFFER", buffer)
    z, mask = torch.randn(2, 9, DIM), torch.rand(2, 9) > 0.3
    loss, vq = run(table(space), CrossEntropyCommitment(2.0), z, mask)
    x = vq.alphabet.project(z[mask])
    expected = 2 * F.cross_entropy(scores(x, vq.codebooks()[0], space), vq.encode(z)[mask][:, 0])
    assert torch.allclose(loss, expected, atol=1e-5)


def test_cross_entropy_leaves_masked_targets_out() -> None:
    alphabet, x = table(), torch.randn(5, DIM)
    codes = torch.tensor([[1], [-1], [3], [-1], [8]])
    expected = F.cross_entropy(scores(x, alphabet.rows(), "euclidean"), codes[:, 0], ignore_index=-1)
    assert torch.allclose(code_cross_entropy(x, codes, alphabet), expected, atol=1e-6)


@pytest.mark.parametrize("codes", [3, CODES])
def test_orthogonal_is_the_mean_squared_cosine_of_pairs(codes: int) -> None:
    torch.manual_seed(0)
    loss, vq = run(Table(Trained(codes, DIM, nn.init.normal_)), Orthogonal(1.0), torch.randn(1, 5, DIM))
    rows = F.normalize(vq.codebooks()[0], dim=-1)
    pairs = [(rows[i] @ rows[j]) ** 2 for i in range(codes) for j in range(codes) if i != j]
    assert torch.allclose(loss, torch.stack(pairs).sum() / codes**2, atol=1e-6)
    square = nn.init.orthogonal_(torch.empty(DIM, DIM))
    still, _ = run(Table(Trained(DIM, DIM, lambda w: w.copy_(square))), Orthogonal(1.0), torch.randn(1, 5, DIM))
    assert abs(float(still.detach())) < 1e-6


def test_orthogonal_of_active_codes_looks_at_those_alone() -> None:
    z = torch.randn(1, 4, DIM)
    loss, vq = run(table(), Orthogonal(1.0, active_only=True), z)
    rows = F.normalize(vq.codebooks()[0][vq.encode(z).unique()], dim=-1)
    assert torch.allclose(loss, (rows @ rows.t()).square().mean() - 1 / len(rows), atol=1e-6)


@pytest.mark.parametrize("buffer", [2**22, 4 * CODES])
def test_diversity_is_the_entropy_of_the_mean_choice_at_each_position(
    buffer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smalti.quantize.code_terms.SOFT_BUFFER", buffer)
    z, mask = torch.randn(4, 5, DIM, requires_grad=True), torch.rand(4, 5) > 0.3
    mask[0] = True
    loss, vq = run(table(), Diversity(1.0, 3.0), z, mask)
    p = F.softmax(3 * scores(z.flatten(0, 1), vq.codebooks()[0], "euclidean"), 1).view(4, 5, CODES)
    means = [p[mask[:, n], n].mean(0) for n in range(5)]
    expected = torch.stack([(m * m.clamp(min=1e-5).log()).sum() for m in means]).mean()
    assert torch.allclose(loss, expected, atol=1e-5)
    found, wanted = (torch.autograd.grad(each, z, retain_graph=True)[0] for each in (loss, expected))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_mutual_commitment_draws_both_with_equal_weight() -> None:
    z = torch.randn(1, 6, DIM, requires_grad=True)
    loss, vq = run(table(), Mutual(1.0), z)
    codes = vq.encode(z)[0, :, 0]
    assert isinstance(vq.alphabet, Table)
    to_z, to_rows = torch.autograd.grad(loss, [z, vq.alphabet.vectors.weight])
    gathered = torch.zeros(CODES, DIM).index_add(0, codes, -to_z[0])
    assert torch.allclose(to_rows, gathered, atol=1e-6)


def test_soft_assignments_need_tables() -> None:
    with pytest.raises(ConfigError, match="Table"):
        Quantize(Scalars((3, 3)), assign=Drawn())(torch.randn(1, 2, 2))
    with pytest.raises(ConfigError, match="heads"):
        Heads(table())
