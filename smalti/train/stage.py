"""A stage under way: the tokenizer spread over devices, its objective, their optimizers, and how far they have come."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn

from smalti.config import FieldError, named
from smalti.errors import ConfigError, InputError
from smalti.quantize import Table
from smalti.tokenizer import NeuralTokenizer, Reconstruction
from smalti.train.average import Average
from smalti.train.distributed import (
    average_gradients,
    full,
    full_optimizer_state,
    full_state,
    load_full_optimizer_state,
    load_full_state,
    random_state,
    set_random_state,
    whole,
)
from smalti.train.objective import MODEL, Objective
from smalti.train.recipe import Recipe, Stage
from smalti.train.schedule import apply_schedules, check_schedules, learning_rate_factor


class Work:
    """A stage under way: the networks, their optimizers, and how far it has come.

    Args:
        recipe, index: which stage.
        tokenizer: with the weights that it begins with.
        fabric: devices and ranks.
    """

    def __init__(self, recipe: Recipe, index: int, tokenizer: NeuralTokenizer, fabric: Fabric) -> None:
        self.index, self.stage, self.tokenizer, self.device = index, recipe.stages[index], tokenizer, fabric.device
        self.before = recipe.steps_before(index)
        self.step = 0
        self.frozen: list[nn.Parameter] = []
        torch.manual_seed(recipe.seed + index)  # the same discriminators, whatever was drawn before
        for earlier in recipe.stages[:index]:
            leave_schedules(earlier, tokenizer)
        self.objective = self.stage.objective.build(tokenizer).to(fabric.device)
        self.networks: dict[str, nn.Module] = {MODEL: tokenizer, **self.objective.trained()}
        self._freeze()
        self.wrapped = fabric.setup_module(Boxed(tokenizer))
        self.optimizers = {name: self.stage.optimizers[name].build(net) for name, net in self.networks.items()}
        self.average = Average(tokenizer, self.stage.average) if self.stage.average else None

    def _freeze(self) -> None:
        self.tokenizer.train()
        for module in frozen_modules(self.tokenizer, self.stage):
            module.eval()
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
                    self.frozen.append(parameter)

    def model(self, *inputs: Any, **conditions: Any) -> Reconstruction:
        """The tokenizer as the objective calls it."""
        box, _ = self.wrapped(*inputs, **conditions)
        return box.content

    @property
    def done(self) -> int:
        """Steps of the whole run so far."""
        return self.before + self.step

    # --- a step ------------------------------------------------------------------------------------------------------

    def set_rates(self) -> dict[str, float]:
        """Schedules and learning rates of this step, for the log."""
        roots = {"model": self.tokenizer, "objective": self.objective}
        values = apply_schedules(self.stage.schedules, roots, self.step)
        for name, optimizer in self.optimizers.items():
            plan = self.stage.optimizers[name]
            factor = learning_rate_factor(
                self.step, self.stage.steps, plan.warmup, plan.decay, plan.final, start=plan.start, hold=plan.hold
            )
            for group in optimizer.param_groups:
                group["lr"] = plan.rate * factor * group["factor"]
            values["rate" if name == MODEL else f"{name}_rate"] = plan.rate * factor
        return values

    def step_optimizers(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Steps the optimizers of these networks; the norms of their gradients, before clipping."""
        norms = {}
        for name in names:
            optimizer, clip = self.optimizers[name], self.stage.optimizers[name].clip
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            if name != MODEL:  # Fabric's wrapper has averaged the tokenizer's
                average_gradients(parameters)
            norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
            norms["gradient" if name == MODEL else f"{name}_gradient"] = whole(norm)  # it stays on the device
            optimizer.step()
            optimizer.zero_grad()
        return norms

    # --- averaged weights, checkpoints -------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the tokenizer has its averaged weights."""
        if self.average is not None:
            self.average.swap()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap()

    def finish(self) -> None:
        """The tokenizer keeps the averaged weights, and its frozen parts may learn again."""
        if self.average is not None:
            self.average.swap()
            self.average = None
        for module in self.tokenizer.modules():
            if isinstance(module, Table):
                module.adopt_rows()  # or their next update would undo the average
        for parameter in self.frozen:  # those that never learn by gradient (EMA codebooks) stay that way
            parameter.requires_grad_(True)

    def state(self) -> dict[str, Any]:
        """Everything that going on takes, as whole tensors on the CPU; all ranks must ask for it."""
        return {
            "stage": self.index,
            "step": self.step,
            "model": full_state(self.tokenizer),
            "objective": {name: full_state(network) for name, network in self.objective.trained().items()},
            "average": None if self.average is None else {key: full(each) for key, each in self.average.shadow.items()},
            "optimizers": {name: full_optimizer_state(each) for name, each in self.optimizers.items()},
            "random": random_state(self.device),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint of this stage."""
        self.step = int(state["step"])
        load_full_state(self.tokenizer, state["model"])
        for name, network in self.objective.trained().items():
            load_full_state(network, state["objective"][name])
        if self.average is not None:
            self.average.load(state["average"])
        for name, optimizer in self.optimizers.items():
            load_full_optimizer_state(optimizer, state["optimizers"][name])
        set_random_state(state["random"], self.device)


class Boxed(nn.Module):
    """The tokenizer as Fabric wraps it.

    Fabric takes apart every dataclass that it meets, so the result passes in a box; DDP and FSDP must see the tensors
    that gradients come back through, so they lie beside it.
    """

    def __init__(self, tokenizer: NeuralTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, *inputs: Any, **conditions: Any) -> tuple[Box, list[Tensor]]:
        box = Box(self.tokenizer(*inputs, **conditions))
        return box, box.tensors()


class Box:
    def __init__(self, content: Reconstruction) -> None:
        self.content = content

    def tensors(self) -> list[Tensor]:
        result, quantized = self.content, self.content.quantized
        inner = [] if quantized is None else [quantized.z, quantized.loss, *quantized.terms.values()]
        return [each for each in (result.x, result.loss, *result.terms.values(), *inner) if each is not None]


# --- before anything starts -------------------------------------------------------------------------------------------


def check_stage(stage: Stage, tokenizer: NeuralTokenizer, batch: Tensor, fabric: Fabric) -> None:
    """Refuses a stage that does not fit, before the first one has begun: it is built and makes half a step.

    Args:
        stage: of the recipe.
        tokenizer: a copy, because the rehearsal changes its codebooks and what is frozen.
        batch: two samples.
        fabric: devices and ranks.

    Raises:
        ConfigError: naming the stage's field that does not fit.
    """
    ranks = fabric.world_size
    if stage.batch % (stage.accumulate * ranks):
        problem = f"{stage.batch} does not divide into {stage.accumulate} micro-batches on {ranks} ranks"
        raise FieldError("", [("batch", problem)])
    tokenizer.to(fabric.device)  # where ranks can talk to each other: NCCL knows no CPU
    with named("objective"):
        objective = stage.objective.build(tokenizer).to(fabric.device)
        if objective.looks_at_parameters and isinstance(fabric.strategy, ModelParallelStrategy):
            raise ConfigError(
                "the adaptive weight looks at one parameter, which fsdp shards; take strategy ddp, or leave "
                "last_layer out for a fixed weight"
            )
    networks: dict[str, nn.Module] = {MODEL: tokenizer, **objective.trained()}
    for module in frozen_modules(tokenizer, stage):
        module.requires_grad_(False)
    with named("optimizers"):
        if sorted(networks) != sorted(stage.optimizers):
            raise ConfigError(f"this objective takes {sorted(networks)}, got {sorted(stage.optimizers)}")
        for name, network in networks.items():
            with named(name):
                stage.optimizers[name].build(network)
    check_schedules(stage.schedules, {"model": tokenizer, "objective": objective})
    with named("objective"):
        try:
            rehearse(objective, tokenizer, batch, fabric)
        except InputError as error:
            raise ConfigError(f"these samples do not fit: {error}") from None


def rehearse(objective: Objective, tokenizer: NeuralTokenizer, batch: Tensor, fabric: Fabric) -> None:
    """One step's losses, with all that joins later: crops too small for a discriminator show here."""

    def model(*inputs: Any, **conditions: Any) -> Reconstruction:
        with fabric.autocast():
            return tokenizer(*inputs, **conditions)

    tokenizer.train()
    inputs, _ = tokenizer.prepare(batch)
    objective.losses(model, {"x": fabric.to_device(inputs)}, step=sys.maxsize)


def leave_schedules(stage: Stage, tokenizer: NeuralTokenizer) -> None:
    """Sets the tokenizer's numbers as an earlier stage's schedules left them."""
    own = [each for each in stage.schedules if each.target.startswith("model.")]
    apply_schedules(own, {"model": tokenizer}, stage.steps - 1)


def frozen_modules(tokenizer: NeuralTokenizer, stage: Stage) -> list[nn.Module]:
    """The sub-modules that a stage leaves as they are.

    Raises:
        ConfigError: if a pattern matches none.
    """
    modules = {name: module for name, module in tokenizer.named_modules() if name}
    found = []
    for pattern in (*stage.freeze, *(tokenizer.code_parts if stage.keep_codes else ())):
        matching = [module for name, module in modules.items() if fnmatchcase(name, pattern)]
        if not matching:
            top = ", ".join(name for name, _ in tokenizer.named_children())
            problem = f"{tokenizer.name} has no part {pattern!r}; its parts are {top} and what is in them"
            raise FieldError("", [("freeze", problem)])
        found += matching
    return found
