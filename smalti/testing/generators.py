"""The contract of generators."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.errors import ConfigError
from smalti.generate.base import Generator
from smalti.generate.sampling import Sampling
from smalti.testing.expect import UNKNOWN_FIELD, expect, expect_error, unchanged
from smalti.tokens import Tokens


def check_generator(system: type[Generator], *, seed: int = 0) -> None:
    """Runs the contract of `smalti.generate.Generator` on the class's tiny configuration.

    Args:
        system: the class; `Config.tiny()` and `example()` give what the checks need.
        seed: of weights and inputs.
    """
    torch.manual_seed(seed)
    generator = system.Config.tiny().build().eval()
    expect(isinstance(generator, system), f"Config.tiny().build() gives a {type(generator).__name__}")
    example = system.example(batch=3, seed=seed)
    tokens, conditions = example.pop("tokens"), example
    with unchanged(generator, "generating"):
        _check_greedy(generator, tokens, conditions)
        _check_draws(generator, tokens, conditions)
        expect_error(lambda: generator.generate(1, no_such_condition=1, **conditions), "an unknown condition")
    _check_modelled(generator, tokens, conditions)
    with tempfile.TemporaryDirectory() as folder:
        again = type(generator).load(generator.save(Path(folder) / "saved"))
    same = torch.equal(again(tokens, **conditions).logits, generator(tokens, **conditions).logits)
    expect(same, "logits change when saved and loaded")
    expect_error(lambda: system.Config(**UNKNOWN_FIELD), "an unknown field of Config", ConfigError)


def _check_greedy(generator: Generator, tokens: Tokens, conditions: dict[str, Any]) -> None:
    """Step by step with a cache must give what one pass over the whole sequence gives."""
    drawn = generator.generate(len(tokens), sampling=Sampling(temperature=0.0), seed=0, **conditions)
    expect(drawn.spec == tokens.spec, f"generate gives {drawn}, not {tokens}")
    drawn.check()
    logits = generator(drawn, **conditions).logits
    ids = drawn.flat()
    chosen = logits.gather(-1, ids[..., None])[..., 0]
    slack = 1e-4 * logits.abs().amax().clamp(min=1)
    allowed = _allowed(generator, drawn, logits)
    best = logits.masked_fill(~allowed, -torch.inf).amax(-1)
    expect(bool((chosen >= best - slack).all()), "cached generation differs from one pass over the sequence")


def _allowed(generator: Generator, tokens: Tokens, logits: Tensor) -> Tensor:
    """Which ids each step may take: those of its own slot."""
    low = Tokens({n: s.map(torch.zeros_like(s.codes), s.lengths) for n, s in tokens.streams.items()}).flat()
    tops = {n: s.map((torch.tensor(s.vocab) - 1).expand_as(s.codes), s.lengths) for n, s in tokens.streams.items()}
    high = Tokens(tops).flat()
    ids = torch.arange(logits.shape[-1])
    return (ids >= low[..., None]) & (ids <= high[..., None])


def _check_draws(generator: Generator, tokens: Tokens, conditions: dict[str, Any]) -> None:
    count = len(tokens)
    sampling = Sampling(temperature=1.0, top_k=20)
    seeds = list(range(count))
    drawn = generator.generate(count, sampling=sampling, seed=seeds, **conditions)
    again = generator.generate(count, sampling=sampling, seed=seeds, **conditions)
    expect(drawn.flat().equal(again.flat()), "the same seeds draw different tokens")
    alone: dict[str, Any] = {
        name: value[1:2] if isinstance(value, Tensor) else value for name, value in conditions.items()
    }
    one = generator.generate(1, sampling=sampling, seed=[1], **alone)
    expect(one.flat().equal(drawn.flat()[1:2]), "draws of a sample depend on its batch")
    other = generator.generate(count, sampling=sampling, seed=[seed + 100 for seed in seeds], **conditions)
    expect(not other.flat().equal(drawn.flat()), "other seeds draw the same tokens")


def _check_modelled(generator: Generator, tokens: Tokens, conditions: dict[str, Any]) -> None:
    generator.train()
    out = generator(tokens, **conditions)
    generator.eval()
    expect(out.loss.ndim == 0 and bool(torch.isfinite(out.loss)), "the loss must be a finite scalar")
    expect(out.logits.shape[:2] == tokens.flat().shape, f"logits have shape {tuple(out.logits.shape)}")
    out.loss.backward()
    reached = [each for each in generator.parameters() if each.grad is not None and bool(each.grad.any())]
    expect(bool(reached), "no gradient reaches any parameter")
    generator.zero_grad()
