"""The public checks over everything that is registered as working, and over what they must find."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.image.photo import PhotoTokenizer
from smalti.systems import entry_class, list_systems
from smalti.testing import check_generator, check_text_tokenizer, check_tokenizer
from tests.text.broken import BROKEN
from tests.text.runs import RunTokenizer

WORKING = {record.name: record for record in list_systems(status="works")}
CHECKS = {"tokenizer": check_tokenizer, "generator": check_generator}


@pytest.mark.parametrize("name", sorted(WORKING))
def test_registered_systems_keep_the_contract(name: str) -> None:
    record = WORKING[name]
    CHECKS[record.kind](entry_class(record))


class LeakyTokenizer(PhotoTokenizer):
    """Lets samples of a batch influence one another."""

    def prepare(self, x: Tensor, **conditions: Any) -> Any:
        inputs, side = super().prepare(x, **conditions)
        return inputs - inputs.mean(0, keepdim=True), side


class CroppingTokenizer(PhotoTokenizer):
    """Forgets the original size."""

    def finish(self, outputs: Tensor, side: Any, **conditions: Any) -> Tensor:
        return super().finish(outputs, {}, **conditions)


class SilentTokenizer(PhotoTokenizer):
    """Takes NaN for a number."""

    def prepare(self, x: Tensor, **conditions: Any) -> Any:
        return super().prepare(torch.nan_to_num(x.float()).clamp(0, 1), **conditions)


@pytest.mark.parametrize("system", [LeakyTokenizer, CroppingTokenizer, SilentTokenizer])
def test_the_check_finds_what_breaks_the_contract(
    system: type[PhotoTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PhotoTokenizer.Config, "build", lambda config: system(config))
    with pytest.raises(AssertionError):
        check_tokenizer(system)


def test_a_sound_tokenizer_of_bytes_passes() -> None:
    check_tokenizer(RunTokenizer)
    check_text_tokenizer(RunTokenizer.Config(seed=5).build())


@pytest.mark.parametrize("system", BROKEN)
def test_the_check_finds_broken_tokenizers_of_bytes(
    system: type[RunTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = RunTokenizer.Config.build
    monkeypatch.setattr(RunTokenizer.Config, "build", lambda config: system(config, build(config).order))
    with pytest.raises(AssertionError):
        check_tokenizer(system)


def test_a_class_of_no_known_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="neither"):
        check_tokenizer(dict)  # type: ignore[arg-type]
