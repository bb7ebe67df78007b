"""Objective: what training wants of a model and the model itself does not own.

    batch ──► model ──► Reconstruction ──► objective ──► {"model": loss, "discriminator": loss}
                                              │
                    discriminators, perceptual networks, weights: never part of model.safetensors;
                    what is trained of them is part of the training checkpoint

The loop (`smalti.train.loop`) calls `losses`, backpropagates each loss, and steps the optimizer of that name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

import smalti.config
from smalti.errors import ConfigError
from smalti.tokenizer import NeuralTokenizer, Reconstruction

MODEL = "model"  # the optimizer of the tokenizer's own parameters


@dataclass(frozen=True)
class Losses:
    """What one optimizer minimises.

    Args:
        loss: scalar, with gradient.
        terms: its parts and statistics by name: detached scalars, for the log.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Model(Protocol):
    """A tokenizer that is called only: over several devices it is wrapped, and shows nothing else."""

    def __call__(self, x: Tensor, *, raw: bool = False, **conditions: Any) -> Reconstruction: ...


class Objective(nn.Module, ABC):
    """Losses of a tokenizer in training.

    Its sub-modules that are trained (discriminators) are named by `trained`; all others are frozen. A loss must
    give gradients only to the parameters of its own optimizer: `frozen` shields a discriminator while the model's loss
    is computed, and `detach` shields the model.
    """

    class Config(smalti.config.Config):
        """Weights and choices; subclasses add `type: Literal[...]`, which tells recipes' objectives apart."""

        def build(self, tokenizer: NeuralTokenizer) -> Objective:
            """The objective for this tokenizer.

            Raises:
                ConfigError: if it does not fit the tokenizer (modality, sample rate, a parameter's name).
            """
            raise NotImplementedError  # every objective's own Config says what it builds

    def trained(self) -> Mapping[str, nn.Module]:
        """Optimizer name -> sub-module that it trains; "model" is taken by the tokenizer."""
        return {}

    @property
    def looks_at_parameters(self) -> bool:
        """Whether losses ask for gradients at single parameters of the tokenizer, which are not there in shards."""
        return False

    @abstractmethod
    def losses(self, model: Model, batch: Mapping[str, Any], step: int) -> dict[str, Losses]:
        """One forward pass and everything that follows from it.

        Args:
            model: called as `model(batch["x"], raw=True, **conditions)`; what else it needs of the tokenizer, an
                objective takes when it is built.
            batch: "x" in the network's range and layout, and the conditions.
            step: optimizer steps of this stage so far.

        Returns:
            "model", and one entry for each name of `trained` that learns in this step.
        """


def reconstruct(model: Model, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Reconstruction]:
    """The batch, its reconstruction of the same extent, and everything that the model returned.

    Raises:
        ConfigError: if the tokenizer has no decoder.
    """
    conditions = {name: value for name, value in batch.items() if name != "x"}
    x = batch["x"]
    result = model(x, raw=True, **conditions)
    if result.x is None:
        raise ConfigError("this tokenizer has no decoder, and the objective compares reconstructions")
    same = tuple(slice(size) for size in x.shape)  # a network may give whole frames where the input ends within one
    return x, result.x[same], result


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Inside, gradients flow through the networks but reach none of their parameters."""
    parameters = [each for network in networks for each in network.parameters() if each.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def parameter_of(tokenizer: nn.Module, name: str) -> nn.Parameter:
    """A parameter by its dotted name.

    Raises:
        ConfigError: naming the ones that exist near it.
    """
    own = dict(tokenizer.named_parameters())
    if name not in own:
        prefix = name.split(".")[0]
        near = [key for key in own if key.startswith(prefix)] or list(own)
        raise ConfigError(f"{type(tokenizer).__name__} has no parameter {name!r}; it has {', '.join(near[-6:])} ...")
    return own[name]


def logged(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached scalars for the log; what has several values (one per slot, or logit) is averaged."""
    return {name: value.detach().float().mean() for name, value in terms.items()}
