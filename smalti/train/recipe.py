"""Recipe: everything that decides a training run, in one TOML file, checked before anything starts.

    recipe.toml + --set key=value ──► Recipe ──► tokenizer, data, stages (objective, optimizers, schedules)

A recipe names a system and says every number; `--data` and `--out` say where. The resolved recipe is kept in the run's
folder, and with it those that earlier steps were made by, where a resumption changed it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import nn

from smalti import systems
from smalti.config import Config, FieldError, named
from smalti.errors import ConfigError
from smalti.tokenizer import NeuralTokenizer
from smalti.train.audio_objective import AudioObjective
from smalti.train.data import Data
from smalti.train.image_objective import ImageObjective
from smalti.train.muon import Muon
from smalti.train.objective import MODEL
from smalti.train.schedule import Decay, Schedule

ObjectiveConfig = Annotated[ImageObjective.Config | AudioObjective.Config, Field(discriminator="type")]


BelowOne = Annotated[float, Field(ge=0, lt=1)]


class Model(Config):
    """What is trained.

    Args:
        system: a name that `smalti list --kind tokenizer` prints: random weights of its `preset` and `config`.
        preset: one of the system's published configurations; what `smalti.create` takes if None.
        config: fields to change, nested as in the system's Config.
        start: go on from a trained tokenizer instead: a name whose weights ship or are published, or a saved folder.
        checkpoint: with `start`, which published checkpoint, or the path of an official file.
    """

    system: str | None = None
    preset: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    start: str | None = None
    checkpoint: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        if (self.system is None) == (self.start is None):
            raise ValueError("give either system (random weights) or start (go on from trained ones)")
        if self.start is not None and (self.preset or self.config):
            raise ValueError("preset and config belong to system; what start names has its own")
        if self.checkpoint is not None and self.start is None:
            raise ValueError("checkpoint belongs to start")
        return self

    def build(self) -> NeuralTokenizer:
        """The tokenizer, ready to be trained.

        Raises:
            ConfigError: if it is no tokenizer with a network, or a field is wrong.
        """
        if self.start is not None:
            with named("model.start"):
                tokenizer = systems.load(self.start, checkpoint=self.checkpoint)
        else:
            with named("model.system"):
                entry = systems.entry_class(systems.find(self.system or ""))
                if not (isinstance(entry, type) and issubclass(entry, NeuralTokenizer)):
                    raise ConfigError(f"{self.system} is no tokenizer with a network to train")
            with named("model.preset"):
                config = systems.configuration(self.system or "", self.preset)
            with named("model.config"):
                tokenizer = type(config)(**_merged(config.model_dump(), self.config)).build()
        if not isinstance(tokenizer, NeuralTokenizer):
            raise ConfigError(f"model.start: {self.start} is no tokenizer with a network to train")
        return tokenizer


class Matrices(Config):
    """Which parameters take orthogonal steps; see `smalti.train.muon`.

    Meant for hidden layers: not for codebooks, embeddings, or the first and last layer.

    Args:
        parameters: patterns of names; each parameter has two dimensions or more.
        rate: learning rate of them. Warm-up, its decay, the weight decay (per unit of rate), `rates` and `clip` are
            the optimizer's.
        momentum: of their gradients.
    """

    parameters: tuple[str, ...] = Field(min_length=1)
    rate: float = Field(0.01, gt=0)
    momentum: BelowOne = 0.95


class Optimizer(Config):
    """One optimizer: its rule and its rate over the stage.

    Args:
        type: "adam", or "adamw" (decay apart from the gradient).
        rate: learning rate after the warm-up.
        betas, eps, weight_decay: of Adam.
        decay_vectors: decay biases, norms and other tensors of one dimension too, as torch does.
        warmup: steps, from the stage's first on, also where the network joins later.
        start: share of `rate` at the first step of a warm-up; None for 1 / warmup.
        hold: share of the steps behind the warm-up that keep `rate`.
        decay: what follows.
        final: share of `rate` at the end of the stage.
        clip: largest norm of the gradient; None lets it be.
        rates: pattern of parameter names -> factor of the rate; the first that matches counts.
        muon: the parameters that Muon trains, and how; only with type "adamw", which trains the others.
    """

    type: Literal["adam", "adamw"] = "adamw"
    rate: float = Field(1e-4, gt=0)
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    decay_vectors: bool = True
    warmup: int = Field(0, ge=0)
    start: float | None = Field(None, ge=0, le=1)
    hold: BelowOne = 0.0
    decay: Decay = "constant"
    final: float = Field(0.0, ge=0, le=1)
    clip: float | None = Field(None, gt=0)
    rates: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    muon: Matrices | None = None

    @model_validator(mode="after")
    def _muon_beside_adamw(self) -> Optimizer:
        if self.muon is not None and self.type != "adamw":
            raise ValueError(f"muon goes with type 'adamw', got {self.type!r}")
        return self

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a network's parameters; each group keeps its share of the rate in `factor`.

        Raises:
            ConfigError: if a pattern matches no parameter; if Muon is given one that is no matrix, or none that is
                trained; if all are frozen.
        """
        check_patterns("rates", self.rates, network)
        if self.muon is not None:
            check_patterns("muon.parameters", self.muon.parameters, network)
        groups: dict[Group, list[nn.Parameter]] = {}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(self._group(name, parameter), []).append(parameter)
        if not groups:
            raise ConfigError("nothing to train: all parameters are frozen")
        if self.muon is not None and all(group.momentum is None for group in groups):
            problem = f"all that match {', '.join(self.muon.parameters)} are frozen"
            raise FieldError("", [("muon.parameters", problem)])
        described = [
            {"params": parameters, "lr": self.rate * group.factor, **group._asdict()}
            for group, parameters in groups.items()
        ]
        kind = torch.optim.Adam if self.type == "adam" else torch.optim.AdamW if self.muon is None else Muon
        return kind(described, lr=self.rate, betas=self.betas, eps=self.eps)

    def _group(self, name: str, parameter: nn.Parameter) -> Group:
        factor = next((value for pattern, value in self.rates.items() if fnmatchcase(name, pattern)), 1.0)
        weight_decay = self.weight_decay if self.decay_vectors or parameter.ndim > 1 else 0.0
        if self.muon is None or not any(fnmatchcase(name, pattern) for pattern in self.muon.parameters):
            return Group(factor, None, weight_decay)
        if parameter.ndim < 2:
            problem = f"{name} is no matrix, its shape is {tuple(parameter.shape)}"
            raise FieldError("", [("muon.parameters", problem)])
        return Group(factor * self.muon.rate / self.rate, self.muon.momentum, weight_decay)


class Group(NamedTuple):
    """What parameters share in an optimizer: their share of its rate, Muon's momentum (None for Adam's rule), decay."""

    factor: float
    momentum: float | None
    weight_decay: float


def check_patterns(field: str, patterns: Iterable[str], network: nn.Module) -> None:
    """Raises ConfigError if a pattern matches no parameter."""
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            problem = f"no parameter matches {pattern!r}; there are {', '.join(names[:4])} ..."
            raise FieldError("", [(field, problem)])


class Stage(Config):
    """A part of the run with one objective.

    Args:
        steps: optimizer steps.
        batch: samples per step, over all ranks and micro-batches.
        accumulate: micro-batches per step.
        objective: what is minimised; `type` says which.
        optimizers: "model", and one for each network that the objective trains.
        freeze: patterns of the model's sub-modules ("encoder", "decoder.up.*") that stay as they are.
        keep_codes: freeze everything that decides codes; the decoder alone learns.
        average: decay of the moving average of the weights, which is what is saved; 0 for none.
        schedules: numbers of model and objective that move.
    """

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    accumulate: int = Field(1, ge=1)
    objective: ObjectiveConfig
    optimizers: dict[str, Optimizer] = Field(default_factory=lambda: {MODEL: Optimizer()})
    freeze: tuple[str, ...] = ()
    keep_codes: bool = False
    average: float = Field(0.999, ge=0, lt=1)
    schedules: tuple[Schedule, ...] = ()

    @model_validator(mode="after")
    def _whole_batches(self) -> Stage:
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not divide into {self.accumulate} micro-batches")
        return self


class Watch(Config):
    """How a run is watched and kept, in steps.

    Args:
        log: between lines of the journal.
        samples: between grids of held-out samples and their measurement.
        checkpoint: between training checkpoints.
        keep: checkpoints that stay; the newest are kept.
        shown: held-out samples that are shown and measured, spread evenly over all of them.
        best: keep the averaged weights of the last stage that did best on the held-out samples (early stopping), not
            its last ones: by PSNR for images, by STOI for sound.
    """

    log: int = Field(20, ge=1)
    samples: int = Field(500, ge=1)
    checkpoint: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)
    shown: int = Field(8, ge=1)
    best: bool = False


class Recipe(Config):
    """A training run; see the module's docstring.

    Args:
        name: of the run's folder.
        seed: of weights, data order and every random draw.
        precision: "fp32", or "bf16" (the network under autocast; quantizer and losses stay in float32).
        licence: of the weights that come out.
        weights: type that they are stored in.
        stages: one after another on the same weights.
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    seed: int = Field(0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    licence: str | None = None
    weights: Literal["float32", "float16"] = "float32"
    model: Model
    data: Data
    stages: tuple[Stage, ...] = Field(min_length=1)
    watch: Watch = Watch()

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return self.steps_before(len(self.stages))

    def steps_before(self, stage: int) -> int:
        """Optimizer steps of the stages before this one."""
        return sum(each.steps for each in self.stages[:stage])


def read_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: a TOML file.
        settings: "key=value" with a dotted key ("stages.0.steps=100"); values are TOML, or else plain text.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"the recipe {path} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from None
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise ConfigError(f"--set takes key=value, got {setting!r}")
        _place(content, key.strip().split("."), _value(text.strip()), setting)
    return Recipe(**content)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _place(content: Any, path: Sequence[str], value: Any, setting: str) -> None:
    for step, name in enumerate(path):
        last = step == len(path) - 1
        if isinstance(content, list):
            if not name.isdigit() or int(name) >= len(content):
                raise ConfigError(f"--set {setting}: {'.'.join(path[:step])} has entries 0..{len(content) - 1}")
            key: Any = int(name)
        elif isinstance(content, dict):
            key = name
            if not last:
                content.setdefault(key, {})
        else:
            raise ConfigError(f"--set {setting}: {'.'.join(path[:step])} is a value, it has no {name!r}")
        if last:
            content[key] = value
        else:
            content = content[key]


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, nested mappings merged; one that says its `type` replaces the whole mapping."""
    merged = dict(base)
    for name, value in changes.items():
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and "type" not in value:
            merged[name] = _merged(old, value)
        else:
            merged[name] = value
    return merged
