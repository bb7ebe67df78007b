"""Public checks: the whole contract of design, run against one class or object, as scikit-learn's check_estimator does.

    check_tokenizer(SimVQImage)          check_quantizer(create("vq", dim=8, codes=64))          check_generator(MinGPT)

Each raises AssertionError with what was expected and what came. The test suite runs them over everything registered;
a third party can certify its own systems with them.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.errors import ConfigError, SmaltiError
from smalti.generate.base import Generator
from smalti.generate.sampling import Sampling
from smalti.quantize.base import DROPPED, Quantizer
from smalti.tokenizer import NeuralTokenizer
from smalti.tokens import Tokens

# Odd but legal extents of each modality: a single pixel or sample, primes, something long in one direction.
EXTENTS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "image": ((3, 1, 1), (3, 7, 13), (3, 16, 16), (3, 33, 20)),
    "audio": ((1, 1), (1, 97), (2, 640), (1, 1531)),
}

UNKNOWN_FIELD: dict[str, Any] = {"no_such_field": 1}


def check_quantizer(quantizer: Quantizer, *, seed: int = 0) -> None:
    """Runs the contract of `smalti.quantize.Quantizer`.

    Args:
        quantizer: any; its parameters are not changed.
        seed: of the random latents.
    """
    generator = torch.Generator().manual_seed(seed)
    was_training = quantizer.training
    try:
        quantizer.eval()
        with _unchanged(quantizer, "evaluation"):
            for positions in ((), (5,), (3, 4), (2, 2, 2)):
                _check_shapes(quantizer, torch.randn(2, *positions, quantizer.dim, generator=generator))
            z = torch.randn(3, 7, quantizer.dim, generator=generator)
            _check_independence(quantizer, z, generator)
            _check_dropped(quantizer, z)
            _check_precision(quantizer, z)
            _check_candidates(quantizer, z)
            _check_margin(quantizer, z)
            _check_tables(quantizer, z)
            _check_refusals(quantizer, z)
        _check_gradient(quantizer, z)
    finally:
        quantizer.train(was_training)


def check_tokenizer(system: type[NeuralTokenizer], *, seed: int = 0) -> None:
    """Runs the contract of `smalti.tokenizer.NeuralTokenizer` on the class's tiny configuration.

    Args:
        system: the class; `Config.tiny()` and `example()` give what the checks need.
        seed: of weights and inputs.
    """
    torch.manual_seed(seed)
    tokenizer = system.Config.tiny().build()
    _expect(isinstance(tokenizer, system), f"Config.tiny().build() gives a {type(tokenizer).__name__}")
    assert isinstance(tokenizer, NeuralTokenizer)
    example = system.example(batch=3, seed=seed)
    x, conditions = example.pop("x"), example
    with _unchanged(tokenizer, "encoding or decoding"):
        tokens = _check_round_trip(tokenizer, x, conditions)
        _check_samples_alone(tokenizer, x, conditions, tokens)
        _check_extents(tokenizer, conditions, seed)
        _check_bad_input(tokenizer, x, conditions, tokens)
        _check_training_flag(tokenizer, x, conditions, tokens)
    _check_forward(tokenizer, x, conditions)
    _check_folder(tokenizer, x, conditions)
    _expect_error(lambda: system.Config(**UNKNOWN_FIELD), "an unknown field of Config", ConfigError)


def check_generator(system: type[Generator], *, seed: int = 0) -> None:
    """Runs the contract of `smalti.generate.Generator` on the class's tiny configuration.

    Args:
        system: the class; `Config.tiny()` and `example()` give what the checks need.
        seed: of weights and inputs.
    """
    torch.manual_seed(seed)
    generator = system.Config.tiny().build().eval()
    _expect(isinstance(generator, system), f"Config.tiny().build() gives a {type(generator).__name__}")
    example = system.example(batch=3, seed=seed)
    tokens, conditions = example.pop("tokens"), example
    with _unchanged(generator, "generating"):
        _check_greedy(generator, tokens, conditions)
        _check_draws(generator, tokens, conditions)
        _expect_error(lambda: generator.generate(1, no_such_condition=1, **conditions), "an unknown condition")
    _check_modelled(generator, tokens, conditions)
    with tempfile.TemporaryDirectory() as folder:
        again = type(generator).load(generator.save(Path(folder) / "saved"))
    same = torch.equal(again(tokens, **conditions).logits, generator(tokens, **conditions).logits)
    _expect(same, "logits change when saved and loaded")
    _expect_error(lambda: system.Config(**UNKNOWN_FIELD), "an unknown field of Config", ConfigError)


# --- quantizers ------------------------------------------------------------------------------------------------------


def _check_shapes(quantizer: Quantizer, z: Tensor) -> None:
    out = quantizer(z)
    slots = len(quantizer.vocab)
    _expect(out.z.shape == z.shape, f"z {tuple(z.shape)} became {tuple(out.z.shape)}")
    _expect(out.codes.shape == (*z.shape[:-1], slots), f"codes have shape {tuple(out.codes.shape)}")
    _expect(out.codes.dtype == torch.int64, f"codes are {out.codes.dtype}")
    _expect(bool((out.codes >= 0).all()), "evaluation gave negative codes")
    _expect(bool((out.codes < torch.tensor(quantizer.vocab)).all()), "codes reach beyond the vocabulary")
    _expect(out.loss.ndim == 0, f"the loss has shape {tuple(out.loss.shape)}")
    _expect(torch.equal(quantizer.encode(z), out.codes), "encode and forward choose different codes")
    _expect(_close(quantizer.decode(out.codes), out.z), "decode of the codes is not forward's z")


def _check_independence(quantizer: Quantizer, z: Tensor, generator: torch.Generator) -> None:
    codes = quantizer.encode(z)
    alone = torch.cat([quantizer.encode(row[None]) for row in z])
    _expect(torch.equal(codes, alone), "codes of a sample depend on its batch")
    order = torch.randperm(z.shape[1], generator=generator)
    _expect(torch.equal(quantizer.encode(z[:, order]), codes[:, order]), "codes depend on the order of positions")
    mask = torch.ones(z.shape[:-1], dtype=torch.bool)
    mask[:, 5:] = False
    garbled = torch.where(mask[..., None], z, torch.full_like(z, 1e4))
    one, other = quantizer(z, mask=mask), quantizer(garbled, mask=mask)
    _expect(torch.equal(one.codes, other.codes), "masked latents change codes")
    _expect(_close(one.loss, other.loss), "masked latents change the loss")
    _expect(bool((one.codes[:, 5:] == DROPPED).all()), "masked positions must have code -1")
    _expect(not bool(one.z[:, 5:].any()), "masked positions must decode to zero")


def _check_dropped(quantizer: Quantizer, z: Tensor) -> None:
    codes = torch.full_like(quantizer.encode(z), DROPPED)
    _expect(not bool(quantizer.decode(codes).any()), "code -1 must decode to zero")


def _check_precision(quantizer: Quantizer, z: Tensor) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        rough = z.to(dtype)
        _expect(
            torch.equal(quantizer.encode(rough), quantizer.encode(rough.float())), f"{dtype} latents get other codes"
        )
        _expect(quantizer(rough).z.dtype == dtype, f"z of {dtype} latents has another type")


def _check_candidates(quantizer: Quantizer, z: Tensor) -> None:
    k = min(3, min(quantizer.vocab))
    codes, values, costs = quantizer.candidates(z, k)
    slots = len(quantizer.vocab)
    _expect(codes.shape == (*z.shape[:-1], k, slots), f"candidates have shape {tuple(codes.shape)}")
    _expect(values.shape == (*z.shape[:-1], k, quantizer.dim), f"candidate values have shape {tuple(values.shape)}")
    _expect(bool((costs.diff(dim=-1) >= 0).all()), "candidates must come best first")
    _expect(_close(values, quantizer.decode(codes)), "candidate values are not what the codes decode to")


def _check_margin(quantizer: Quantizer, z: Tensor) -> None:
    mask = torch.ones(z.shape[:-1], dtype=torch.bool)
    mask[0] = False
    for chosen in (None, mask):
        codes, margin = quantizer.encode_with_margin(z, mask=chosen)
        _expect(torch.equal(codes, quantizer.encode(z, mask=chosen)), "the codes beside margins are those of encode")
        _expect(margin.shape == codes.shape and margin.dtype == torch.float32, "a margin for each code, float32")
        _expect(bool((margin >= 0).all()), "the second best code is not better than the best")
        _expect(bool(torch.isinf(margin[codes < 0]).all()), "margins of masked positions are infinite")


def _check_tables(quantizer: Quantizer, z: Tensor) -> None:
    codes = quantizer.encode(z)
    own = quantizer.lookup(codes)
    for slot, table in enumerate(quantizer.codebooks()):
        _expect(len(table) == quantizer.vocab[slot], f"codebook {slot} has {len(table)} rows")
        _expect(_close(table[codes[..., slot]], own[..., slot, :]), f"lookup differs from codebook {slot}")


def _check_refusals(quantizer: Quantizer, z: Tensor) -> None:
    for value in (math.nan, math.inf):
        broken = z.clone()
        broken[0, 0, 0] = value
        _expect_error(lambda: quantizer.encode(broken), f"latents with {value}")  # noqa: B023  (called at once)
        _expect_error(lambda: quantizer(broken), f"latents with {value} in forward")  # noqa: B023
        _expect_error(lambda: quantizer.candidates(broken, 1), f"latents with {value} among candidates")  # noqa: B023
    _expect_error(lambda: quantizer.encode(z[..., :-1]), "latents of another dimension")
    beyond = quantizer.encode(z)
    beyond[0, 0, 0] = quantizer.vocab[0]
    _expect_error(lambda: quantizer.decode(beyond), "a code beyond the vocabulary")


def _check_gradient(quantizer: Quantizer, z: Tensor) -> None:
    z = z.clone().requires_grad_()
    out = quantizer(z)
    (out.z.square().sum() + out.loss).backward()
    _expect(z.grad is not None and bool(torch.isfinite(z.grad).all()), "no finite gradient reaches the latents")
    _expect(z.grad is not None and bool(z.grad.any()), "the gradient to the latents is zero")
    quantizer.zero_grad()


# --- tokenizers ------------------------------------------------------------------------------------------------------


def _check_round_trip(tokenizer: NeuralTokenizer, x: Tensor, conditions: dict[str, Any]) -> Tokens:
    tokens = tokenizer.encode(x, **conditions)
    _expect(len(tokens) == len(x), f"{len(x)} samples gave {len(tokens)} tokens")
    tokens.check()
    decoded = tokenizer.decode(tokens)
    _expect(decoded.shape[2:] == x.shape[2:], f"{tuple(x.shape)} came back as {tuple(decoded.shape)}")
    _expect(bool(torch.isfinite(decoded).all()), "decoding gave NaN or infinity")
    _expect(_close(tokenizer.decode(list(tokens))[0], decoded[0]), "decoding a list differs from decoding a batch")
    _expect(tokens.equal(Tokens.unpack(tokens.pack())), "pack and unpack do not return the tokens")
    embedded = tokenizer.embed(tokens)
    _expect(embedded.shape[:-1] == tokens.codes.shape[:-1], f"embed gives shape {tuple(embedded.shape)}")
    latents = tokenizer.latents(x, **conditions)
    _expect(latents.shape[:-1] == tokens.codes.shape[:-1], f"latents have shape {tuple(latents.shape)}")
    return tokens


def _check_samples_alone(tokenizer: NeuralTokenizer, x: Tensor, conditions: dict[str, Any], tokens: Tokens) -> None:
    listed = tokenizer.encode(list(x), **conditions)
    _expect(len(listed) == len(x), "a list of samples must give a list of as many Tokens")
    _expect(all(one.equal(tokens[i]) for i, one in enumerate(listed)), "codes of a sample depend on its batch")
    wide = tokenizer.encode(x.double(), **conditions)
    _expect(torch.equal(wide.codes, tokens.codes), "float64 input gets other codes")
    tokenizer.decode(tokenizer.encode(x.half(), **conditions))
    backwards = tokenizer.encode(x.flip(0), **conditions)
    _expect(torch.equal(backwards.codes.flip(0), tokens.codes), "codes depend on the order of samples")


def _check_extents(tokenizer: NeuralTokenizer, conditions: dict[str, Any], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for extent in EXTENTS[tokenizer.modality]:
        x = torch.rand(1, *extent, generator=generator)
        decoded = tokenizer.decode(tokenizer.encode(x, **conditions))
        _expect(decoded.shape[2:] == x.shape[2:], f"extent {extent} came back as {tuple(decoded.shape[1:])}")


def _check_bad_input(tokenizer: NeuralTokenizer, x: Tensor, conditions: dict[str, Any], tokens: Tokens) -> None:
    for value in (float("nan"), float("inf")):
        broken = x.clone()
        broken.view(-1)[0] = value
        _expect_error(partial(tokenizer.encode, broken, **conditions), f"input with {value}")
    _expect_error(lambda: tokenizer.encode(x[0], **conditions), "input without a batch axis")
    _expect_error(lambda: tokenizer.encode(x[0], raw=True, **conditions), "raw input without a batch axis")
    _expect_error(lambda: tokenizer.encode(x[..., :0], **conditions), "input without samples")
    _expect_error(lambda: tokenizer.encode(x.to(torch.int64), **conditions), "integer input")
    untyped: Any = tokenizer  # for what a type checker would refuse
    _expect_error(lambda: untyped.encode(x.numpy(), **conditions), "an array instead of a tensor")
    _expect_error(lambda: untyped.decode("tokens"), "a string instead of tokens")
    _expect_error(lambda: tokenizer.encode(x, no_such_condition=1, **conditions), "an unknown condition")
    _expect_error(lambda: tokenizer.decode(tokens, output="no such output"), "an unknown output", ConfigError)
    stream = tokens.only
    beyond = stream.codes.clone()
    beyond.view(-1)[0] = stream.vocab[0]
    if tokenizer.on_invalid == "raise":
        _expect_error(
            lambda: tokenizer.decode(Tokens.of(beyond, stream.vocab, side=tokens.side)), "a code out of range"
        )
    other = Tokens.of(stream.codes, tuple(size + 1 for size in stream.vocab), side=tokens.side)
    _expect_error(lambda: tokenizer.decode(other), "tokens of another vocabulary")


def _check_training_flag(tokenizer: NeuralTokenizer, x: Tensor, conditions: dict[str, Any], tokens: Tokens) -> None:
    tokenizer.train()
    _expect(torch.equal(tokenizer.encode(x, **conditions).codes, tokens.codes), "codes change in training mode")
    _expect(tokenizer.training, "encoding leaves training mode")
    tokenizer.eval()


def _check_forward(tokenizer: NeuralTokenizer, x: Tensor, conditions: dict[str, Any]) -> None:
    tokenizer.train()
    out = tokenizer(x, **conditions)
    tokenizer.eval()
    _expect(out.loss.ndim == 0 and bool(torch.isfinite(out.loss)), "the loss must be a finite scalar")
    if out.x is None:
        return
    _expect(out.x.shape[2:] == x.shape[2:], f"forward turns {tuple(x.shape)} into {tuple(out.x.shape)}")
    (out.x.square().mean() + out.loss).backward()
    for part in tokenizer.code_parts:
        trained = [each for each in tokenizer.get_submodule(part).parameters() if each.requires_grad]
        reached = any(each.grad is not None and bool(each.grad.any()) for each in trained)
        _expect(reached or not trained, f"no gradient reaches {part}")
    tokenizer.zero_grad()


def _check_folder(tokenizer: NeuralTokenizer, x: Tensor, conditions: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = tokenizer.save(Path(folder) / "saved")
        again = type(tokenizer).load(path)
    codes = tokenizer.encode(x, **conditions).codes
    _expect(again.codes_hash == tokenizer.codes_hash, "the codes hash changes when saved and loaded")
    _expect(torch.equal(again.encode(x, **conditions).codes, codes), "codes change when saved and loaded")
    for name, other in _other_configs(tokenizer):
        _expect(
            other.codes_hash != tokenizer.codes_hash or torch.equal(other.encode(x, **conditions).codes, codes),
            f"another {name} gives other codes under the same hash",
        )
    deciding = next(each for part in again.code_parts for each in again.get_submodule(part).parameters())
    with torch.no_grad():
        deciding.add_(1.0)
    _expect(again.codes_hash != tokenizer.codes_hash, "the codes hash does not see a changed weight")


def _other_configs(tokenizer: NeuralTokenizer) -> Iterator[tuple[str, NeuralTokenizer]]:
    """The same weights under a Config with one switch turned, where the weights still fit."""
    whole = tokenizer.config.model_dump()
    for path in _switches(whole):
        changed = copy.deepcopy(whole)
        place = changed
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = not place[path[-1]]
        try:
            other = type(tokenizer).Config(**changed).build()
            assert isinstance(other, NeuralTokenizer)
            other.load_state_dict(tokenizer.state_dict())
        except (SmaltiError, RuntimeError):
            continue
        yield ".".join(path), other.eval()


def _switches(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in config.items():
        if isinstance(value, bool):
            yield (*path, name)
        elif isinstance(value, Mapping):
            yield from _switches(value, (*path, name))


# --- generators ------------------------------------------------------------------------------------------------------


def _check_greedy(generator: Generator, tokens: Tokens, conditions: dict[str, Any]) -> None:
    """Step by step with a cache must give what one pass over the whole sequence gives."""
    drawn = generator.generate(len(tokens), sampling=Sampling(temperature=0.0), seed=0, **conditions)
    _expect(drawn.spec == tokens.spec, f"generate gives {drawn}, not {tokens}")
    drawn.check()
    logits = generator(drawn, **conditions).logits
    ids = drawn.flat()
    chosen = logits.gather(-1, ids[..., None])[..., 0]
    slack = 1e-4 * logits.abs().amax().clamp(min=1)
    allowed = _allowed(generator, drawn, logits)
    best = logits.masked_fill(~allowed, -torch.inf).amax(-1)
    _expect(bool((chosen >= best - slack).all()), "cached generation differs from one pass over the sequence")


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
    _expect(drawn.flat().equal(again.flat()), "the same seeds draw different tokens")
    alone: dict[str, Any] = {
        name: value[1:2] if isinstance(value, Tensor) else value for name, value in conditions.items()
    }
    one = generator.generate(1, sampling=sampling, seed=[1], **alone)
    _expect(one.flat().equal(drawn.flat()[1:2]), "draws of a sample depend on its batch")
    other = generator.generate(count, sampling=sampling, seed=[seed + 100 for seed in seeds], **conditions)
    _expect(not other.flat().equal(drawn.flat()), "other seeds draw the same tokens")


def _check_modelled(generator: Generator, tokens: Tokens, conditions: dict[str, Any]) -> None:
    generator.train()
    out = generator(tokens, **conditions)
    generator.eval()
    _expect(out.loss.ndim == 0 and bool(torch.isfinite(out.loss)), "the loss must be a finite scalar")
    _expect(out.logits.shape[:2] == tokens.flat().shape, f"logits have shape {tuple(out.logits.shape)}")
    out.loss.backward()
    reached = [each for each in generator.parameters() if each.grad is not None and bool(each.grad.any())]
    _expect(bool(reached), "no gradient reaches any parameter")
    generator.zero_grad()


# --- helpers ---------------------------------------------------------------------------------------------------------


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _expect_error(action: Callable[[], object], what: str, kind: type[Exception] = SmaltiError) -> None:
    try:
        action()
    except kind as error:
        _expect(len(str(error)) > 10, f"the error for {what} says nothing: {error!r}")
        return
    except Exception as error:
        raise AssertionError(f"{what} must be refused with {kind.__name__}, came {error!r}") from error
    raise AssertionError(f"{what} must be refused with {kind.__name__}, but was taken")


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.float(), other.float(), rtol=1e-5, atol=1e-6)


@contextmanager
def _unchanged(module: torch.nn.Module, what: str) -> Iterator[None]:
    """Fails if the module's state changes inside."""
    before = {key: value.clone() for key, value in module.state_dict().items()}
    yield
    for key, value in module.state_dict().items():
        _expect(torch.equal(value, before[key]), f"{what} changes the state {key}")
