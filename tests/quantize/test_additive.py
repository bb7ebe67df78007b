"""Additive codes against all sums, residual quantization, finite differences and the figures of the sheet."""

from __future__ import annotations

import itertools
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.quantize import Codebook, Commitment, Quantize, Residual, Table, Trained
from smalti.quantize.additive import (
    Additive,
    Beam,
    ConstantProducts,
    Encoder,
    Energy,
    Exhaustive,
    LeastSquares,
    LocalSearch,
    Ordered,
    Scores,
    add_up,
    fit,
    least_squares,
    normal_equations,
    residual_kmeans,
)
from smalti.testing import check_quantizer

ENCODERS: dict[str, Encoder] = {
    "ordered": Ordered(4),
    "greedy": Ordered(1),
    "beam": Beam(6),
    "local search": LocalSearch(rounds=3, sweeps=2),
    "exhaustive": Exhaustive(),
}


def draw(levels: int, codes: int, dim: int, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=generator), torch.randn(levels, codes, dim, generator=generator)


def mixture(rows: int, dim: int, seed: int = 0, components: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(components, dim, generator=generator)
    return means[torch.randint(components, (rows,), generator=generator)] + torch.randn(rows, dim, generator=generator)


def brute_force(x: Tensor, books: Tensor) -> tuple[list[tuple[int, ...]], Tensor]:
    """The best codes and all costs, in float64, one combination at a time."""
    combinations = list(itertools.product(range(books.shape[1]), repeat=len(books)))
    sums = torch.stack([sum(books[m, k].double() for m, k in enumerate(word)) for word in combinations])  # type: ignore[misc]
    costs = (x.double()[:, None] - sums).square().sum(-1)
    return [combinations[i] for i in costs.argmin(1).tolist()], costs


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_tables_give_the_squared_error(offset: float) -> None:
    x, books = draw(5, 12, 17, 60)
    x, books = x + offset, books + offset / 5
    codes = torch.randint(12, (60, 5), generator=torch.Generator().manual_seed(1))
    expected = (x.double() - add_up(codes, books).double()).square().sum(1)
    torch.testing.assert_close(Energy.of(books).measured(x, codes), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoder", [Exhaustive(), Beam(64), Ordered(64)])
def test_a_beam_as_wide_as_the_code_finds_the_best_of_all_sums(encoder: Encoder) -> None:
    x, books = draw(3, 4, 5, 100)
    expected, costs = brute_force(x, books)
    codes, found = encoder.best(x, books, 1)
    assert [tuple(row) for row in codes[:, 0].tolist()] == expected
    torch.testing.assert_close(found[:, 0], costs.amin(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoder", [Exhaustive(), Beam(64), Ordered(64)])
def test_candidates_are_the_k_best_sums(encoder: Encoder) -> None:
    x, books = draw(3, 4, 5, 40, seed=2)
    _, costs = brute_force(x, books)
    codes, found = encoder.best(x, books, 10)
    torch.testing.assert_close(found, costs.sort(dim=1).values[:, :10], rtol=1e-5, atol=1e-5)
    assert all(len({tuple(code) for code in row}) == 10 for row in codes.tolist())


def test_a_beam_holds_each_set_of_codewords_once() -> None:
    x, books = draw(4, 3, 6, 50, seed=3)
    codes, costs = Beam(40).best(x, books, 40)
    assert all(len({tuple(code) for code in row}) == 40 for row in codes.tolist())
    assert bool(torch.isfinite(costs).all())


def test_greedy_in_order_is_residual_quantization() -> None:
    x, books = draw(4, 16, 8, 500, seed=4)
    residual = Residual([Quantize(Table(Trained(16, 8, lambda w, b=book: w.copy_(b)))) for book in books]).eval()  # type: ignore[misc]
    codes = Quantize(Additive(8, 4, 16, encoder=Ordered(1), init=lambda w: w.copy_(books))).encode(x[None])
    assert torch.equal(codes, residual.encode(x[None]))
    by_hand, left = [], x
    for book in books:
        by_hand.append(torch.cdist(left.double(), book.double()).argmin(1))
        left = left - book[by_hand[-1]]
    assert torch.equal(codes[0], torch.stack(by_hand, 1))


def test_one_codebook_is_vector_quantization() -> None:
    x, books = draw(1, 20, 6, 200, seed=5)
    expected = torch.cdist(x.double(), books[0].double()).argmin(1)
    for encoder in ENCODERS.values():
        assert torch.equal(encoder.encode(x, books)[:, 0], expected)


def test_local_search_never_raises_the_error() -> None:
    x = mixture(400, 16)
    books, greedy = residual_kmeans(x, 4, 16)
    start = torch.randint(16, greedy.shape, generator=torch.Generator().manual_seed(6))
    for codes in (greedy, start, Beam(16).encode(x, books)):
        before = (x.double() - add_up(codes, books).double()).square().sum(1)
        for rounds in (1, 4, 16):
            found = LocalSearch(rounds=rounds).encode(x, books, codes)
            after = (x.double() - add_up(found, books).double()).square().sum(1)
            assert bool((after <= before * (1 + 1e-6)).all())
        assert float(after.mean()) < float(before.mean())


@pytest.mark.parametrize("name", ENCODERS)
def test_codes_do_not_depend_on_the_batch(name: str) -> None:
    x, books = draw(3, 8, 7, 130, seed=7)
    books[:, 5] = books[:, 2]  # duplicates: exact ties
    encoder = ENCODERS[name]
    whole = encoder.encode(x, books)
    assert torch.equal(whole, torch.cat([encoder.encode(row[None], books) for row in x]))
    assert torch.equal(whole.flip(0), encoder.encode(x.flip(0), books))


@pytest.mark.parametrize("name", ENCODERS)
def test_no_rows_and_one_codeword(name: str) -> None:
    x, books = draw(3, 4, 5, 6)
    codes, costs = ENCODERS[name].best(x[:0], books, 2)
    assert codes.shape == (0, 2, 3) and costs.shape == (0, 2)
    assert not bool(ENCODERS[name].encode(x, books[:, :1]).any())
    assert ENCODERS[name].encode(torch.zeros(2, 5), torch.zeros(3, 4, 5)).shape == (2, 3)


def test_least_squares_solves_the_normal_equations() -> None:
    x = mixture(3000, 8)
    books, codes = residual_kmeans(x, 3, 16)
    gram, moments = normal_equations(x, codes, 16)
    one_hot = torch.zeros(len(x), 48, dtype=torch.float64)
    for level in range(3):
        one_hot[torch.arange(len(x)), codes[:, level] + 16 * level] = 1
    assert torch.equal(gram, one_hot.t() @ one_hot)
    torch.testing.assert_close(moments, one_hot.t() @ x.double())
    words = least_squares(gram, moments)
    best = torch.linalg.lstsq(one_hot, x.double(), driver="gelsd").solution
    torch.testing.assert_close(one_hot @ words, one_hot @ best, rtol=0, atol=1e-5)
    gradient = 2 * one_hot.t() @ (one_hot @ words - x.double()) / x.numel()
    assert float(gradient.abs().max()) < 1e-6
    before = (x - add_up(codes, books)).square().sum()
    assert float((x.double() - one_hot @ words).square().sum()) <= float(before)


def test_words_that_nothing_chose_stay_where_they_were() -> None:
    x = mixture(200, 4)
    books = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(8))
    codes = torch.randint(6, (200, 2), generator=torch.Generator().manual_seed(9))  # 6 and 7 are never chosen
    words = least_squares(*normal_equations(x, codes, 8), towards=books.flatten(0, 1)).view_as(books)
    torch.testing.assert_close(words[:, 6:].float(), books[:, 6:])


def test_lsq_beats_residual_quantization_by_a_tenth() -> None:
    x = mixture(5000, 32, components=100)
    found = fit(x, 4, 16, iterations=10)
    books, codes = residual_kmeans(x, 4, 16, iterations=25)
    residual = float((x - add_up(codes, books)).square().sum(1).mean())
    assert found.errors[-1] < 0.9 * residual
    assert found.errors[-1] == pytest.approx(
        float((x - add_up(found.codes, found.codebooks)).square().sum(1).mean()), rel=1e-5
    )


def test_noise_on_codebooks_finds_better_ones_in_time() -> None:
    x = mixture(1000, 8)
    assert fit(x, 4, 8, iterations=60, perturbation=0.1).errors[-1] < fit(x, 4, 8, iterations=60).errors[-1]


def test_without_noise_the_error_never_rises() -> None:
    errors = torch.tensor(fit(mixture(800, 8), 3, 8, iterations=6).errors)
    assert bool((errors.diff() <= 1e-6 * errors[0]).all())


def test_search_through_tables_finds_what_decoding_finds() -> None:
    x, queries = mixture(3000, 16), mixture(200, 16, seed=11)
    books, codes = residual_kmeans(x, 4, 16)
    decoded = add_up(codes, books).double()
    expected = torch.cdist(queries.double(), decoded).square()
    exact = Scores.of(books, codes, norm_levels=None)
    torch.testing.assert_close(exact.distances(queries).double(), expected, rtol=1e-4, atol=1e-3)
    found, _ = exact.search(queries, 1)
    least = expected.amin(1)  # several vectors may share codes, so distances are compared, not numbers
    torch.testing.assert_close(expected.gather(1, found)[:, 0], least, rtol=1e-5, atol=1e-4)
    scores = Scores.of(books, codes)
    assert scores.rests is not None and len(scores.rests.unique()) <= 256
    rough = expected.gather(1, scores.search(queries, 1)[0])[:, 0]
    assert float((rough <= least + 1e-4).double().mean()) >= 0.96
    assert float((rough <= 1.01 * least).double().mean()) >= 0.99


def test_composite_codes_rank_without_norms() -> None:
    """Codebooks in orthogonal subspaces have products of zero: there the rule is exact."""
    generator = torch.Generator().manual_seed(12)
    books = torch.zeros(2, 8, 6)
    books[0, :, :3] = torch.randn(8, 3, generator=generator)
    books[1, :, 3:] = torch.randn(8, 3, generator=generator)
    codes = torch.randint(8, (300, 2), generator=generator)
    queries = torch.randn(20, 6, generator=generator)
    expected = torch.cdist(queries.double(), add_up(codes, books).double()).square()
    rough = Scores.composite(books, codes).distances(queries).double()
    torch.testing.assert_close(rough, expected, rtol=1e-4, atol=1e-4)
    alphabet = Additive(6, 2, 8, init=lambda w: w.copy_(books))
    quantizer = Quantize(alphabet, terms=[ConstantProducts()]).train()
    assert float(quantizer(queries[None]).loss.detach()) < 1e-10


def test_the_term_of_composite_codes_is_the_variance_of_products() -> None:
    x, books = draw(3, 5, 4, 30, seed=13)
    quantizer = Quantize(Additive(4, 3, 5, init=lambda w: w.copy_(books)), terms=[ConstantProducts(2.0)]).train()
    out = quantizer(x[None])
    sums = []
    for row in out.codes[0].tolist():
        words = [books[m, k].double() for m, k in enumerate(row)]
        sums.append(sum(float(words[m] @ words[n]) for m in range(3) for n in range(3) if m != n))
    expected = 2 * torch.tensor(sums).var(correction=0)
    assert float(out.terms["products"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_contract(name: str) -> None:
    torch.manual_seed(0)
    alphabet = Additive(6, 3, 5, encoder=ENCODERS[name])
    check_quantizer(Quantize(alphabet, terms=[Codebook(), Commitment()]))


def test_losses_move_codebooks_and_latents() -> None:
    torch.manual_seed(1)
    quantizer = Quantize(Additive(8, 3, 16), terms=[Codebook(), Commitment()]).train()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    x = mixture(512, 8)[None]
    first = None
    for _ in range(150):
        optimizer.zero_grad()
        out = quantizer(x)
        out.loss.backward()
        optimizer.step()
        first = first or float(out.terms["codebook"])
    assert float(out.terms["codebook"]) < 0.6 * first


def test_update_changes_every_level_and_evaluation_none() -> None:
    torch.manual_seed(2)
    quantizer = Quantize(Additive(8, 3, 16, learn=LeastSquares(decay=0.5))).train()
    assert isinstance(quantizer.alphabet, Additive)
    x = mixture(600, 8)[None]
    quantizer(x)
    before = quantizer.alphabet.weight.clone()
    error = (quantizer.decode(quantizer.encode(x)) - x).square().sum(-1).mean()
    quantizer.update()
    after = quantizer.alphabet.weight.clone()
    assert bool(((before - after).abs().amax((1, 2)) > 1e-6).all())
    assert float((quantizer.decode(quantizer.encode(x)) - x).square().sum(-1).mean()) < float(error)
    quantizer.eval()
    quantizer(x)
    quantizer.update()
    assert torch.equal(quantizer.alphabet.weight, after)


def test_micro_batches_count_as_one() -> None:
    x = mixture(600, 8)
    whole, parts = (
        Quantize(Additive(8, 2, 8, learn=LeastSquares(kmeans_iterations=0), init=_steady)).train() for _ in range(2)
    )
    whole(x[None])
    for part in x.split(200):
        parts(part[None])
    whole.update()
    parts.update()
    torch.testing.assert_close(whole.codebooks(), parts.codebooks(), rtol=1e-4, atol=1e-3)


def _steady(weight: Tensor) -> None:
    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(14)))


@pytest.mark.parametrize("name", ["ordered", "greedy", "beam", "local search"])
def test_an_exported_encode_gives_the_same_codes(name: str) -> None:
    quantizer = Quantize(Additive(6, 3, 8, encoder=ENCODERS[name], init=_steady)).eval()

    class Encode(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantizer = quantizer

        def forward(self, z: Tensor) -> Tensor:
            return self.quantizer.encode(z)

    z = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(15))
    program = torch.export.export(Encode(), (z,)).module()
    assert torch.equal(program(z), quantizer.encode(z))


def test_refusals() -> None:
    x, books = draw(2, 3, 4, 5)
    with pytest.raises(InputError):
        Beam().best(x, books, 10)
    with pytest.raises(InputError):
        Ordered().best(x / 0, books)
    with pytest.raises(ConfigError):
        Exhaustive().best(x, torch.zeros(8, 256, 4))
    with pytest.raises(ConfigError):
        Beam(0)
    with pytest.raises(ConfigError):
        Additive(0, 2, 3)


def two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    plain = Quantize(Additive(4, 2, 8, learn=LeastSquares(kmeans_iterations=0), init=_steady)).train()
    whole = torch.randn(4, 20, 4, generator=torch.Generator().manual_seed(16))
    plain(whole[2 * rank : 2 * rank + 2])
    plain.update()
    torch.manual_seed(100 + rank)
    started = Quantize(Additive(4, 2, 8, learn=LeastSquares(decay=0.8), init=_steady)).train()
    for step in range(20):
        z = torch.randn(2, 15 + 5 * rank, 4)
        # In the first step no rank has rows, then one of them, then both.
        real = torch.full(z.shape[:2], step > 0 and step % 3 != rank)
        started(z, mask=real)
        started.update()
    torch.save([plain.state_dict(), started.state_dict()], f"{folder}/rank{rank}.pt")
    dist.barrier()  # a rank that leaves early can take the others down with it
    dist.destroy_process_group()


def test_two_ranks_learn_what_one_learns_and_stay_bit_equal(tmp_path: Path) -> None:
    mp.spawn(two_ranks, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    plain = Quantize(Additive(4, 2, 8, learn=LeastSquares(kmeans_iterations=0), init=_steady)).train()
    plain(torch.randn(4, 20, 4, generator=torch.Generator().manual_seed(16)))
    plain.update()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(first[0][key], value, rtol=1e-3, atol=1e-3)
