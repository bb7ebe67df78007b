"""The plain autoregressive transformer over tokens of any shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from smalti.errors import CheckpointError, ConfigError, InputError
from smalti.generate import Sampling
from smalti.generate.autoregressive import AutoregressiveTransformer
from smalti.generate.conditions import ClassCondition, FeatureCondition, TokenCondition
from smalti.image.llamagen import LlamaGenAR
from smalti.image.taming import MinGPT
from smalti.nn.transformer import GridRotary, Transformer
from smalti.tokens import Stream, StreamSpec, Tokens

SHAPES: dict[str, dict[str, Any]] = {
    "one slot": {"streams": {"codes": StreamSpec((4,), (9,))}},
    "slots by position": {"streams": {"codes": StreamSpec((3,), (7, 5))}},
    "slots by slot": {"streams": {"codes": StreamSpec((3,), (7, 5))}, "order": "slot"},
    "shared ids": {"streams": {"codes": StreamSpec((3,), (7, 5))}, "offset": "shared"},
    "two streams": {"streams": {"coarse": StreamSpec((2,), (6,)), "fine": StreamSpec((2, 2), (4, 3))}},
}
CONDITIONS = {
    "class": ClassCondition(classes=3),
    "features": FeatureCondition(length=3, dim=5),
    "tokens": TokenCondition(length=2),
}


def random_model(shape: str = "one slot", condition: str = "class", **sizes: Any) -> AutoregressiveTransformer:
    torch.manual_seed(0)
    small: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "hidden": 32, "context": 16}
    config = AutoregressiveTransformer.Config(
        **SHAPES[shape], condition=CONDITIONS[condition], transformer=Transformer.Config(**(small | sizes))
    )
    model = config.build().eval()
    for parameter in model.parameters():  # far from uniform, so that a wrong context shows in the codes
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def random_conditions(model: AutoregressiveTransformer, batch: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(4)
    values = {
        "label": torch.randint(3, (batch,), generator=draw),
        "features": torch.randn(batch, 3, 5, generator=draw),
        "features_mask": torch.tensor([[0, 1, 1]] * batch),
        "condition": torch.randint(4, (batch, 2), generator=draw),
    }
    return {name: values[name] for name in model.conditions}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_cached_equals_uncached(shape: str, condition: str) -> None:
    model = random_model(shape, condition)
    settings = {"seed": [1, 2, 3], **random_conditions(model, 3)}
    cached = model.generate(3, **settings)
    assert model.generate(3, cached=False, **settings).equal(cached)
    cached.check()
    assert cached.spec == model.config.streams


@pytest.mark.parametrize("kind", ["mingpt", "llamagen", "grouped"])
def test_greedy_codes_are_the_argmax_of_the_teacher_forced_logits(kind: str) -> None:
    torch.manual_seed(0)
    config = {
        "mingpt": MinGPT.Config.tiny(),
        "llamagen": LlamaGenAR.Config.tiny(),
        "grouped": LlamaGenAR.Config.tiny(),
    }[kind]
    if kind == "grouped":
        config = config.replace(transformer=config.transformer.replace(width=32, heads=4, kv_heads=2))
    model = config.build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tokens = model.generate(4, sampling=Sampling(temperature=0))
    assert torch.equal(model(tokens).logits.argmax(-1), tokens.flat())


@pytest.mark.parametrize("cache_steps", [1, 3])
def test_cached_hidden_states_equal_those_of_the_whole(cache_steps: int) -> None:
    torch.manual_seed(0)
    config = Transformer.Config(
        width=16, layers=2, heads=2, hidden=32, context=9, norm="rms", mlp="swiglu", bias=False,
        positions=GridRotary(grid=(2, 4)),
    )  # fmt: skip
    model, x = config.build().eval(), torch.randn(2, 9, 16)
    cache = model.cache()
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in x.split(cache_steps, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(x), atol=1e-5, rtol=1e-5)


def test_later_codes_do_not_change_earlier_logits() -> None:
    model = random_model("slots by position")
    codes = torch.randint(5, (2, 3, 2), generator=torch.Generator().manual_seed(0))
    changed = codes.clone()
    changed[:, 1, 1] = (changed[:, 1, 1] + 1) % 5  # step 3
    first, second = (model(Tokens.of(each, (7, 5))).logits for each in (codes, changed))
    torch.testing.assert_close(first[:, :4], second[:, :4])
    assert not torch.allclose(first[:, 4:], second[:, 4:])


def test_a_bidirectional_prefix_sees_itself_whole() -> None:
    model = random_model("one slot", "tokens", bidirectional_prefix=2).transformer
    x, other = torch.randn(1, 6, 16), torch.randn(16)
    changed = x.clone()
    changed[:, 1] = other
    assert not torch.allclose(model(x)[:, 0], model(changed)[:, 0])
    changed = x.clone()
    changed[:, 2] = other
    torch.testing.assert_close(model(x)[:, :2], model(changed)[:, :2])
    causal = random_model("one slot", "tokens").transformer
    changed = x.clone()
    changed[:, 1] = other
    torch.testing.assert_close(causal(x)[:, 0], causal(changed)[:, 0])


@pytest.mark.parametrize("shape", SHAPES)
def test_prompt_codes_never_change(shape: str) -> None:
    model = random_model(shape)
    whole = model.generate(2, seed=[1, 2])
    if shape == "two streams":
        prompt = whole.prefix(streams=1)
    elif shape == "slots by slot":
        prompt = whole.prefix(slots=1)
    else:
        prompt = whole.prefix(positions=2)
    drawn = model.generate(2, prompt=prompt, seed=[3, 4])
    steps = prompt.flat(model.config.order).shape[1]
    assert torch.equal(drawn.flat(model.config.order)[:, :steps], whole.flat(model.config.order)[:, :steps])
    assert not drawn.equal(whole)
    # The same numbers after the same prompt continue it in the same way.
    assert model.generate(2, prompt=prompt, seed=[1, 2]).equal(whole)


def test_a_sample_is_the_same_alone_and_in_a_batch() -> None:
    model = random_model()
    together = model.generate(3, seed=[5, 6, 7], label=torch.tensor([0, 1, 2]))
    alone = model.generate(1, seed=[6], label=torch.tensor([1]))
    assert torch.equal(together.codes[1:2], alone.codes)
    assert torch.equal(model.generate(1, seed=6, label=torch.tensor([1])).codes, alone.codes)


def test_guidance_of_one_is_no_guidance_and_more_changes_codes() -> None:
    model = random_model()
    label = torch.tensor([0, 1, 2] * 20)
    seeds = list(range(60))
    plain = model.generate(60, seed=seeds, label=label)
    steps = Sampling(guidance=(1.0, 1.0, 1.0, 1.0))
    assert model.generate(60, seed=seeds, label=label, sampling=steps).equal(plain)
    assert not model.generate(60, seed=seeds, label=label, sampling=Sampling(guidance=4.0)).equal(plain)
    with pytest.raises(ConfigError, match="guidance"):
        random_model(condition="tokens").generate(1, sampling=Sampling(guidance=2.0))


def test_guidance_can_end_after_some_steps() -> None:
    model = random_model()
    label = torch.tensor([0, 1, 2] * 20)
    both = [
        model.generate(60, seed=list(range(60)), label=label, sampling=Sampling(guidance=guidance))
        for guidance in (4.0, (4.0, 4.0, 1.0, 1.0))
    ]
    assert torch.equal(both[0].codes[:, :2], both[1].codes[:, :2])
    assert not torch.equal(both[0].codes, both[1].codes)


def test_loss_counts_real_steps_only() -> None:
    model = random_model()
    codes = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])[..., None]
    short = Tokens.of(codes, (9,), lengths=torch.tensor([4, 2]))
    modelled = model(short)
    p = F.log_softmax(modelled.logits, -1)
    picked = [p[0, 0, 1], p[0, 1, 2], p[0, 2, 3], p[0, 3, 4], p[1, 0, 5], p[1, 1, 6]]
    torch.testing.assert_close(modelled.loss, -torch.stack(picked).mean())
    modelled.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_it_learns_and_then_generates_what_it_learned() -> None:
    torch.manual_seed(0)
    model = random_model().train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    label = torch.arange(3)
    tokens = Tokens.of(torch.tensor([[1, 2, 3, 4], [8, 7, 6, 5], [0, 0, 8, 8]])[..., None], (9,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        model(tokens, label=label).loss.backward()
        optimizer.step()
    drawn = model.generate(3, sampling=Sampling(temperature=0), label=label)
    assert torch.equal(drawn.codes, tokens.codes)
    assert model.training


def test_shorter_extents_and_prompts_that_do_not_fit() -> None:
    model = random_model()
    assert model.generate(2, positions=(2,), seed=0).codes.shape == (2, 2, 1)
    assert model.generate(2, positions=(3, 5), seed=0).codes.shape == (2, 3, 5, 1)
    with pytest.raises(InputError, match="do not fit"):
        model.generate(2, positions=(17,))
    with pytest.raises(InputError, match="bound to positions"):
        LlamaGenAR.Config.tiny().build().generate(1, positions=(2, 2))
    long = Tokens.of(torch.zeros(2, 5, 1, dtype=torch.int64), (9,))
    with pytest.raises(InputError, match="first steps"):
        model.generate(2, prompt=long)
    with pytest.raises(InputError, match="samples"):
        model.generate(3, prompt=long)
    with pytest.raises(InputError, match="vocabularies"):
        model(Tokens.of(torch.zeros(2, 4, 1, dtype=torch.int64), (8,)))


def test_stream_names_must_be_those_of_the_model() -> None:
    codes = torch.zeros(1, 4, 1, dtype=torch.int64)
    with pytest.raises(InputError, match="streams"):
        random_model()(Tokens({"other": Stream(codes, (9,))}))


def test_training_replaces_inputs_when_asked_to() -> None:
    model = random_model()
    tokens = model.generate(64, seed=list(range(64)))
    noisy = model.config.replace(keep=0.5).build()
    noisy.load_state_dict(model.state_dict())
    torch.testing.assert_close(noisy.eval()(tokens).loss, model(tokens).loss)
    assert noisy.train()(tokens).loss > model(tokens).loss


@pytest.mark.parametrize("cls", [AutoregressiveTransformer, MinGPT, LlamaGenAR])
def test_saved_and_loaded_generates_the_same(cls: type[AutoregressiveTransformer], tmp_path: Path) -> None:
    model = cls.Config.tiny().build().eval()
    example = cls.example(batch=2, seed=1)
    tokens, conditions = example.pop("tokens"), example
    loaded = cls.load(model.save(tmp_path / "model"))
    assert loaded.config == model.config
    torch.testing.assert_close(loaded(tokens, **conditions).loss, model(tokens, **conditions).loss)
    assert loaded.generate(2, seed=3, **conditions).equal(model.generate(2, seed=3, **conditions))


# --- minGPT's published layout ---------------------------------------------------------------------------------------


def mingpt_state(width: int = 128, layers: int = 2, context: int = 9, ids: int = 12) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"tok_emb.weight": (ids, width), "pos_emb": (1, context, width), "head.weight": (ids, width),
              "ln_f.weight": (width,), "ln_f.bias": (width,)}  # fmt: skip
    for layer in range(layers):
        for name, rows in (("ln1", 0), ("ln2", 0), ("attn.key", width), ("attn.query", width), ("attn.value", width),
                           ("attn.proj", width), ("mlp.0", 4 * width), ("mlp.2", width)):  # fmt: skip
            columns = 4 * width if name == "mlp.2" else width
            shapes[f"blocks.{layer}.{name}.weight"] = (rows, columns) if rows else (width,)
            shapes[f"blocks.{layer}.{name}.bias"] = (rows or width,)
    return {key: torch.randn(shape) * 0.1 for key, shape in shapes.items()}


def test_mingpt_loads_alone_and_from_the_file_of_both_stages() -> None:
    alone = mingpt_state()
    stored = {f"transformer.{key}": tensor for key, tensor in alone.items()}
    stored |= {
        "first_stage_model.encoder.conv_in.weight": torch.ones(1),
        "transformer.blocks.0.attn.mask": torch.ones(1),
    }
    first, second = MinGPT.from_official(None, alone), MinGPT.from_official(None, stored)
    assert first.config == second.config
    assert first.config.transformer.heads == 2
    assert first.config.streams["codes"].positions == (3, 3)
    assert first.generate(2, seed=1).equal(second.generate(2, seed=1))


def test_mingpt_takes_extents_from_the_first_stage() -> None:
    first_stage = {"params": {"n_embed": 10, "ddconfig": {"resolution": 8, "ch_mult": [1, 1, 1]}}}
    config = {"model": {"params": {
        "transformer_config": {"params": {"n_head": 4, "n_layer": 2, "block_size": 9}},
        "first_stage_config": first_stage, "pkeep": 0.9,
    }}}  # fmt: skip
    model = MinGPT.from_official(config, mingpt_state())
    assert model.config.streams["codes"] == StreamSpec((2, 2), (10,))
    assert model.config.condition == TokenCondition(length=5)
    assert (model.config.transformer.heads, model.config.keep) == (4, 0.9)
    codes = model.generate(50, seed=list(range(50)), condition=torch.full((50, 5), 11)).codes
    assert codes.max() < 10


def test_mingpt_problems_are_named() -> None:
    state = mingpt_state()
    for key in ("blocks.1.attn.query.weight", "blocks.0.mlp.2.bias", "head.weight", "ln_f.bias"):
        with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
            MinGPT.from_official(None, {name: tensor for name, tensor in state.items() if name != key})
    with pytest.raises(CheckpointError, match="surprise"):
        MinGPT.from_official(None, state | {"surprise": torch.ones(1)})
