"""Recipes: what is read, what --set changes, and how wrong ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from smalti.errors import ConfigError
from smalti.quantize.named.choice import Choice
from smalti.systems import WEIGHTS, create
from smalti.train.recipe import Model, Optimizer, Recipe, read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
TINY = next(path for path in RECIPES if path.stem == "vqgan-tiny")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_legal_and_says_how_to_run_it(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert f"smalti train recipes/{path.name} --data" in path.read_text()


def test_set_changes_what_its_path_names() -> None:
    recipe = read_recipe(
        TINY,
        ["stages.0.steps=7", "seed = 3", "model.config.codebook.codes=16", "stages.0.optimizers.model.type=adamw",
         "watch.best=true"],
    )  # fmt: skip
    assert (recipe.stages[0].steps, recipe.seed, recipe.watch.best) == (7, 3, True)
    assert recipe.stages[0].optimizers["model"].type == "adamw"
    assert recipe.model.build().quantizer.vocab == (16,)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stages.0.steps=0", r"stages\.0\.steps: Input should be greater than or equal to 1 \(got 0\)"),
        ("stages.0.stpes=5", r"stages\.0\.stpes: there is no such field; there are accumulate, average, batch"),
        ("stages.0.steps=true", r"stages\.0\.steps: Input should be a number \(got True\)"),
        ("stages.0.optimizers.model.rate='1e-3'", r"optimizers\.model\.rate: Input should be a number \(got '1e-3'\)"),
        (".seed=1", r"--set takes key=value, got '\.seed=1'"),
        ("precision=fp8", r"precision: Input should be 'fp32' or 'bf16' \(got 'fp8'\)"),
        ("data.type=pictures", r"data: .*'images', 'recordings'"),
        ("data.rules.0.size=-1", r"data\.rules\.0\.size: Input should be greater than 0 \(got -1\)"),
        ("stages.0.objective.l1_wieght=1", r"stages\.0\.objective\.l1_wieght: there is no such field; .*l1_weight"),
        ("stages.0.objective.adversary.weight=-1", r"objective\.adversary\.weight: .*greater than or equal to 0"),
        ("stages.0.optimizers.model.rate=fast", r"optimizers\.model\.rate: .*number.* \(got 'fast'\)"),
        ("model.start=llamagen", "either system .* or start"),
        ("stages.1.steps=5", r"stages has entries 0\.\.0"),
        ("seed.x=5", "seed is a value"),
        ("no equals sign", "--set takes key=value"),
    ],
)
def test_wrong_settings_are_named_with_value_and_what_is_allowed(setting: str, message: str) -> None:
    settings = ["seed=1", setting] if setting.startswith("seed.") else [setting]
    with pytest.raises(ConfigError, match=message):
        read_recipe(TINY, settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": "vqgann"}, r"^model\.system: .*did you mean vqgan"),
        ({"start": "no-such-folder"}, r"^model\.start: no system is called 'no-such-folder'"),
        ({"system": "vqgan", "preset": "f17"}, "model.preset: vqgan has no preset 'f17': .*'imagenet_f16_1024'"),
        (
            {"system": "vqgan", "config": {"codebook": {"codes": 0}}},
            r"^model\.config\.codebook\.codes: .*or equal to 1",
        ),
        ({"system": "llamagen/ar"}, "no tokenizer"),
    ],
)
def test_a_model_that_can_not_be_built_is_refused(changes: dict[str, object], message: str) -> None:
    from smalti.errors import SmaltiError

    recipe = read_recipe(TINY)
    with pytest.raises(SmaltiError, match=message):
        recipe.replace(model=changes).model.build()


def test_set_exchanges_the_codes_of_our_own_tokenizers_and_their_options() -> None:
    photo = TINY.with_name("smalti-photo-f8.toml")
    codes = "model.config.quantizer"
    model = read_recipe(photo, [f"{codes}.codes=16", f"{codes}.levels=3"]).model.build()
    assert model.quantizer.vocab == (16, 16, 16)
    model = read_recipe(photo, [codes + '={type="fsq", levels=[8, 5, 5]}']).model.build()
    assert (model.quantizer.vocab, model.quantizer.dim) == ((200,), 3)
    table = codes + '={type="TYPE", dim=16, codes=8, levels=2}'
    for kind, same in (("residual-diveq", "residual-diveq"), ("residual", "rvq")):
        plans = [read_recipe(photo, [table.replace("TYPE", each)]).model.build().config for each in (kind, same)]
        assert plans[0].quantizer == plans[1].quantizer == Choice(type=kind, dim=16, codes=8, levels=2)
    with pytest.raises(ConfigError, match=r"^model\.config\.quantizer\.eval_beam: .*than or equal to 1 \(got 0\)"):
        read_recipe(photo, [f"{codes}.eval_beam=0"]).model.build()


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        read_recipe(tmp_path / "missing.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="is no TOML"):
        read_recipe(tmp_path / "broken.toml")


def test_a_resolved_recipe_reads_back_as_itself() -> None:
    for path in RECIPES:
        recipe = read_recipe(path)
        assert Recipe(**recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("name", ["smalti-photo-f8", "smalti-photo-f16", "smalti-speech"])
def test_the_weights_that_ship_were_made_by_the_recipes_as_they_are(name: str) -> None:
    made_by = Recipe(**json.loads((WEIGHTS / name / "recipe.json").read_text()))
    assert made_by == read_recipe(TINY.with_name(f"{name}.toml"))
    # Random weights by that name are of the same network, in a recipe too.
    assert create(name).config == made_by.model.build().config == Model(system=name).build().config


def test_optimizer_groups_by_rate_and_decay() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    network[1].bias.requires_grad_(False)
    plan = Optimizer(rate=1e-3, weight_decay=0.1, decay_vectors=False, rates={"0.*": 0.5})
    groups = {
        (group["factor"], group["weight_decay"]): [tuple(each.shape) for each in group["params"]]
        for group in plan.build(network).param_groups
    }
    assert groups == {(0.5, 0.1): [(2, 2)], (0.5, 0.0): [(2,)], (1.0, 0.0): [(2,)]}
    with pytest.raises(ConfigError, match="all parameters are frozen"):
        plan.build(network.requires_grad_(False))


def test_decoupled_decay_differs_from_decay_in_the_gradient() -> None:
    ends = []
    for kind in ("adam", "adamw"):
        torch.manual_seed(0)
        network = nn.Linear(3, 1, bias=False)
        optimizer = Optimizer(type=kind, rate=0.1, weight_decay=0.5).build(network)
        before = network.weight.detach().clone()
        network.weight.grad = torch.zeros_like(network.weight)
        optimizer.step()
        ends.append((before, network.weight.detach().clone()))
    (start, adam), (_, adamw) = ends
    assert torch.allclose(adamw, start * (1 - 0.1 * 0.5))  # decay alone, in proportion
    assert torch.allclose(adam, start - 0.1 * start.sign(), atol=1e-6)  # Adam makes a unit step of it
