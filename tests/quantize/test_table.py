"""Tables: learning without gradients, dead codes, mapped tables."""

from __future__ import annotations

import itertools
import timeit
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize import (
    EMA,
    Codebook,
    Commitment,
    Expire,
    Mapped,
    Quantize,
    Table,
    Trained,
    create,
    kmeans,
    nearest,
    prepare,
)
from smalti.quantize.table import _fingerprint


def test_ema_follows_its_formula_over_several_steps() -> None:
    torch.manual_seed(0)
    table = Table(Trained(6, 3, nn.init.normal_), learn=EMA(decay=0.9, eps=1e-3))
    vq = Quantize(table, terms=[Commitment(1.0)])
    count, total, codebook = torch.ones(6), table.rows().detach().clone(), table.rows().detach().clone()
    for _ in range(4):
        z = torch.randn(2, 20, 3)
        rows = z.reshape(-1, 3)
        chosen = torch.stack([(row - codebook).square().sum(1).argmin() for row in rows])
        out = vq(z)
        assert torch.equal(out.codes.flatten(), chosen)
        vq.update()
        onehot = torch.nn.functional.one_hot(chosen, 6).float()
        count = 0.9 * count + 0.1 * onehot.sum(0)
        total = 0.9 * total + 0.1 * onehot.t() @ rows
        smoothed = (count + 1e-3) / (count.sum() + 6e-3) * count.sum()
        codebook = total / smoothed[:, None]
        assert torch.allclose(table.rows(), codebook, atol=1e-5)


def test_statistics_of_micro_batches_apply_once() -> None:
    torch.manual_seed(0)
    whole, parts = (create("ema", dim=4, codes=8, kmeans_iterations=0, expire=0) for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    z = torch.randn(4, 10, 4)
    whole(z)
    for micro in z.split(1):
        parts(micro)
    whole.update()
    parts.update()
    assert torch.allclose(whole.codebooks()[0], parts.codebooks()[0], atol=1e-6)


def test_evaluation_gathers_nothing() -> None:
    vq = create("ema", dim=4, codes=8)
    vq.eval()
    before = {key: value.clone() for key, value in vq.state_dict().items()}
    vq(torch.randn(2, 5, 4))
    vq.update()
    assert all(torch.equal(value, before[key]) for key, value in vq.state_dict().items())


def test_masked_rows_are_not_learned_from() -> None:
    torch.manual_seed(0)
    one, other = (create("ema", dim=3, codes=4, kmeans_iterations=0, expire=0) for _ in range(2))
    other.load_state_dict(one.state_dict())
    z, mask = torch.randn(1, 8, 3), torch.arange(8)[None] < 5
    one(z, mask=mask)
    other(z[:, :5])
    one.update()
    other.update()
    assert torch.equal(one.codebooks()[0], other.codebooks()[0])


def test_a_replaced_code_stays_replaced() -> None:
    """The statistics of a dead code are set too: with the published order the next step would undo the replacement."""
    table = Table(Trained(3, 2, nn.init.zeros_), learn=EMA(decay=0.9), revive=Expire(2.0))
    with torch.no_grad():
        table.vectors.weight.copy_(torch.tensor([[0.0, 0.0], [50.0, 50.0], [-50.0, 50.0]]))
        table.ema_sum.copy_(table.vectors.weight)
    vq = Quantize(table)
    rows = torch.randn(1, 40, 2)
    vq(rows, noise={"replacement_rows": torch.tensor([0, 1, 2])})
    vq.update()
    assert torch.equal(table.vectors.weight[1:], rows[0, 1:3])
    assert table.ema_count[1:].tolist() == [2.0, 2.0]
    vq(rows, noise={"replacement_rows": torch.tensor([5, 6, 7])})
    vq.update()
    assert (table.vectors.weight.abs() < 10).all()


def test_expiry_brings_back_a_codebook_that_starts_far_away() -> None:
    """Acceptance check 4 of the quantizer sheet: 40 % of codes in use without expiry, all with it."""
    usage = {}
    for threshold in (0.0, 2.0):
        torch.manual_seed(0)
        vq = create("ema", dim=2, codes=512, decay=0.8, kmeans_iterations=0, expire=threshold)
        with torch.no_grad():
            rows = vq.alphabet.vectors.weight  # type: ignore[union-attr]
            rows.mul_(0.2 * 512).add_(3)
            vq.alphabet.ema_sum.copy_(rows)  # type: ignore[union-attr]
        for _ in range(100):
            vq(torch.randn(1, 4096, 2))
            vq.update()
        vq.eval()
        usage[threshold] = float(vq(torch.randn(1, 20000, 2)).terms["utilisation"])
    assert usage[0.0] < 0.6
    assert usage[2.0] > 0.95


def test_kmeans_start_finds_clusters() -> None:
    """Acceptance check 3 of the quantizer sheet: every cluster has a code within two of its deviations."""
    torch.manual_seed(0)
    centres = torch.randn(32, 8) * 2
    vq = create("ema", dim=8, codes=64, decay=0.95, kmeans_iterations=10, expire=1.0)
    for _ in range(200):
        vq(centres[torch.randint(32, (1, 512))] + 0.1 * torch.randn(1, 512, 8))
        vq.update()
    assert torch.cdist(centres, vq.codebooks()[0]).min(1).values.max() < 0.2


def test_kmeans_lowers_its_error_and_keeps_empty_clusters() -> None:
    rows = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 8])
    start = torch.tensor([0, 60, 0])  # the third mean loses every tie, so it stays empty in the first step
    errors = [
        torch.cdist(rows, kmeans(rows, 3, steps, start=start)[0]).min(1).values.square().mean() for steps in range(5)
    ]
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(errors))
    means, counts = kmeans(rows, 3, 1, start=start)
    assert torch.equal(means[2], rows[0])
    assert int(counts.sum()) == 100 and int(counts[2]) == 0


def test_unit_tables_compare_directions() -> None:
    vq = create("vq", dim=5, codes=20, unit=True)
    z = torch.randn(3, 7, 5)
    codes = vq.encode(z)
    assert torch.equal(codes, vq.encode(z * 17))
    cosine = torch.nn.functional.cosine_similarity(z[..., None, :], vq.codebooks()[0], dim=-1)
    assert torch.equal(codes[..., 0], cosine.argmax(-1))
    assert torch.allclose(vq.decode(codes).norm(dim=-1), torch.ones(3, 7))


def test_a_mapped_table_trains_its_network_and_never_its_base() -> None:
    vq = create("simvq", dim=4, codes=16)
    base = vq.alphabet.vectors.weight.clone()  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(vq.parameters(), lr=0.1)
    out = vq(torch.randn(2, 9, 4))
    out.loss.backward()
    optimizer.step()
    assert torch.equal(vq.alphabet.vectors.weight, base)  # type: ignore[union-attr]
    network = vq.alphabet.vectors.network  # type: ignore[union-attr]
    assert torch.allclose(vq.codebooks()[0], base @ network.weight.t() + network.bias)


def test_the_kept_table_follows_changed_weights() -> None:
    vq = create("simvq", dim=4, codes=16)
    vq.eval()
    with torch.no_grad():
        first = vq.codebooks()[0].clone()
        assert torch.equal(vq.codebooks()[0], first)
        vq.alphabet.vectors.network.bias.add_(1.0)  # type: ignore[union-attr]
        assert torch.allclose(vq.codebooks()[0], first + 1.0)


@pytest.mark.parametrize("dim", [3, 8])  # with an odd number of elements the last 64-bit word is half empty
@pytest.mark.parametrize("write", [
    lambda weight: weight.data.copy_(torch.randn_like(weight)),
    lambda weight: weight.data[4].add_(1e-3),
    lambda weight: weight.data.copy_(weight.data.flip(0)),
    lambda weight: weight.data.copy_(weight.data.flip(1)),
    lambda weight: weight.detach().numpy().fill(0.5),
])  # fmt: skip
@pytest.mark.parametrize("compared_whole", [0, 2**13])
def test_the_kept_table_follows_writes_that_no_version_counts(
    write: Callable[[Tensor], None], dim: int, compared_whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smalti.quantize.table.COMPARED_WHOLE", compared_whole)
    table = Table(Trained(15, dim, nn.init.normal_)).eval()
    x = torch.randn(200, dim)
    table.nearest(x)
    write(table.vectors.weight)
    rows = table.vectors.weight.detach().double()
    expected = torch.stack([(row - rows).square().sum(1).argmin() for row in x.double()])
    assert torch.equal(table.nearest(x)[:, 0], expected)


def test_every_single_bit_of_a_table_shows_in_its_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.quantize.table.COMPARED_WHOLE", 0)
    rows = torch.randn(7, 5).half()
    before = _fingerprint(rows)
    for bit in range(0, rows.numel() * 16, 3):
        changed = rows.clone().flatten()
        changed.view(torch.int16)[bit // 16] ^= 1 << bit % 15
        assert not torch.equal(_fingerprint(changed.view(7, 5)), before)
    assert torch.equal(_fingerprint(torch.cat([torch.ones(1).half(), rows.flatten()])[1:].view(7, 5)), before)


def test_a_model_made_in_inference_mode_encodes_and_follows_its_weights() -> None:
    with torch.inference_mode():
        vq = create("vq", dim=4, codes=16).eval()
        for _ in range(2):
            weight = vq.alphabet.vectors.weight.copy_(torch.randn(16, 4))  # type: ignore[union-attr]
            z = torch.randn(1, 9, 4)
            assert torch.equal(vq.encode(z)[0, :, 0], torch.cdist(z[0].double(), weight.double()).argmin(1))


def test_the_fingerprint_costs_little_of_a_search() -> None:
    x, weight = torch.randn(225, 512), torch.randn(4096, 512)
    ready = prepare(weight)
    nearest(x, ready)
    search = min(timeit.repeat(lambda: nearest(x, ready), number=1, repeat=5))
    check = min(timeit.repeat(lambda: _fingerprint(weight), number=1, repeat=5))
    assert check < 0.15 * search  # 4 % where nothing else runs


def test_a_masked_batch_costs_nothing_and_gives_every_row_a_gradient() -> None:
    vq = create("vq", dim=4, codes=16)
    out = vq(torch.randn(2, 3, 4, requires_grad=True), mask=torch.zeros(2, 3, dtype=torch.bool))
    out.loss.backward()
    assert out.loss.item() == 0
    assert torch.equal(vq.alphabet.vectors.weight.grad, torch.zeros(16, 4))  # type: ignore[union-attr]


def test_the_gradient_of_a_trained_table_is_that_of_its_chosen_rows() -> None:
    vq = Quantize(Table(Trained(4, 2, nn.init.normal_)), terms=[Codebook(1.0)])
    z = torch.randn(1, 6, 2)
    out = vq(z)
    out.loss.backward()
    rows, codes = vq.alphabet.vectors.weight, out.codes.flatten()  # type: ignore[union-attr]
    expected = torch.zeros(4, 2)
    for row, code in zip(z[0], codes, strict=True):
        expected[code] += 2 * (rows.detach()[code] - row) / 12
    assert torch.allclose(rows.grad, expected, atol=1e-6)


def test_rules_that_can_not_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="Trained"):
        Table(Mapped(torch.randn(4, 2), nn.Linear(2, 2), 2), learn=EMA())
    with pytest.raises(ConfigError, match="space"):
        Table(Trained(4, 2), space="cosine")  # type: ignore[arg-type]
