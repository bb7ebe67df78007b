"""What all tokenizers of bytes that learn have in common."""

from __future__ import annotations

from typing import Any

import pytest

from smalti.errors import InputError
from smalti.text.binary_bpe import BinaryBPE
from smalti.text.equal_info.tokenizer import EqualInfoTokenizer
from smalti.text.visual_unicode import VisualUnicode


@pytest.mark.parametrize("system", [BinaryBPE, EqualInfoTokenizer, VisualUnicode])
@pytest.mark.parametrize("sample", ["one text", b"one text"])
def test_a_single_sample_is_no_corpus(system: Any, sample: Any) -> None:
    with pytest.raises(InputError, match="put it in a list"):
        system.Config.tiny().build().fit(sample)
