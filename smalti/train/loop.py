"""The training loop, on Lightning Fabric: one process or many, the same losses, and every interruption survived.

    for each stage of the recipe:
        for each step:
            set schedules and learning rates of this step
            for each micro-batch:   losses = objective(model, batch);   backpropagate each
            step the optimizers;    update codebooks;    update the average
            now and then: journal, held-out samples, checkpoint
        go on with the averaged weights
    save the tokenizer

Everything random is a function of the recipe's seed and the step (`data`, `schedule`), or is kept in the checkpoint
(torch's generators), so a resumed run makes the same steps as one that was never interrupted.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from smalti.errors import ConfigError, TrainingError
from smalti.folder import fill
from smalti.tokenizer import NeuralTokenizer, Reconstruction
from smalti.train.average import Average
from smalti.train.data import Samples, batches, find_files
from smalti.train.distributed import (
    average_gradients,
    full,
    full_optimizer_state,
    full_state,
    load_full_optimizer_state,
    load_full_state,
    random_state,
    set_random_state,
)
from smalti.train.objective import MODEL, Losses
from smalti.train.recipe import Recipe, Stage
from smalti.train.run import RunFolder
from smalti.train.schedule import apply_schedules, learning_rate_factor
from smalti.train.validation import Validation

Report = Callable[[Mapping[str, float]], None]


def train(
    recipe: Recipe,
    *,
    data: Path,
    out: Path,
    beside: Path = Path(),
    resume: bool = False,
    fabric: Fabric | None = None,
    workers: int = 0,
    report: Report = lambda line: None,
) -> Path:
    """Runs a recipe.

    Args:
        recipe: what to do.
        data: the folder of the files to train on.
        out: the run's folder (`smalti.train.run`).
        beside: where files that the recipe names lie.
        resume: go on with the run in `out`.
        fabric: devices, ranks and precision, launched already; one process on the CPU if None.
        workers: processes that decode files.
        report: gets every line of the journal.

    Returns:
        the folder of the trained tokenizer.

    Raises:
        ConfigError, InputError: before training, if recipe, data or folder do not fit.
        TrainingError: if a loss is no number any more; the last good checkpoint is kept.
    """
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    folder = RunFolder(out, recipe.watch.keep)
    if resume:
        check_same_run(folder.recipe(), recipe)
    torch.manual_seed(recipe.seed)
    tokenizer = recipe.model.build()
    if tokenizer.modality != recipe.data.modality:
        raise ConfigError(
            f"data.type {recipe.data.type} does not fit {tokenizer.name}, which takes {tokenizer.modality}"
        )
    files, watched = find_files(recipe.data, data, beside)
    rate = getattr(tokenizer, "sample_rate", None)
    samples = Samples(recipe.data, files, seed=recipe.seed, rate=rate)
    validation = Validation([recipe.data.whole(path, rate) for path in watched[: recipe.watch.shown]])
    for index in range(len(recipe.stages)):
        check_stage(recipe, index, tokenizer, fabric.world_size)
    if fabric.is_global_zero:
        resolved = recipe.model_dump(mode="json")
        folder.write_recipe(resolved) if resume else folder.begin(resolved)
    fabric.barrier()
    run = Run(recipe, tokenizer.to(fabric.device), samples, validation, folder, fabric, workers, report)
    return run.everything(folder.newest() if resume else None)


def check_same_run(begun: Mapping[str, Any], recipe: Recipe) -> None:
    """Refuses to go on with another model, seed or data: the run would be neither the old nor a new one.

    Raises:
        ConfigError: naming the field. Stages and `watch` may change: to train longer, say.
    """
    wanted = recipe.model_dump(mode="json")
    for name in ("name", "seed", "precision", "model", "data"):
        if begun.get(name) != wanted[name]:
            raise ConfigError(
                f"--resume: {name} was {begun.get(name)!r} and is now {wanted[name]!r}; give another --out"
            )


class Window:
    """Means of terms since the last line of the journal, on the device: reading them there would make steps wait."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, terms: Mapping[str, Tensor | float]) -> None:
        """Adds one value of each; a value per slot counts with its mean."""
        for name, value in terms.items():
            mean = torch.as_tensor(value, dtype=torch.float64).detach().mean()
            self.sums[name] = self.sums[name] + mean if name in self.sums else mean
            self.counts[name] = self.counts.get(name, 0) + 1

    def broken(self) -> list[str]:
        """Terms that are no finite number."""
        return sorted(name for name, total in self.sums.items() if not bool(torch.isfinite(total)))

    def means(self, fabric: Fabric) -> dict[str, float]:
        """The means over all ranks; a new window begins."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        if fabric.world_size > 1:
            everywhere = fabric.all_reduce(torch.stack([each.to(fabric.device) for each in means.values()]))
            means = dict(zip(means, torch.as_tensor(everywhere), strict=True))
        self.sums, self.counts = {}, {}
        return {name: float(value) for name, value in means.items()}

    def state(self) -> dict[str, Any]:
        return {"sums": {name: total.cpu() for name, total in self.sums.items()}, "counts": dict(self.counts)}

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device) -> Window:
        window = cls()
        window.sums = {name: total.to(device) for name, total in state["sums"].items()}
        window.counts = dict(state["counts"])
        return window


class Clock:
    """How fast steps go, pauses left out."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.restart()

    def restart(self) -> None:
        """What came since the last call was no training."""
        self.since, self.steps = time.monotonic(), self.work.step

    def speed(self) -> dict[str, float]:
        """Samples a second since the last call."""
        steps, seconds = self.work.step - self.steps, time.monotonic() - self.since
        self.restart()
        return {"samples_per_second": steps * self.work.stage.batch / max(seconds, 1e-9)}


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


def check_stage(recipe: Recipe, index: int, tokenizer: NeuralTokenizer, ranks: int) -> None:
    """Refuses a stage that does not fit, before the first one has begun.

    Raises:
        ConfigError: naming the field.
    """
    stage = recipe.stages[index]
    if stage.batch % (stage.accumulate * ranks):
        raise ConfigError(
            f"stages.{index}.batch: {stage.batch} does not divide into {stage.accumulate} micro-batches "
            f"on {ranks} ranks"
        )
    objective = stage.objective.build(tokenizer)
    names = sorted({MODEL, *objective.trained()})
    if names != sorted(stage.optimizers):
        raise ConfigError(f"stages.{index}.optimizers: this objective takes {names}, got {sorted(stage.optimizers)}")
    frozen_modules(tokenizer, stage)
    apply_schedules(stage.schedules, {"model": tokenizer, "objective": objective}, 0)


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
            raise ConfigError(
                f"freeze: {tokenizer.name} has no part {pattern!r}; its parts are {top} and what is in them"
            )
        found += matching
    return found


class Run:
    """One run of a recipe.

    Args:
        recipe, tokenizer, samples, validation: what is trained on what.
        folder: where it is kept.
        fabric: devices and ranks.
        workers: processes that decode.
        report: gets every line of the journal.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: NeuralTokenizer,
        samples: Samples,
        validation: Validation,
        folder: RunFolder,
        fabric: Fabric,
        workers: int = 0,
        report: Report = lambda line: None,
    ) -> None:
        self.recipe, self.tokenizer, self.samples, self.validation = recipe, tokenizer, samples, validation
        self.folder, self.fabric, self.workers, self.report = folder, fabric, workers, report
        self.window = Window()
        self.interrupted = False

    def everything(self, checkpoint: Mapping[str, Any] | None = None) -> Path:
        """All stages, or what a checkpoint leaves of them; then the tokenizer is saved."""
        begun = 0 if checkpoint is None else int(checkpoint["stage"])
        with self._stopped_by_signals():
            for index in range(begun, len(self.recipe.stages)):
                self._stage(index, checkpoint if index == begun else None)
        return self._finish()

    # --- a stage -----------------------------------------------------------------------------------------------------

    def _stage(self, index: int, checkpoint: Mapping[str, Any] | None) -> None:
        work = Work(self.recipe, index, self.tokenizer, self.fabric)
        codes_hash = self._whole().codes_hash if work.stage.keep_codes else None
        if checkpoint is not None:
            work.load(checkpoint)
            self.window = Window.of(checkpoint["window"], self.fabric.device)
        if self.fabric.is_global_zero:
            self.folder.rewind(work.done)
        before = sum(stage.steps * stage.batch for stage in self.recipe.stages[:index])
        micro = work.stage.batch // work.stage.accumulate
        source = batches(
            self.samples, batch=micro, first=before + work.step * work.stage.batch,
            count=(work.stage.steps - work.step) * work.stage.accumulate,
            rank=self.fabric.global_rank, ranks=self.fabric.world_size, workers=self.workers,
        )  # fmt: skip
        clock = Clock(work)
        while work.step < work.stage.steps:
            self._step(work, source)
            self._look_after(work, clock)
        work.finish()
        self.tokenizer = self._whole()
        if codes_hash is not None and self.tokenizer.codes_hash != codes_hash:
            raise TrainingError("codes changed although the stage has keep_codes: this is a defect of Smalti")

    def _step(self, work: Work, source: Iterator[Tensor]) -> None:
        """One optimizer step of every network."""
        rates = work.set_rates()
        for micro in range(work.stage.accumulate):
            batch = self._inputs(next(source))
            last = micro == work.stage.accumulate - 1
            with self.fabric.no_backward_sync(work.wrapped, enabled=not last):
                losses = work.objective.losses(work.model, batch, work.step)
                for each in losses.values():
                    self.fabric.backward(each.loss / work.stage.accumulate)
            self._note(losses)
        self.window.add({**rates, **work.step_optimizers(losses.keys())})
        self.tokenizer.quantizer.update()
        work.step += 1
        if work.average is not None:
            work.average.update(work.step)

    def _inputs(self, x: Tensor) -> dict[str, Tensor]:
        prepared, _ = self.tokenizer.prepare(x)  # before it is moved: looking at values would make a GPU wait
        return {"x": self.fabric.to_device(prepared)}

    def _note(self, losses: Mapping[str, Losses]) -> None:
        for name, each in losses.items():
            own = "" if name == MODEL else f"{name}_"
            self.window.add({f"{own}loss": each.loss, **{f"{own}{key}": value for key, value in each.terms.items()}})

    # --- now and then ------------------------------------------------------------------------------------------------

    def _look_after(self, work: Work, clock: Clock) -> None:
        watch, last = self.recipe.watch, work.step == work.stage.steps
        if work.step % watch.log == 0 or last:
            self._log(work, clock)
        if work.step % watch.samples == 0 or last:
            self._show(work)
            clock.restart()
        if work.step % watch.checkpoint == 0 or last or self.interrupted:
            self._checkpoint(work)
            clock.restart()
        if self.interrupted:
            raise TrainingError(f"stopped after step {work.done}; --resume goes on from there")

    def _log(self, work: Work, clock: Clock) -> None:
        means = self.window.means(self.fabric)
        broken = sorted(name for name, value in means.items() if not math.isfinite(value))
        if broken:
            raise TrainingError(self._diagnosis(work, broken))
        line = {"step": work.done, "stage": work.index, **means, **clock.speed()}
        if self.fabric.is_global_zero:
            self.folder.log(line)
            self.report(line)

    def _diagnosis(self, work: Work, broken: Sequence[str]) -> str:
        found = self.folder.checkpoints()
        kept = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint had been written yet"
        return (
            f"{', '.join(broken)} became infinite or no number at step {work.done} or up to {self.recipe.watch.log} "
            f"steps before; {kept}. A lower optimizers.model.rate, a longer warmup or a clip are what usually helps"
        )

    def _show(self, work: Work) -> None:
        """Measures and shows held-out samples with the weights that would be saved."""
        with work.averaged():
            values, rebuilt = self.validation.measure(self._whole())
            if values and self.fabric.is_global_zero:
                self.validation.show(self.folder, work.done, rebuilt, self.samples.rate)
                line = {"step": work.done, "stage": work.index, **values}
                self.folder.log(line)
                self.report(line)
            self._keep_best(next(iter(values.values()), None))
        if self.fabric.is_global_zero:
            self.folder.draw_page()

    def _keep_best(self, value: float | None) -> None:
        if not self.recipe.watch.best or value is None:
            return
        best = self.folder.best()
        if best is None or value > best["value"]:
            state = full_state(self.tokenizer)
            if self.fabric.is_global_zero:
                self.folder.save_best(state, value)
        self.fabric.barrier()

    def _checkpoint(self, work: Work) -> None:
        if broken := self.window.broken():
            raise TrainingError(self._diagnosis(work, broken))
        state = {**work.state(), "window": self.window.state()}
        if self.fabric.is_global_zero:
            self.folder.save(work.done, state)
        self.fabric.barrier()

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the step, write a checkpoint and stop. Ranks are ended by their launcher instead."""
        if self.fabric.world_size > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: object) -> None:
            self.interrupted = True

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _whole(self) -> NeuralTokenizer:
        """The tokenizer itself; where its weights are shards, a copy with all of them (all ranks must ask for it)."""
        if not any(isinstance(each, DTensor) for each in self.tokenizer.parameters()):
            return self.tokenizer
        whole = type(self.tokenizer)(self.tokenizer.config).to(self.fabric.device)
        fill(whole, full_state(self.tokenizer), "what was trained")
        return whole

    def _finish(self) -> Path:
        best = self.folder.best() if self.recipe.watch.best else None
        if best is not None:
            load_full_state(self.tokenizer, best["weights"])
        if self.fabric.is_global_zero:
            self.tokenizer.save(
                self.folder.tokenizer, licence=self.recipe.licence, dtype=getattr(torch, self.recipe.weights)
            )
            self.folder.draw_page()
            self.folder.close()
        self.fabric.barrier()
        return self.folder.tokenizer


class Work:
    """A stage under way: the networks, their optimizers, and how far it has come.

    Args:
        recipe, index: which stage.
        tokenizer: with the weights that it begins with.
        fabric: devices and ranks.
    """

    def __init__(self, recipe: Recipe, index: int, tokenizer: NeuralTokenizer, fabric: Fabric) -> None:
        self.index, self.stage, self.tokenizer, self.device = index, recipe.stages[index], tokenizer, fabric.device
        self.before = sum(stage.steps for stage in recipe.stages[:index])
        self.step = 0
        self.frozen: list[nn.Parameter] = []
        torch.manual_seed(recipe.seed + index)  # the same discriminators, whatever was drawn before
        self.objective = self.stage.objective.build(tokenizer).to(fabric.device)
        self.networks: dict[str, nn.Module] = {MODEL: tokenizer, **self.objective.trained()}
        self._freeze()
        self.wrapped = fabric.setup_module(Boxed(tokenizer))
        self.optimizers = {name: self.stage.optimizers[name].build(net) for name, net in self.networks.items()}
        self.average = None if self.stage.average is None else Average(tokenizer, self.stage.average)

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
            factor = learning_rate_factor(self.step, self.stage.steps, plan.warmup, plan.decay, plan.final)
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
            norm = full(nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip))
            norms["gradient" if name == MODEL else f"{name}_gradient"] = norm
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
        for parameter in self.frozen:  # those that never learn by gradient (EMA codebooks) stay that way
            parameter.requires_grad_(True)

    def state(self) -> dict[str, Any]:
        """Everything that going on takes, as whole tensors on the CPU; all ranks must ask for it."""
        return {
            "stage": self.index,
            "step": self.step,
            "model": full_state(self.tokenizer),
            "objective": full_state(self.objective),
            "average": None if self.average is None else {key: full(each) for key, each in self.average.shadow.items()},
            "optimizers": {name: full_optimizer_state(each) for name, each in self.optimizers.items()},
            "random": random_state(self.device),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint of this stage."""
        self.step = int(state["step"])
        load_full_state(self.tokenizer, state["model"])
        load_full_state(self.objective, state["objective"])
        if self.average is not None:
            self.average.load(state["average"])
        for name, optimizer in self.optimizers.items():
            load_full_optimizer_state(optimizer, state["optimizers"][name])
        set_random_state(state["random"], self.device)
