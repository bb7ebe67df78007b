"""A quantizer by name in a configuration."""

from __future__ import annotations

from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smalti
from smalti.audio.speech import SpeechCodec
from smalti.config import OfTraining
from smalti.errors import ConfigError
from smalti.image.photo import PhotoTokenizer
from smalti.quantize import NAMES, create
from smalti.quantize.named import checked_options
from smalti.quantize.named.choice import Choice
from smalti.quantize.named.options import options_of
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
        (
            {"type": "vq", "dim": 4, "codes": 8, "commitment_weight": "much"},
            r"commitment_weight: .*a number \(got 'much'\)",
        ),
        ({"type": "residual-diveq", "dim": 4, "codes": 8, "levels": 2, "eval_beam": 0}, "eval_beam: .*greater than"),
        ({"type": "product", "dim": 5, "codes": 8, "parts": 2}, "5 dimensions do not divide into 2 parts"),
        *(
            ({"type": name, **SCALE_OPTIONS[name]}, f"codes of {name} lie on positions.*such as residual")
            for name in SCALE_OPTIONS
        ),
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


# Another value of options that one more, or half as much, does not fit.
OTHERS = {
    "heads": 4, "parts": 4, "groups": 4, "levels": (3, 5, 4), "code_dim": 5, "hidden": 5, "semantic_dim": 7,
    "eval_beam": 1, "search": "l1", "order": "big", "distribution": "laplace", "patch": 4, "head_dim": 4, "beam": 2,
    "rounds": 1,
}  # fmt: skip


def other(option: str, value: Any) -> Any:
    """A value that an option could have instead."""
    if option in OTHERS and not (option == "levels" and isinstance(value, int)):
        return OTHERS[option]
    if isinstance(value, bool):
        return not value
    if option in ("dim", "codes"):  # which are divided into parts
        return 4 * value
    return value + 1 if isinstance(value, int) else 0.4 * value + 0.1


def pairs(*, training: bool) -> list[tuple[str, str]]:
    """(quantizer, option) of all options that are marked as training's, or of all others."""
    found = []
    for name in sorted(OPTIONS):
        for option, field in options_of(NAMES[name], name).model_fields.items():
            if any(isinstance(mark, OfTraining) for mark in field.metadata) is training:
                found.append((name, option))
    return found


def both(name: str, option: str) -> tuple[Any, Any]:
    """The quantizer with its options, and another that differs in one of them; each draws the same random numbers."""
    options = dict(checked_options(name, OPTIONS[name]))
    made = []
    for value in (options[option], other(option, options[option])):
        torch.manual_seed(0)
        made.append(create(name, **{**options, option: value}).eval())
    return made[0], made[1]


@pytest.mark.parametrize(("name", "option"), pairs(training=True))
def test_what_is_marked_as_training_decides_no_code(name: str, option: str) -> None:
    one, changed = both(name, option)
    changed.load_state_dict(one.state_dict())
    z = torch.randn(200, one.dim)
    assert torch.equal(one.encode(z), changed.encode(z))


@pytest.mark.parametrize(("name", "option"), pairs(training=False))
def test_what_is_not_marked_decides_codes_or_what_the_network_is(name: str, option: str) -> None:
    one, changed = both(name, option)
    states = one.state_dict(), changed.state_dict()
    if one.dim != changed.dim or one.vocab != changed.vocab:
        return
    if {key: each.shape for key, each in states[0].items()} != {key: each.shape for key, each in states[1].items()}:
        return
    z = torch.randn(2000, one.dim)
    assert not torch.equal(one.encode(z), changed.encode(z))


def test_numbers_are_numbers() -> None:
    assert create("fsq", levels=np.array([5, 3])).vocab == create("fsq", levels=torch.tensor([5, 3])).vocab == (15,)
    assert create("vq", dim=np.int64(4), codes=8, commitment_weight=1).dim == 4
    for wrong in (True, "8", 8.0):
        with pytest.raises(ConfigError, match=r"codes: Input should be a (number|valid integer) \(got"):
            create("vq", dim=4, codes=wrong)
    with pytest.raises(ConfigError, match=r"commitment_weight: .*a number \(got True\)"):
        create("vq", dim=4, codes=8, commitment_weight=True)


def test_every_builder_says_all_of_its_options() -> None:
    kinds = {each.kind for builder in NAMES.values() for each in signature(builder).parameters.values()}
    assert Parameter.VAR_KEYWORD not in kinds
