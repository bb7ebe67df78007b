"""Visual Unicode: a vocabulary of characters and n-grams, frozen pictures as embeddings, a language model on them."""

from smalti.text.visual_unicode.glyphs import Disturbance, Drawing, GlyphPainter, find_font
from smalti.text.visual_unicode.model import VisualLanguageModel
from smalti.text.visual_unicode.table import (
    FrozenTable,
    binary_code_table,
    given_table,
    random_table,
    visual_table,
)
from smalti.text.visual_unicode.tokenizer import VisualUnicode
from smalti.text.visual_unicode.vocabulary import UnicodeVocabulary, common_strings, top_ngrams

__all__ = [
    "Disturbance",
    "Drawing",
    "FrozenTable",
    "GlyphPainter",
    "UnicodeVocabulary",
    "VisualLanguageModel",
    "VisualUnicode",
    "binary_code_table",
    "common_strings",
    "find_font",
    "given_table",
    "random_table",
    "top_ngrams",
    "visual_table",
]
