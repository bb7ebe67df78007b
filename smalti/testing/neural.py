"""The contract of tokenizers that are networks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.errors import ConfigError, SmaltiError
from smalti.testing.expect import UNKNOWN_FIELD, close, expect, expect_error, switched, unchanged
from smalti.tokenizer import NeuralTokenizer
from smalti.tokens import Tokens

# Odd but legal extents of each modality: a single pixel or sample, primes, something long in one direction.
EXTENTS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "image": ((3, 1, 1), (3, 7, 13), (3, 16, 16), (3, 33, 20)),
    "audio": ((1, 1), (1, 97), (2, 640), (1, 1531)),
}


def check_neural(system: type[NeuralTokenizer], *, seed: int = 0) -> None:
    """Runs the contract of `smalti.tokenizer.NeuralTokenizer` on the class's tiny configuration.

    Args:
        system: the class; `Config.tiny()` and `example()` give what the checks need.
        seed: of weights and inputs.
    """
    torch.manual_seed(seed)
    tokenizer = system.Config.tiny().build()
    expect(isinstance(tokenizer, system), f"Config.tiny().build() gives a {type(tokenizer).__name__}")
    assert isinstance(tokenizer, NeuralTokenizer)
    example = system.example(batch=3, seed=seed)
    x, conditions = example.pop("x"), example
    with unchanged(tokenizer, "encoding or decoding"):
        tokens = _check_round_trip(tokenizer, x, conditions)
        _check_samples_alone(tokenizer, x, conditions, tokens)
        _check_extents(tokenizer, conditions, seed)
        _check_bad_input(tokenizer, x, conditions, tokens)
        _check_training_flag(tokenizer, x, conditions, tokens)
    _check_forward(tokenizer, x, conditions)
    _check_folder(tokenizer, x, conditions)
    expect_error(lambda: system.Config(**UNKNOWN_FIELD), "an unknown field of Config", ConfigError)


def _check_round_trip(tokenizer: NeuralTokenizer, x: Tensor, conditions: dict[str, Any]) -> Tokens:
    tokens = tokenizer.encode(x, **conditions)
    expect(len(tokens) == len(x), f"{len(x)} samples gave {len(tokens)} tokens")
    tokens.check()
    decoded = tokenizer.decode(tokens)
    expect(decoded.shape[2:] == x.shape[2:], f"{tuple(x.shape)} came back as {tuple(decoded.shape)}")
    expect(bool(torch.isfinite(decoded).all()), "decoding gave NaN or infinity")
    expect(close(tokenizer.decode(list(tokens))[0], decoded[0]), "decoding a list differs from decoding a batch")
    expect(tokens.equal(Tokens.unpack(tokens.pack())), "pack and unpack do not return the tokens")
    embedded = tokenizer.embed(tokens)
    expect(embedded.shape[:-1] == tokens.codes.shape[:-1], f"embed gives shape {tuple(embedded.shape)}")
    latents = tokenizer.latents(x, **conditions)
    expect(latents.shape[:-1] == tokens.codes.shape[:-1], f"latents have shape {tuple(latents.shape)}")
    return tokens


def _check_samples_alone(tokenizer: NeuralTokenizer, x: Tensor, conditions: dict[str, Any], tokens: Tokens) -> None:
    listed = tokenizer.encode(list(x), **conditions)
    expect(len(listed) == len(x), "a list of samples must give a list of as many Tokens")
    expect(all(one.equal(tokens[i]) for i, one in enumerate(listed)), "codes of a sample depend on its batch")
    wide = tokenizer.encode(x.double(), **conditions)
    expect(torch.equal(wide.codes, tokens.codes), "float64 input gets other codes")
    tokenizer.decode(tokenizer.encode(x.half(), **conditions))
    backwards = tokenizer.encode(x.flip(0), **conditions)
    expect(torch.equal(backwards.codes.flip(0), tokens.codes), "codes depend on the order of samples")


def _check_extents(tokenizer: NeuralTokenizer, conditions: dict[str, Any], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for extent in EXTENTS[tokenizer.modality]:
        x = torch.rand(1, *extent, generator=generator)
        decoded = tokenizer.decode(tokenizer.encode(x, **conditions))
        expect(decoded.shape[2:] == x.shape[2:], f"extent {extent} came back as {tuple(decoded.shape[1:])}")


def _check_bad_input(tokenizer: NeuralTokenizer, x: Tensor, conditions: dict[str, Any], tokens: Tokens) -> None:
    for value in (float("nan"), float("inf")):
        broken = x.clone()
        broken.view(-1)[0] = value
        expect_error(partial(tokenizer.encode, broken, **conditions), f"input with {value}")
    expect_error(lambda: tokenizer.encode(x[0], **conditions), "input without a batch axis")
    expect_error(lambda: tokenizer.encode(x[0], raw=True, **conditions), "raw input without a batch axis")
    expect_error(lambda: tokenizer.encode(x[..., :0], **conditions), "input without samples")
    expect_error(lambda: tokenizer.encode(x.to(torch.int64), **conditions), "integer input")
    untyped: Any = tokenizer  # for what a type checker would refuse
    expect_error(lambda: untyped.encode(x.numpy(), **conditions), "an array instead of a tensor")
    expect_error(lambda: untyped.decode("tokens"), "a string instead of tokens")
    expect_error(lambda: tokenizer.encode(x, no_such_condition=1, **conditions), "an unknown condition")
    expect_error(lambda: tokenizer.decode(tokens, output="no such output"), "an unknown output", ConfigError)
    stream = tokens.only
    beyond = stream.codes.clone()
    beyond.view(-1)[0] = stream.vocab[0]
    if tokenizer.on_invalid == "raise":
        expect_error(lambda: tokenizer.decode(Tokens.of(beyond, stream.vocab, side=tokens.side)), "a code out of range")
    other = Tokens.of(stream.codes, tuple(size + 1 for size in stream.vocab), side=tokens.side)
    expect_error(lambda: tokenizer.decode(other), "tokens of another vocabulary")


def _check_training_flag(tokenizer: NeuralTokenizer, x: Tensor, conditions: dict[str, Any], tokens: Tokens) -> None:
    tokenizer.train()
    expect(torch.equal(tokenizer.encode(x, **conditions).codes, tokens.codes), "codes change in training mode")
    expect(tokenizer.training, "encoding leaves training mode")
    tokenizer.eval()


def _check_forward(tokenizer: NeuralTokenizer, x: Tensor, conditions: dict[str, Any]) -> None:
    tokenizer.train()
    out = tokenizer(x, **conditions)
    tokenizer.eval()
    expect(out.loss.ndim == 0 and bool(torch.isfinite(out.loss)), "the loss must be a finite scalar")
    if out.x is None:
        return
    expect(out.x.shape[2:] == x.shape[2:], f"forward turns {tuple(x.shape)} into {tuple(out.x.shape)}")
    (out.x.square().mean() + out.loss).backward()
    for part in tokenizer.code_parts:
        trained = [each for each in tokenizer.get_submodule(part).parameters() if each.requires_grad]
        reached = any(each.grad is not None and bool(each.grad.any()) for each in trained)
        expect(reached or not trained, f"no gradient reaches {part}")
    tokenizer.zero_grad()


def _check_folder(tokenizer: NeuralTokenizer, x: Tensor, conditions: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = tokenizer.save(Path(folder) / "saved")
        again = type(tokenizer).load(path)
    codes = tokenizer.encode(x, **conditions).codes
    expect(again.codes_hash == tokenizer.codes_hash, "the codes hash changes when saved and loaded")
    expect(torch.equal(again.encode(x, **conditions).codes, codes), "codes change when saved and loaded")
    for name, other in _other_configs(tokenizer):
        expect(
            other.codes_hash != tokenizer.codes_hash or torch.equal(other.encode(x, **conditions).codes, codes),
            f"another {name} gives other codes under the same hash",
        )
    deciding = next(each for part in again.code_parts for each in again.get_submodule(part).parameters())
    with torch.no_grad():
        deciding.add_(1.0)
    expect(again.codes_hash != tokenizer.codes_hash, "the codes hash does not see a changed weight")


def _other_configs(tokenizer: NeuralTokenizer) -> Iterator[tuple[str, NeuralTokenizer]]:
    """The same weights under a Config with one switch turned, where the weights still fit."""
    for path, config in switched(tokenizer.config):
        try:
            other = config.build()
            other.load_state_dict(tokenizer.state_dict())
        except (SmaltiError, RuntimeError):
            continue
        yield path, other.eval()
