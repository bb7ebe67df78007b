"""Frozen tables: principal components against scikit-learn, lengths, fingerprints, and the time that they take."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from smalti.errors import ConfigError, InputError
from smalti.text.visual_unicode import (
    Drawing,
    GlyphPainter,
    VisualUnicode,
    binary_code_table,
    given_table,
    random_table,
    visual_table,
)
from smalti.text.visual_unicode.table import principal_components, table_of_bits, unit_rows
from tests.text.visual_unicode.material import FONT, NGRAMS


@pytest.fixture(scope="module")
def bits() -> Any:
    painter = GlyphPainter(Drawing(font=FONT, size=16))
    return painter.bits([chr(code) for code in range(33, 600)] + NGRAMS)


@pytest.mark.parametrize("components", [1, 20, 120])
def test_components_are_those_of_scikit_learn(bits: Any, components: int) -> None:
    reference = PCA(components, svd_solver="full").fit(bits.astype(np.float64))
    ours = principal_components(bits, components)
    assert torch.allclose(ours.mean.double(), torch.from_numpy(reference.mean_), atol=1e-6)
    assert torch.allclose(ours.variance.double(), torch.from_numpy(reference.explained_variance_), rtol=1e-5)
    assert torch.allclose(ours.components.double(), torch.from_numpy(reference.components_), atol=1e-5)
    assert torch.allclose(ours.scores.double(), torch.from_numpy(reference.transform(bits.astype(float))), atol=1e-4)


def test_with_all_components_a_table_is_the_centred_pictures_turned(bits: Any) -> None:
    found = principal_components(bits, bits.shape[1])
    centred = torch.from_numpy(bits - bits.mean(0, keepdims=True)).float()
    assert torch.allclose(found.scores @ found.scores.T, centred @ centred.T, atol=1e-2)


def test_the_largest_entry_of_a_component_is_positive(bits: Any) -> None:
    rows = principal_components(bits, 64).components
    assert bool((rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all())


def test_too_many_components_are_refused(bits: Any) -> None:
    with pytest.raises(ConfigError, match="at most 20"):
        principal_components(bits[:20], 21)


def test_rows_have_length_one(bits: Any) -> None:
    for table in (table_of_bits(bits, 40), binary_code_table(65536), random_table(1000, 24)):
        assert torch.allclose(table.weight.norm(dim=1), torch.ones(len(table)), atol=1e-5)
        assert table.weight.dtype == torch.float32
    assert not bool(unit_rows(torch.zeros(1, 3)).any())


def test_a_binary_code_tells_all_ids_apart() -> None:
    table = binary_code_table(65536)
    assert table.dim == 16 and len(table.weight.unique(dim=0)) == 65536
    assert ((table.weight[6] > 0).int()).tolist() == [0, 1, 1] + [0] * 13
    with pytest.raises(ConfigError, match="17"):
        binary_code_table(65537, 16)


def test_fingerprints_know_what_a_table_was_made_from(bits: Any) -> None:
    table = table_of_bits(bits, 8)
    assert table_of_bits(bits, 8).fingerprint == table.fingerprint
    changed = bits.copy()
    changed[3, 4] ^= 1
    others = [table_of_bits(changed, 8), table_of_bits(bits, 9), given_table(table.weight), random_table(len(bits), 8)]
    assert len({table.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert random_table(9, 4, seed=1).fingerprint == random_table(9, 4, seed=1).fingerprint
    assert random_table(9, 4, seed=1).fingerprint != random_table(9, 4, seed=2).fingerprint


@pytest.mark.parametrize(
    "weight", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), torch.nan)]
)
def test_what_is_no_table_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(InputError, match="table"):
        given_table(weight)


def test_a_table_is_that_of_its_tokens() -> None:
    painter = GlyphPainter(Drawing(font=FONT))
    tokens = ["a", "the", "한국", "<s>"] * 3
    table = visual_table(tokens, painter, 3)
    assert table.weight.shape == (12, 3)
    assert torch.equal(table.weight[0], table.weight[4])


@pytest.mark.slow
def test_a_whole_vocabulary_is_drawn_in_minutes() -> None:
    tokenizer = VisualUnicode.from_ngrams(NGRAMS)
    start = time.perf_counter()
    visual_table(tokenizer.tokens, GlyphPainter(Drawing(font=FONT)), 1024)
    assert time.perf_counter() - start < 180
