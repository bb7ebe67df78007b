"""Public checks: the whole contract of design, run against one class or object, as scikit-learn's check_estimator does.

    check_tokenizer(SimVQImage)          check_quantizer(create("vq", dim=8, codes=64))          check_generator(MinGPT)

Each raises AssertionError with what was expected and what came. The test suite runs them over everything registered;
a third party can certify its own systems with them. Of tokenizers of bytes `check_text_tokenizer` checks one that was
trained or loaded, too.
"""

from smalti.testing.generators import check_generator
from smalti.testing.quantizers import check_quantizer
from smalti.testing.text import check_text_tokenizer
from smalti.testing.tokenizers import check_tokenizer

__all__ = ["check_generator", "check_quantizer", "check_text_tokenizer", "check_tokenizer"]
