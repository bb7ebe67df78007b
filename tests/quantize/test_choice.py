"""A quantizer by name in a configuration."""

from __future__ import annotations

from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pytest
import torch

import smalti
from smalti.audio.speech import SpeechCodec
from smalti.errors import ConfigError
from smalti.image.photo import PhotoTokenizer
from smalti.quantize import NAMES, create
from smalti.quantize.named.choice import Choice
from smalti.tokenizer import Tokenizer
from tests.quantize.test_contract import OPTIONS, SCALE_OPTIONS


def test_it_builds_what_create_builds() -> None:
    choice = Choice(type="simvq", dim=4, codes=8)
    torch.manual_seed(0)
    ours = choice.build()
    torch.manual_seed(0)
    theirs = create("simvq", dim=4, codes=8).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())


def test_checking_it_draws_no_random_number() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    Choice(type="simvq", dim=4, codes=8)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_name_can_be_chosen_and_comes_back_from_a_file(name: str) -> None:
    choice = Choice(type=name, **OPTIONS[name])
    assert Choice.model_validate_json(choice.model_dump_json()) == choice
    assert choice.replace().build().vocab == create(name, **OPTIONS[name]).vocab


def test_it_says_all_that_decides_codes_by_the_quantizers_own_name() -> None:
    choice = Choice(type="encodec", dim=4, codes=8, levels=2)
    assert choice == Choice(type="residual", dim=4, codes=8, levels=2, decay=0.99)
    assert choice.model_dump()["unit"] is False  # an option that the builder hands on
    assert choice.replace(codes=16).build().vocab == (16, 16)
    assert Choice(type="fsq", levels=[4, 4]) == Choice(type="fsq", levels=(4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 4}, "Choice: type: Field required"),
        ({"type": 3}, "Choice: type: Input should be a valid string"),
        ({"type": "residaul"}, "no quantizer is called 'residaul': did you mean residual"),
        ({"type": "residual", "dim": 4, "levels": 2}, "Choice: codes: Field required"),
        ({"type": "fsq", "levels": [4], "codes": 3}, "Choice: codes: there is no such field; there are groups, levels"),
        ({"type": "residual", "dim": 4, "codes": 8, "levels": 2, "gamma": 1}, "gamma: there is no such field.*decay"),
        ({"type": "residual", "dim": 4, "codes": 8, "levels": 2, "decay": 1.0}, "decay: .*less than 1"),
        ({"type": "ibq", "dim": 4, "codes": 8, "temperature": 0}, "temperature: .*greater than 0"),
        ({"type": "gumbel", "dim": 4, "codes": 8, "temperature": 0}, "temperature: .*greater than 0"),
        ({"type": "bsq", "bits": 4, "sharpness": 0}, "sharpness: .*greater than 0"),
        ({"type": "residual-fsq", "levels": [1, 4], "stages": 2}, r"levels\.0: .*greater than or equal to 2"),
        ({"type": "fsq", "levels": []}, "levels: .*at least 1 item"),
        ({"type": "ema", "dim": 4, "codes": 8, "expire": -1.0}, "expire: .*greater than or equal to 0"),
        ({"type": "ema", "dim": 4, "codes": 8, "kmeans_iterations": -1}, "kmeans_iterations: .*greater than or equal"),
        ({"type": "vq", "dim": 4, "codes": 8, "commitment_weight": "much"}, "commitment_weight: .*valid number"),
        ({"type": "residual-diveq", "dim": 4, "codes": 8, "levels": 2, "eval_beam": 0}, "eval_beam: .*greater than"),
        ({"type": "product", "dim": 5, "codes": 8, "parts": 2}, "5 dimensions do not divide into 2 parts"),
        *(({"type": name, **SCALE_OPTIONS[name]}, f"codes of {name} lie on positions") for name in SCALE_OPTIONS),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Choice(**options)


def test_a_tokenizers_configuration_names_the_option_by_its_path() -> None:
    with pytest.raises(ConfigError, match=r"quantizer\.decay: .*\(got 2\)"):
        PhotoTokenizer.Config(quantizer={"type": "ema", "dim": 4, "codes": 8, "decay": 2})


@pytest.mark.parametrize(
    "options",
    [
        {"type": "residual", "dim": 4, "codes": 16, "levels": 2},
        {"type": "simvq", "dim": 4, "codes": 32},
        {"type": "fsq", "levels": [5, 5, 5, 5]},
        {"type": "lookup-free", "bits": 4},
        {"type": "grouped-residual", "dim": 4, "codes": 8, "groups": 2, "levels": 2},
        {"type": "qinco", "dim": 4, "codes": 8, "levels": 2, "beam": 3},
    ],
    ids=lambda options: options["type"],
)
@pytest.mark.parametrize("plan", [PhotoTokenizer.Config.tiny(), SpeechCodec.Config.tiny()], ids=["photo", "speech"])
def test_our_tokenizers_take_any_and_are_read_back_with_it(
    plan: Tokenizer.Config, options: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = plan.replace(quantizer=options).build().eval()
    x = type(tokenizer).example()["x"]
    tokens = tokenizer.encode(x)
    assert tokens.codes.shape[-1] == len(Choice(**options).build().vocab)
    again = smalti.load(tokenizer.save(tmp_path / "saved"))
    assert torch.equal(again.encode(x).codes, tokens.codes)
    assert again.config == tokenizer.config


def test_a_decoder_that_does_not_fit_the_latents_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be the quantizer's dimension, 5, got 4"):
        SpeechCodec.Config.tiny().replace(quantizer=Choice(type="simvq", dim=5, codes=8))


@pytest.mark.parametrize(
    ("options", "training", "deciding"),
    [
        ({"type": "residual", "dim": 4, "codes": 8, "levels": 2}, {"rotation": True, "decay": 0.5}, {"unit": True}),
        ({"type": "residual-diveq", "dim": 4, "codes": 8, "levels": 2}, {"variance": 0.1}, {"eval_beam": 4}),
        ({"type": "orthogonal", "dim": 4, "codes": 8}, {"weight": 1.0}, {"codes": 16}),
        ({"type": "synchronous", "dim": 4, "codes": 8}, {"share": 0.5}, {"codes": 16}),
        ({"type": "sinkhorn", "dim": 4, "codes": 8}, {"epsilon": 0.5, "iterations": 3}, {"codes": 16}),
    ],
    ids=lambda options: options.get("type"),
)
def test_options_of_training_leave_the_codes_hash_alone_and_others_do_not(
    options: dict[str, Any], training: dict[str, Any], deciding: dict[str, Any]
) -> None:
    hashes = []
    for changes in ({}, training, deciding):
        torch.manual_seed(0)
        plan = PhotoTokenizer.Config.tiny().replace(quantizer={**options, **changes})
        hashes.append(plan.build().codes_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_every_builder_says_all_of_its_options() -> None:
    kinds = {each.kind for builder in NAMES.values() for each in signature(builder).parameters.values()}
    assert Parameter.VAR_KEYWORD not in kinds
