"""Which coder works for which tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smalti.errors import StoreError, UnavailableError
from smalti.store.bytefiles import ByteCoder
from smalti.store.coder import Coder
from smalti.store.format import ByteRecipe, SampleRecipe
from smalti.store.samples import SampleCoder
from smalti.text.base import TextTokenizer
from smalti.tokenizer import NeuralTokenizer, Tokenizer


def coder_class(tokenizer: Tokenizer) -> type[Coder]:
    """The kind of coder that works for a tokenizer.

    Raises:
        UnavailableError: if none does.
    """
    if isinstance(tokenizer, NeuralTokenizer):
        return SampleCoder
    if isinstance(tokenizer, TextTokenizer):
        return ByteCoder
    raise UnavailableError(f"files can't be encoded by a {type(tokenizer).__name__} yet")


def open_coder(tokenizer: Tokenizer, recipe: Mapping[str, Any], workers: int | None = None) -> Coder:
    """The coder of a store.

    Args:
        tokenizer: the store's.
        recipe: of its header.
        workers: processes or threads side by side; None for what suits the kind.

    Raises:
        StoreError: if the recipe is of another kind of tokenizer.
    """
    made = coder_class(tokenizer).recipe_type
    if not recipe.keys() <= made.model_fields.keys():
        raise StoreError(f"the store's recipe {dict(recipe)} is not of a {type(tokenizer).__name__}")
    chosen = made(**recipe)
    if isinstance(tokenizer, NeuralTokenizer) and isinstance(chosen, SampleRecipe):
        return SampleCoder(tokenizer, chosen, workers)
    if isinstance(tokenizer, TextTokenizer) and isinstance(chosen, ByteRecipe):
        return ByteCoder(tokenizer, chosen, workers)
    raise UnavailableError(f"files can't be encoded by a {type(tokenizer).__name__} yet")
