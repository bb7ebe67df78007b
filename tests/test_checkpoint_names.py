"""Names of tensors in published files: two-way tables, and LitEma's dotless copies."""

from __future__ import annotations

import pytest
import torch

from smalti.checkpoint import KeyTable, prefer_averaged
from smalti.errors import CheckpointError

TABLE = KeyTable({"layers.{}.wo.": "blocks.{}.out.", "layers.{}.mlp.{}.": "blocks.{}.mlp.part{}.", "emb": "table"})


@pytest.mark.parametrize(("official", "own"), [
    ("layers.12.wo.weight", "blocks.12.out.weight"),
    ("layers.0.mlp.2.bias", "blocks.0.mlp.part2.bias"),
    ("emb", "table"),
    ("head.weight", "head.weight"),
])  # fmt: skip
def test_names_go_both_ways(official: str, own: str) -> None:
    assert TABLE.own(official) == own
    assert TABLE.official(own) == official


def test_the_longest_template_wins_whatever_the_order() -> None:
    table = KeyTable({"a.": "x.", "a.b.": "x.y."})
    assert table.own("a.b.c") == "x.y.c"
    assert table.official("x.y.c") == "a.b.c"


def test_two_keys_must_not_become_one() -> None:
    with pytest.raises(CheckpointError, match="becomes table"):
        TABLE.own_state({"emb": torch.ones(1), "table": torch.ones(1)})


def test_averages_replace_live_tensors_where_there_are_any() -> None:
    state = {"a.b.weight": torch.zeros(1), "frozen": torch.zeros(1), "model_ema.abweight": torch.ones(1),
             "model_ema.decay": torch.tensor(0.9)}  # fmt: skip
    preferred = prefer_averaged(state)
    assert {key: value.item() for key, value in preferred.items()} == {"a.b.weight": 1.0, "frozen": 0.0}
    with pytest.raises(CheckpointError, match=r"model_ema\.ghost"):
        prefer_averaged(state | {"model_ema.ghost": torch.ones(1)})
