"""The language model: its table is frozen, its layout is the published one, and it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.generate.conditions import TokenCondition
from smalti.nn.transformer import Rotary, Transformer
from smalti.testing import check_generator
from smalti.text.visual_unicode import VisualLanguageModel, binary_code_table, random_table
from smalti.tokens import StreamSpec, Tokens

Config = VisualLanguageModel.Config


def small(**changes: Any) -> Config:
    sizes: dict[str, Any] = {
        "streams": {"codes": StreamSpec((16,), (32,))},
        "condition": TokenCondition(start=1),
        "transformer": Transformer.Config(
            width=20, layers=2, heads=2, hidden=40, context=16, positions=Rotary(pairing="halves")
        ),
        "table_dim": 20,
    }
    return Config(**{**sizes, **changes})


def text(batch: int, steps: int = 16, seed: int = 0) -> Tokens:
    ids = torch.randint(32, (batch, steps), generator=torch.Generator().manual_seed(seed))
    return Tokens.of(ids[..., None], (32,))


def test_it_keeps_the_contract_of_generators() -> None:
    check_generator(VisualLanguageModel)


def test_defaults_are_the_published_model() -> None:
    config = Config()
    width, layers = config.transformer.width, config.transformer.layers
    assert (width, layers, config.transformer.heads, config.transformer.context) == (1024, 16, 32, 1024)
    assert 2 * 65536 * width + 12 * layers * width**2 == pytest.approx(335e6, rel=0.01)


def test_a_frozen_table_is_no_parameter_and_does_not_move() -> None:
    model = small().build()
    table = random_table(32, 20)
    model.use_table(table)
    assert "embedding.weight" not in dict(model.named_parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(text(4)).loss.backward()
        optimizer.step()
    assert model.embedding.weight.grad is None and not model.embedding.weight.requires_grad
    assert torch.equal(model.embedding.weight, table.weight)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert id(model.embedding.weight) not in held
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_unfrozen_model_starts_from_the_same_table_and_trains_it() -> None:
    model = small(frozen=False).build()
    table = random_table(32, 20)
    model.use_table(table)
    model(text(4)).loss.backward()
    assert model.embedding.weight.grad is not None
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(model.embedding.weight, table.weight)


def test_a_checkpoint_may_leave_the_table_out(tmp_path: Path) -> None:
    table, other = random_table(32, 20, seed=1), random_table(32, 20, seed=2)
    model = small(store_table=False).build().eval()
    model.use_table(table)
    assert not any("embedding" in key for key in model.state_dict())
    again = VisualLanguageModel.load(model.save(tmp_path / "saved"))
    with pytest.raises(InputError, match="use_table"):
        again(text(2))
    with pytest.raises(InputError, match="use_table"):
        again.generate(1)
    with pytest.raises(CheckpointError, match="table"):
        again.use_table(other)
    again.use_table(table)
    assert torch.equal(again(text(2)).logits, model(text(2)).logits)


def test_a_checkpoint_holds_the_table_by_default(tmp_path: Path) -> None:
    model = small().build().eval()
    model.use_table(random_table(32, 20))
    again = VisualLanguageModel.load(model.save(tmp_path / "saved"))
    assert again.config.table_fingerprint == random_table(32, 20).fingerprint
    assert torch.equal(again(text(2)).logits, model(text(2)).logits)


def test_small_codes_are_repeated_to_the_width_and_train() -> None:
    model = small(table_dim=5).build()
    table = binary_code_table(32)
    model.use_table(table)
    vectors = model.embedding(torch.tensor([[3, 4]]))
    assert vectors.shape == (1, 2, 20)
    assert torch.equal(vectors, table.weight[3:5].repeat(1, 4)[None])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model(text(4)).loss.item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(text(4)).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first


def test_tables_and_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="divide"):
        small(table_dim=6)
    with pytest.raises(ConfigError, match="stored"):
        small(frozen=False, store_table=False)
    with pytest.raises(ConfigError, match="needs"):
        small().build().use_table(random_table(32, 10))
    with pytest.raises(ConfigError, match="even"):
        Transformer.Config(width=9, heads=3, positions=Rotary())


# --- the published layout ----------------------------------------------------------------------------------------


def official_state(names: dict[str, str], *, width: int = 24, layers: int = 2, ids: int = 30, dim: int = 12) -> Any:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=draw)

    state = {names["table"]: normal(ids, dim), "lm_head.weight": normal(ids, width)}
    for layer in range(layers):
        block = names["block"].format(layer)
        for part in "qkvo":
            state[f"{block}.{names['attention']}.{part}_proj.weight"] = normal(width, width)
        state[f"{block}.{names['up']}.weight"], state[f"{block}.{names['up']}.bias"] = (
            normal(4 * width, width), normal(4 * width),
        )  # fmt: skip
        state[f"{block}.{names['down']}.weight"], state[f"{block}.{names['down']}.bias"] = (
            normal(width, 4 * width), normal(width),
        )  # fmt: skip
        for norm in (names["norm1"], names["norm2"]):
            state[f"{block}.{norm}.weight"], state[f"{block}.{norm}.bias"] = 1 + normal(width), normal(width)
    state[f"{names['norm']}.weight"], state[f"{names['norm']}.bias"] = 1 + normal(width), normal(width)
    return state


LAYOUTS = {
    "layers": {
        "table": "token_embeddings.weight", "block": "transformer_layers.{}", "attention": "attn", "up": "mlp.0",
        "down": "mlp.2", "norm1": "ln1", "norm2": "ln2", "norm": "ln_f",
    },
    "blocks": {
        "table": "token_embedding.weight", "block": "blocks.{}", "attention": "self_attn", "up": "mlp.fc1",
        "down": "mlp.fc2", "norm1": "input_layernorm", "norm2": "post_attention_layernorm", "norm": "norm",
    },
    "bare": {
        "table": "model.embed_tokens.weight", "block": "model.layers.{}", "attention": "self_attn", "up": "fc1",
        "down": "fc2", "norm1": "ln_1", "norm2": "ln_2", "norm": "model.norm",
    },
}  # fmt: skip


def reference(state: dict[str, Tensor], names: dict[str, str], ids: Tensor, heads: int, pairing: str) -> Tensor:
    """Logits of the sheet's model, written down step by step."""
    width = state["lm_head.weight"].shape[1]
    x = state[names["table"]][ids]
    x = torch.cat([x] * (width // x.shape[-1]), dim=-1)
    steps, size = ids.shape[1], width // heads
    frequencies = 10000.0 ** (-2 * torch.arange(size // 2) / size)
    angles = torch.arange(steps)[:, None] * frequencies

    def turned(y: Tensor) -> Tensor:
        if pairing == "halves":
            full = torch.cat([angles, angles], dim=-1)
            one, other = y.chunk(2, dim=-1)
            return y * full.cos() + torch.cat([-other, one], dim=-1) * full.sin()
        full = angles.repeat_interleave(2, dim=-1)
        swapped = torch.stack([-y[..., 1::2], y[..., ::2]], dim=-1).flatten(-2)
        return y * full.cos() + swapped * full.sin()

    def normed(y: Tensor, name: str) -> Tensor:
        return F.layer_norm(y, (width,), state[f"{name}.weight"], state[f"{name}.bias"])

    layer = 0
    while f"{names['block'].format(layer)}.{names['attention']}.q_proj.weight" in state:
        block = names["block"].format(layer)
        y = normed(x, f"{block}.{names['norm1']}")
        q, k, v = (
            (y @ state[f"{block}.{names['attention']}.{part}_proj.weight"].T)
            .unflatten(-1, (heads, size))
            .transpose(1, 2)
            for part in "qkv"
        )
        scores = turned(q) @ turned(k).transpose(-1, -2) / math.sqrt(size)
        scores = scores.masked_fill(torch.ones(steps, steps).triu(1).bool(), -torch.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
        x = x + y @ state[f"{block}.{names['attention']}.o_proj.weight"].T
        y = normed(x, f"{block}.{names['norm2']}")
        y = F.gelu(y @ state[f"{block}.{names['up']}.weight"].T + state[f"{block}.{names['up']}.bias"])
        x = x + y @ state[f"{block}.{names['down']}.weight"].T + state[f"{block}.{names['down']}.bias"]
        layer += 1
    return normed(x, names["norm"]) @ state["lm_head.weight"].T


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pairing", ["halves", "neighbours"])
def test_published_weights_compute_what_the_sheet_says(layout: str, pairing: str) -> None:
    names = LAYOUTS[layout]
    state = official_state(names)
    config = {"n_head": 3, "block_size": 10, "rope_pairing": pairing}
    model = VisualLanguageModel.from_official(config, {**state, "inv_freq": torch.zeros(4)})
    assert (model.config.table_dim, model.config.transformer.width) == (12, 24)
    ids = torch.randint(30, (2, 9), generator=torch.Generator().manual_seed(1))
    start = torch.full((2, 1), 29)
    expected = reference(state, names, torch.cat([start, ids[:, :-1]], dim=1), 3, pairing)
    logits = model(Tokens.of(ids[..., None], (30,))).logits
    assert torch.allclose(logits, expected, atol=1e-4)
    other = "neighbours" if pairing == "halves" else "halves"
    assert not torch.allclose(
        logits, reference(state, names, torch.cat([start, ids[:, :-1]], dim=1), 3, other), atol=1e-2
    )


def test_sizes_are_read_off_the_tensors() -> None:
    model = VisualLanguageModel.from_official(None, official_state(LAYOUTS["layers"], width=64, dim=64))
    assert (model.config.transformer.heads, model.config.transformer.context) == (2, 1024)
    assert model.config.streams["codes"].vocab == (30,)


def test_unknown_and_missing_keys_are_named() -> None:
    state = official_state(LAYOUTS["layers"])
    with pytest.raises(CheckpointError, match="gate"):
        VisualLanguageModel.from_official(
            {"n_head": 3}, {**state, "transformer_layers.0.mlp.gate.weight": torch.zeros(2)}
        )
    with pytest.raises(CheckpointError, match="one place"):
        VisualLanguageModel.from_official({"n_head": 3}, {**state, "norm.weight": torch.zeros(24)})
    for key in ("transformer_layers.1.ln2.weight", "transformer_layers.1.attn.k_proj.weight", "lm_head.weight"):
        with pytest.raises(CheckpointError):
            VisualLanguageModel.from_official({"n_head": 3}, {name: state[name] for name in state if name != key})
