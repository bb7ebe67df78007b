"""Running usage, and margins, against counts and distances by hand."""

from __future__ import annotations

import pytest
import torch

from smalti.quantize import Quantize, Residual, Table, Trained, create, usage


def test_usage_is_the_share_of_codes_of_the_last_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "WINDOW", 30)
    torch.manual_seed(0)
    vq = Quantize(Table(Trained(40, 3, torch.nn.init.normal_)))
    history = []
    for step in range(9):
        history.append(vq(0.2 * step * torch.randn(1, 10, 3)).codes)
        # Windows end with every third batch; the full one before counts too.
        since = max(0, (step // 3 - 1) * 3)
        assert vq.usage().tolist() == pytest.approx([len(torch.cat(history[since:]).unique()) / 40])


def test_evaluation_and_masked_positions_do_not_count_as_usage() -> None:
    vq = create("vq", dim=3, codes=16)
    vq.eval()(torch.randn(2, 9, 3))
    assert vq.usage().tolist() == [0.0]
    vq.train()(torch.randn(2, 9, 3), mask=torch.zeros(2, 9, dtype=torch.bool))
    assert vq.usage().tolist() == [0.0]


def test_usage_has_a_value_per_slot_and_none_where_codes_are_not_counted() -> None:
    rvq = Residual([create("vq", dim=3, codes=16), create("vq", dim=3, codes=8)])
    codes = rvq(torch.randn(4, 30, 3)).codes
    expected = [len(codes[..., slot].unique()) / size for slot, size in enumerate((16, 8))]
    assert rvq.usage().tolist() == pytest.approx(expected)
    bits = create("lookup-free", bits=24)
    bits(torch.randn(4, 30, 24))
    assert torch.isnan(bits.usage()).all()


def test_margins_are_second_best_minus_best_distance_of_each_level() -> None:
    torch.manual_seed(0)
    levels = [Quantize(Table(Trained(20, 4, torch.nn.init.normal_))) for _ in range(3)]
    rvq = Residual(levels).eval()
    z = torch.randn(2, 15, 4)
    _, margin = rvq.encode_with_margin(z)
    rest = z.double()
    for index, table in enumerate(rvq.codebooks()):
        distances = (rest[..., None, :] - table.double()).square().sum(-1)
        two = distances.topk(2, largest=False).values
        assert torch.allclose(margin[..., index].double(), two[..., 1] - two[..., 0], atol=1e-5)
        rest = rest - table.double()[distances.argmin(-1)]


def test_a_single_code_has_no_rival() -> None:
    _, margin = create("vq", dim=2, codes=1).eval().encode_with_margin(torch.randn(3, 2))
    assert torch.isinf(margin).all()


def test_slots_that_are_chosen_together_share_a_margin() -> None:
    fsq = create("fsq", levels=(3, 3), groups=2).eval()
    _, margin = fsq.encode_with_margin(torch.randn(2, 5, 4))
    assert torch.equal(margin[..., 0], margin[..., 1])
