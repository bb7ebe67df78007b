"""Generator: the one interface of every model over tokens.

    tokens ──forward──► logits, loss                                      (training)
    prompt, conditions, seed ──generate──► tokens ──decode──► data        (its tokenizer decodes)

A generator is built for the streams, vocabularies and extents of one tokenizer's tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

import smalti.config
from smalti.errors import CheckpointError, InputError
from smalti.folder import fill, read_folder, write_folder
from smalti.generate.sampling import Sampling, Seed
from smalti.quantize.base import Noise
from smalti.tokenizer import Condition
from smalti.tokens import Tokens


@dataclass(frozen=True)
class Modelled:
    """What `forward` gives.

    Args:
        loss: scalar, to be minimised.
        logits: (batch, steps, ids): what each step was predicted to be.
        terms: parts of the loss by name, and statistics.
    """

    loss: Tensor
    logits: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Generator(nn.Module, ABC):
    """A model over tokens.

    Attributes:
        name: the record's name in `smalti.systems`.
        presets: published configurations by name.
    """

    class Config(smalti.config.Config):
        """Numbers and choices of a generator; its defaults are a published configuration."""

        def build(self) -> Generator:
            """The generator with random weights."""
            raise NotImplementedError  # every generator's own Config says what it builds

        @classmethod
        def tiny(cls) -> Self:
            """A tiny random configuration, for checks."""
            raise NotImplementedError

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Generator.Config]] = {}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Any = config

    @property
    @abstractmethod
    def conditions(self) -> Mapping[str, Condition]:
        """The keywords that forward and generate take."""

    @abstractmethod
    def forward(self, tokens: Tokens, **conditions: Any) -> Modelled:
        """Predicts every step from those before it; differentiable."""

    @abstractmethod
    def generate(
        self,
        batch: int,
        *,
        prompt: Tokens | None = None,
        sampling: Sampling | None = None,
        seed: Seed = None,
        noise: Noise | None = None,
        **conditions: Any,
    ) -> Tokens:
        """Draws tokens.

        Args:
            batch: number of samples.
            prompt: the first tokens of every sample; they are kept as they are.
            sampling: the rules of drawing.
            seed: one integer (the same draws for every sample), or one per sample.
            noise: named random numbers in place of drawn ones.
            **conditions: as declared in `conditions`.
        """

    @classmethod
    @abstractmethod
    def example(cls, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        """Legal inputs of `Config.tiny()`: {"tokens": Tokens, **conditions}. The checks use it."""

    @classmethod
    def from_official(cls, config: Any, state: Mapping[str, Any]) -> Self:
        """The officially published configuration and state in, a ready generator out.

        Args:
            config: the published file's own configuration, or None (sizes are then read off the tensors).
            state: official keys -> tensors.

        Raises:
            CheckpointError: if a key is missing, unknown, or of an impossible shape.
        """
        raise CheckpointError(f"no checkpoints of {cls.name} were published")

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None, licence: str | None = None) -> Path:
        """Writes config.json and model.safetensors.

        Args:
            folder: where; an earlier saved folder at that path is replaced.
            dtype: store floating tensors as this (bfloat16 and float16 halve the size).
            licence: licence of the weights, kept in config.json.
        """
        state = {
            key: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
            for key, tensor in self.state_dict().items()
        }
        config = self.config.model_dump(mode="json")
        return write_folder(
            folder, kind="generator", name=self.name, config=config, state=state, facts={"licence": licence}
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads a saved folder, ready to generate.

        Raises:
            CheckpointError: if it is damaged or of another system.
        """
        saved = read_folder(folder, "generator", cls.name)
        generator = cls.Config(**saved.header["config"]).build()
        if not isinstance(generator, cls):
            raise CheckpointError(f"{folder}: its config builds a {type(generator).__name__}, not a {cls.__name__}")
        fill(generator, saved.state, str(folder))
        return generator.eval()

    def _check_conditions(self, conditions: Mapping[str, Any]) -> None:
        unknown = sorted(conditions.keys() - self.conditions.keys())
        if unknown:
            raise InputError(
                f"{self.name} does not take {unknown}; it takes {sorted(self.conditions) or 'no conditions'}"
            )
        missing = [name for name, each in self.conditions.items() if each.required and conditions.get(name) is None]
        if missing:
            raise InputError(f"{self.name} needs {missing}")

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Evaluation mode and no gradients; training flags come back afterwards."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True
