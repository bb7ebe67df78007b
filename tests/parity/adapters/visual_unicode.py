"""Golden cases of visual-unicode: vocabulary, rules and ids from n-grams; bits and embeddings from given pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from smalti.text.visual_unicode import GlyphPainter, VisualUnicode
from smalti.text.visual_unicode.glyphs import split_rasters
from smalti.text.visual_unicode.table import principal_components, unit_rows
from smalti.text.visual_unicode.vocabulary import in_order
from tests.parity.golden import Case

PRESETS: Mapping[str, Any] = VisualUnicode.presets


def run(case: Case) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if "ngrams_sorted" in case.json:
        given |= _vocabulary(case)
    if "raster_concat" in case.inputs:
        given |= _glyphs(case)
    return given


def _preset(case: Case) -> VisualUnicode.Config:
    """The preset that the case names, else the one of its size: pictures of the two sizes are disturbed differently."""
    variant = case.config.get("variant", "").replace("_", "-")
    by_size = "bvv241-2-3" if case.json.get("vocab_size", 65536) == 65536 else "bvv241-max"
    return next((PRESETS[name] for name in (variant, f"bvv241-{variant}") if name in PRESETS), PRESETS[by_size])


def _vocabulary(case: Case) -> dict[str, Any]:
    config = _preset(case).replace(size=case.json.get("vocab_size", _preset(case).size))
    tokenizer = VisualUnicode.from_ngrams(case.json["ngrams_sorted"], config)
    vocabulary, merges = tokenizer.vocabulary, tokenizer.vocabulary.merges
    tests = [
        {"text": test["text"], "ids": tokenizer.ids(test["text"].encode()).tolist()}
        for test in case.json.get("tests", [])
    ]
    given = {
        "json/vocab_size": len(vocabulary),
        "json/n_merges": len(merges),
        "json/ngrams_sorted": in_order(case.json["ngrams_sorted"]),  # bvv241-max has 41 more than there is room for
        "json/tests": tests,
        "json/first_merges": merges[: len(case.json.get("first_merges", []))],
        "json/merges": merges,
    }
    if "token_ids" in case.inputs:
        given["json/tokens"] = [vocabulary.tokens[index] for index in case.inputs["token_ids"].tolist()]
    return {name: value for name, value in given.items() if name.removeprefix("json/") in case.json}


def _glyphs(case: Case) -> dict[str, torch.Tensor]:
    size = case.config["glyph_size"]
    painter = GlyphPainter(_preset(case).drawing.replace(size=size))
    rasters = split_rasters(case.inputs["raster_concat"], case.inputs["raster_width_glyphs"].tolist(), size)
    bits = painter.bits_of_rasters(zip(rasters, case.json["tokens"], strict=True))
    found = principal_components(bits, case.config["pca_components"])
    given = {
        "bits": torch.from_numpy(bits),
        "embeddings": unit_rows(found.scores),
        "pca_mean": found.mean,
        "pca_explained_variance": found.variance,
        "pca_components": found.components,
    }
    return {name: value for name, value in given.items() if name in case.outputs}
