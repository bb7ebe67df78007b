"""A quantizer by name in a configuration."""

from __future__ import annotations

import pytest
import torch

import smalti
from smalti.audio.speech import SpeechCodec
from smalti.errors import ConfigError
from smalti.image.photo import PhotoTokenizer
from smalti.quantize import create
from smalti.quantize.named.choice import Choice


def test_it_builds_what_create_builds() -> None:
    torch.manual_seed(0)
    ours = Choice(type="simvq", dim=4, codes=8).build()
    torch.manual_seed(0)
    theirs = create("simvq", dim=4, codes=8).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())


def test_options_survive_changes_and_files() -> None:
    choice = Choice(type="residual-diveq", dim=4, codes=8, levels=2)
    assert choice.replace(codes=16).build().vocab == (16, 16)
    assert Choice.model_validate_json(choice.model_dump_json()) == choice


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 4}, "type: Field required"),
        ({"type": "residaul"}, "no quantizer is called 'residaul': did you mean residual"),
        ({"type": "residual", "dim": 4}, "missing a required argument: 'codes'"),
        ({"type": "fsq", "levels": [4], "codes": 3}, "fsq: .*unexpected keyword argument 'codes'"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Choice(**options).build()


@pytest.mark.parametrize(
    "choice",
    [
        Choice(type="residual", dim=4, codes=16, levels=2),
        Choice(type="simvq", dim=4, codes=32),
        Choice(type="fsq", levels=[5, 5, 5, 5]),
        Choice(type="lookup-free", bits=4),
    ],
    ids=lambda choice: choice.type,
)
def test_our_tokenizers_take_any_and_are_read_back_with_it(choice: Choice, tmp_path: object) -> None:
    photo = PhotoTokenizer.Config.tiny().replace(quantizer=choice).build().eval()
    x = torch.rand(1, 3, 16, 16)
    codes = photo.encode(x)
    assert torch.equal(smalti.load(photo.save(f"{tmp_path}/photo")).encode(x).codes, codes.codes)
    speech = SpeechCodec.Config.tiny().replace(quantizer=choice).build().eval()
    assert speech.encode(torch.randn(1, 1, 400)).codes.shape[-1] == len(choice.build().vocab)


def test_a_decoder_that_does_not_fit_the_latents_is_refused() -> None:
    plan = SpeechCodec.Config.tiny().replace(quantizer=Choice(type="simvq", dim=5, codes=8))
    with pytest.raises(ConfigError, match="must be the quantizer's dimension, 5, got 4"):
        plan.build()
