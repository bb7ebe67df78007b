"""BEiT v2's rule, by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from smalti.errors import ConfigError
from smalti.quantize import NormalisedEMA, Quantize, Table, Trained, create


def test_two_codes_and_three_points() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    learn = NormalisedEMA(decay=0.75, kmeans_iterations=0)
    table = Table(Trained(3, 2, init=lambda weight: weight.copy_(rows)), space="unit", learn=learn)
    quantizer = Quantize(table).train()
    # (5, 0) and (4, 3) choose code 0, (0, 2) chooses code 1, nothing chooses code 2.
    out = quantizer(torch.tensor([[[5.0, 0.0], [4.0, 3.0], [0.0, 2.0]]]))
    assert out.codes.flatten().tolist() == [0, 0, 1]
    assert torch.equal(out.z[0], rows[[0, 0, 1]])  # the table as it was before the step
    quantizer.update()
    mean = torch.tensor([1.8, 0.6]) / 3.6**0.5
    moved = 0.75 * rows[0] + 0.25 * mean
    expected = torch.stack([moved / moved.norm(), rows[1], rows[2]])
    assert torch.allclose(table.stored_rows(), expected, atol=1e-6)
    assert torch.allclose(table.ema_count, torch.tensor([0.75 + 0.5, 0.75 + 0.25, 0.75]))


def test_micro_batches_are_one_step() -> None:
    torch.manual_seed(0)
    z = torch.randn(4, 30, 5)
    whole, parts = (create("normalised-ema", dim=5, codes=7, kmeans_iterations=0).train() for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    whole(z)
    for part in z.split(1):
        parts(part)
    for quantizer in (whole, parts):
        quantizer.update()
    assert torch.allclose(whole.codebooks()[0], parts.codebooks()[0], atol=1e-6)


def test_rows_keep_their_length_and_follow_clusters_from_a_spherical_start() -> None:
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(8, 6), dim=1)
    quantizer = create("normalised-ema", dim=6, codes=64, decay=0.8).train()
    for _ in range(60):
        quantizer(centres[torch.randint(8, (1, 256))] * 3 + 0.1 * torch.randn(1, 256, 6))
        quantizer.update()
    rows = quantizer.codebooks()[0]
    assert torch.allclose(rows.norm(dim=1), torch.ones(64), atol=1e-5)
    assert bool(((centres @ rows.t()).amax(1) > 0.99).all())


def test_only_unit_tables_can_learn_so() -> None:
    with pytest.raises(ConfigError, match="unit"):
        Table(Trained(3, 2), learn=NormalisedEMA())
