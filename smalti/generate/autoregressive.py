"""A plain autoregressive transformer over any tokens: one id per step, each predicted from the ones before it.

    Tokens ──flat──► ids (B,N) ──► [condition | vectors of ids 0..N-2] ──► transformer ──► head ──► logits (B,N,ids)
    Tokens ◄─unflat─ ids (B,N) ◄── one draw per step, with a key-value cache ◄──────────────────────┘

minGPT (`smalti.image.taming`) and LlamaGen's transformer (`smalti.image.llamagen`) are two configurations of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.errors import InputError
from smalti.generate.base import Generator, Modelled
from smalti.generate.conditions import ClassCondition, FeatureCondition, Prefix, PrefixConfig, PrefixModule
from smalti.generate.sampling import Sampling, Seed, guide, uniform_draws
from smalti.nn.transformer import GridRotary, Transformer, init_weights
from smalti.quantize.base import Noise
from smalti.tokenizer import Condition
from smalti.tokens import Offset, Order, StreamSpec, Tokens, TokenSpec, slot_offsets


class AutoregressiveTransformer(Generator):
    """See the module's docstring. Published models are subclasses that know their configurations and keys."""

    name: ClassVar[str] = "autoregressive"

    class Config(Generator.Config):
        """What is modelled, what stands before it, and the transformer.

        Args:
            streams: extents and vocabularies of the tokens.
            order, offset: how codes become one id per step, as in `Tokens.flat`.
            ids: size of the table of vectors and of the head; as many as the codes need by default.
            condition: what stands before the tokens.
            transformer: its sizes; its context holds the condition and all tokens but the last.
            keep: how often training keeps an input token, instead of replacing it by a random one.
            zero_head: start with a head of zeros, so that all ids are equally likely.
        """

        streams: dict[str, StreamSpec] = Field({"codes": StreamSpec((16, 16), (16384,))}, min_length=1)
        order: Order = "position"
        offset: Offset = "stacked"
        ids: int | None = Field(None, ge=1)
        condition: PrefixConfig = ClassCondition()
        transformer: Transformer.Config = Transformer.Config()
        keep: float = Field(1.0, gt=0, le=1)
        zero_head: bool = False

        @property
        def steps(self) -> int:
            """Number of tokens of a sample."""
            return sum(stream.size * stream.slots for stream in self.streams.values())

        @property
        def needed_ids(self) -> int:
            """One more than the largest id of a code."""
            firsts = slot_offsets(self.streams, self.offset)
            return max(
                first + size
                for stream, starts in zip(self.streams.values(), firsts, strict=True)
                for first, size in zip(starts, stream.vocab, strict=True)
            )

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.ids is not None and self.ids < self.needed_ids:
                raise ValueError(f"ids = {self.ids} are too few: codes need {self.needed_ids}")
            needed = self.condition.length + self.steps - 1
            if self.transformer.context < needed:
                raise ValueError(f"transformer.context {self.transformer.context} must be at least {needed}")
            return self

        def build(self) -> AutoregressiveTransformer:
            return AutoregressiveTransformer(self)

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                streams={"codes": StreamSpec((3, 2), (7, 5))},
                condition=ClassCondition(classes=3),
                transformer=Transformer.Config(width=16, layers=2, heads=2, hidden=32, context=12),
            )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width, ids = config.transformer.width, config.ids or config.needed_ids
        self.embedding = self.make_embedding(ids, width)
        self.prefix: PrefixModule = config.condition.build(width)
        self.transformer = config.transformer.build()
        self.head = nn.Linear(width, ids, bias=False)
        for part in (self.embedding, self.prefix, self.head):
            part.apply(init_weights)
        if config.zero_head:
            nn.init.zeros_(self.head.weight)

    def make_embedding(self, ids: int, width: int) -> nn.Embedding:
        """The table of input vectors (ids, width); a subclass may have its own kind."""
        return nn.Embedding(ids, width)

    @property
    def conditions(self) -> Mapping[str, Condition]:
        return self.prefix.conditions

    @classmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        config, draw = cls.Config.tiny(), torch.Generator().manual_seed(seed)
        return {"tokens": _random_tokens(config, batch, draw), **_random_conditions(config, batch, draw)}

    def forward(self, tokens: Tokens, **conditions: Any) -> Modelled:
        self._check_conditions(conditions)
        self._check_tokens(tokens)
        ids = tokens.flat(self.config.order, self.config.offset).to(self.device)
        inputs = ids[:, :-1]
        if self.training and self.config.keep < 1:
            replaced = torch.rand(inputs.shape, device=self.device) >= self.config.keep
            inputs = torch.where(replaced, torch.randint_like(inputs, self.embedding.num_embeddings), inputs)
        prefix: Prefix = self.prefix(len(ids), self.embedding, **conditions)
        x = torch.cat([prefix.vectors, self.embedding(inputs)], dim=1)
        logits = self.head(self.transformer(x, visible=prefix.visible)[:, len(prefix) - 1 :])
        real = tokens.flat_mask(self.config.order).to(self.device)
        losses = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
        loss = (losses * real).sum() / real.sum().clamp(min=1)
        return Modelled(loss, logits, {"cross_entropy": loss})

    def generate(
        self,
        batch: int,
        *,
        prompt: Tokens | None = None,
        sampling: Sampling | None = None,
        seed: Seed = None,
        noise: Noise | None = None,
        positions: Sequence[int] | None = None,
        cached: bool = True,
        **conditions: Any,
    ) -> Tokens:
        """Draws tokens, one step after another; see `Generator.generate`.

        Args:
            batch: number of samples.
            prompt: the first codes of every sample: whole positions in the order of steps.
            sampling: the rules of drawing, per step or per slot.
            seed: one integer (the same draws for every sample), or one per sample.
            noise: "uniform", (batch, steps): a number in [0, 1) for every step.
            positions: extents of the only stream, where they are smaller than the configured ones.
            cached: keep keys and values instead of computing all steps again; the result is the same.
            **conditions: as declared in `conditions`.
        """
        self._check_conditions(conditions)
        spec = self._spec(positions)
        steps = _steps(spec, self.config.order, self.config.offset)
        rules = (sampling or Sampling()).rules([step.slot for step in steps])
        uniform = uniform_draws(batch, len(steps), seed, noise).to(self.device)
        with self._inference():
            ids = self._prompt_ids(prompt, batch, spec)
            guided = any(rule.guidance != 1 for rule in rules[ids.shape[1] :])
            run = _Run(self, batch, guided=guided, cached=cached, conditions=conditions)
            for index in range(ids.shape[1], len(steps)):
                step, rule = steps[index], rules[index]
                logits = run.logits(ids, rule.guidance)[:, step.first : step.first + step.size]
                drawn = rule.draw(logits, uniform[:, index]) + step.first
                ids = torch.cat([ids, drawn[:, None]], dim=1)
        return Tokens.unflat(ids, spec, self.config.order, self.config.offset)

    def _spec(self, positions: Sequence[int] | None) -> dict[str, StreamSpec]:
        if positions is None:
            return dict(self.config.streams)
        if len(self.config.streams) != 1:
            raise InputError(f"positions can be chosen for one stream only, not for {list(self.config.streams)}")
        ((name, stream),) = self.config.streams.items()
        if isinstance(self.config.transformer.positions, GridRotary) and tuple(positions) != stream.positions:
            raise InputError(f"this model is bound to positions {stream.positions}, not {tuple(positions)}")
        room = self.config.transformer.context + 1 - self.config.condition.length
        if not 1 <= prod(positions) * stream.slots <= room:
            raise InputError(f"positions {tuple(positions)} with {stream.slots} slots do not fit {room} steps")
        return {name: StreamSpec(tuple(positions), stream.vocab, stream.slot_names)}

    def _check_tokens(self, tokens: Tokens) -> None:
        vocabs = {name: stream.vocab for name, stream in self.config.streams.items()}
        given = {name: stream.vocab for name, stream in tokens.streams.items()}
        if given != vocabs:
            raise InputError(f"these tokens have streams and vocabularies {given}, the model has {vocabs}")
        if len(given) == 1:
            self._spec(tokens.only.spec.positions)
        elif tokens.spec != self.config.streams:
            raise InputError(f"these tokens have extents {tokens.spec}, the model has {self.config.streams}")

    def _prompt_ids(self, prompt: Tokens | None, batch: int, spec: TokenSpec) -> Tensor:
        if prompt is None:
            return torch.empty(batch, 0, dtype=torch.int64, device=self.device)
        if len(prompt) != batch:
            raise InputError(f"the prompt has {len(prompt)} samples for a batch of {batch}")
        prompt.check()
        names = list(spec)[: len(prompt.streams)]
        *whole, last = names
        fits = list(prompt.streams) == names and all(prompt.spec[name] == spec[name] for name in whole)
        if not fits or not _is_beginning(prompt.spec[last], spec[last], self.config.order):
            raise InputError(f"a prompt must hold the first steps of {dict(spec)}, this one has {prompt.spec}")
        offsets = slot_offsets(spec, self.config.offset)
        firsts = [first for name, starts in zip(spec, offsets, strict=True) if name in names for first in starts]
        count = sum(stream.slots for stream in prompt.spec.values())
        return prompt.flat(self.config.order, firsts[:count]).to(self.device)


class _Run:
    """The transformer during one call of `generate`: what it has computed so far."""

    def __init__(
        self,
        model: AutoregressiveTransformer,
        batch: int,
        *,
        guided: bool,
        cached: bool,
        conditions: Mapping[str, Any],
    ) -> None:
        self.model, self.batch, self.guided = model, batch, guided
        self.prefix: Prefix = model.prefix(batch, model.embedding, **conditions)
        if guided:
            self.prefix = self.prefix.cat(model.prefix.null(batch, model.embedding, **conditions))
        self.cache = model.transformer.cache() if cached else None

    def logits(self, ids: Tensor, guidance: float) -> Tensor:
        """Logits of the step after the given ids (batch, steps)."""
        known = 0 if self.cache is None else self.cache.length
        new = ids[:, max(0, known - len(self.prefix)) :]
        vectors = self.model.embedding(torch.cat([new, new]) if self.guided else new)
        x = torch.cat([self.prefix.vectors[:, known:], vectors], dim=1)
        h = self.model.transformer(x, cache=self.cache, visible=self.prefix.visible)[:, -1]
        logits = self.model.head(h)
        if not self.guided:
            return logits
        conditional, unconditional = logits.split(self.batch)
        return guide(conditional, unconditional, guidance)


@dataclass(frozen=True)
class _Step:
    """What one step draws: its slot (counted over all streams), the first id of that slot, and its vocabulary."""

    slot: int
    first: int
    size: int


def _steps(spec: TokenSpec, order: Order, offset: Offset) -> list[_Step]:
    steps: list[_Step] = []
    count = 0
    for stream, firsts in zip(spec.values(), slot_offsets(spec, offset), strict=True):
        own = [
            _Step(count + slot, first, size)
            for slot, (first, size) in enumerate(zip(firsts, stream.vocab, strict=True))
        ]
        steps += [step for step in own for _ in range(stream.size)] if order == "slot" else own * stream.size
        count += stream.slots
    return steps


def _is_beginning(part: StreamSpec, whole: StreamSpec, order: Order) -> bool:
    """Whether a stream holds the first steps of another."""
    if part.vocab != whole.vocab[: part.slots]:
        return False
    if order == "slot":
        return part.positions == whole.positions
    rows_fit = len(part.positions) == 1 or part.positions[1:] == whole.positions[1:]
    return part.slots == whole.slots and rows_fit and part.size <= whole.size


def _random_tokens(config: AutoregressiveTransformer.Config, batch: int, draw: torch.Generator) -> Tokens:
    steps = _steps(config.streams, config.order, config.offset)
    ids = [torch.randint(step.first, step.first + step.size, (batch,), generator=draw) for step in steps]
    return Tokens.unflat(torch.stack(ids, dim=1), config.streams, config.order, config.offset)


def _random_conditions(
    config: AutoregressiveTransformer.Config, batch: int, draw: torch.Generator
) -> dict[str, Tensor]:
    condition = config.condition
    if isinstance(condition, ClassCondition):
        return {"label": torch.randint(condition.classes, (batch,), generator=draw)}
    if isinstance(condition, FeatureCondition):
        return {"features": torch.randn(batch, condition.length, condition.dim, generator=draw)}
    return {"condition": torch.randint(config.needed_ids, (batch, condition.length), generator=draw)}
