"""The contract of tokenizers, of every kind."""

from __future__ import annotations

from smalti.testing.neural import check_neural
from smalti.testing.text import check_text
from smalti.text.base import TextTokenizer
from smalti.tokenizer import NeuralTokenizer, Tokenizer


def check_tokenizer(system: type[Tokenizer], *, seed: int = 0) -> None:
    """Runs the contract of `smalti.tokenizer.Tokenizer` on the class's tiny configuration.

    Args:
        system: the class; `Config.tiny()` and `example()` give what the checks need.
        seed: of weights and inputs.

    Raises:
        AssertionError: with what was expected and what came.
        TypeError: for a class of no kind that there is a contract for.
    """
    if issubclass(system, NeuralTokenizer):
        check_neural(system, seed=seed)
    elif issubclass(system, TextTokenizer):
        check_text(system, seed=seed)
    else:
        raise TypeError(f"{system.__name__} is neither a NeuralTokenizer nor a TextTokenizer")
