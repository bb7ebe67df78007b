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

import copy
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.distributed.tensor import DTensor

from smalti.config import named
from smalti.errors import ConfigError, InputError, NotFiniteError, TrainingError
from smalti.folder import fill
from smalti.quantize.distributed import sum_over_ranks
from smalti.tokenizer import NeuralTokenizer
from smalti.train.card import model_card
from smalti.train.data import Samples, batches, find_files
from smalti.train.distributed import full_state, load_full_state
from smalti.train.fabric import make_fabric
from smalti.train.objective import MODEL, Losses
from smalti.train.progress import Clock, Window
from smalti.train.recipe import Recipe
from smalti.train.run import RunFolder, Span
from smalti.train.stage import Work, check_stage
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
    command: str = "smalti.train.loop.train(...)",
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
        command: what the user gave, for the card.

    Returns:
        the folder of the trained tokenizer.

    Raises:
        ConfigError, InputError: before training, if recipe, data or folder do not fit.
        TrainingError: if a loss is no number any more; the last good checkpoint is kept.
    """
    fabric = fabric or make_fabric("cpu", precision=recipe.precision)
    folder = RunFolder(out, recipe.watch.keep)
    checkpoint = folder.newest() if resume else None
    if resume:
        check_same_run(folder.recipe(), recipe, 0 if checkpoint is None else int(checkpoint["stage"]))
    torch.manual_seed(recipe.seed)
    tokenizer = recipe.model.build()
    if tokenizer.modality != recipe.data.modality:
        raise ConfigError(
            f"data.type {recipe.data.type} does not fit {tokenizer.name}, which takes {tokenizer.modality}"
        )
    files, watched = find_files(recipe.data, data, beside)
    rate = getattr(tokenizer, "sample_rate", None)
    samples = Samples(recipe.data, files, folder=data, seed=recipe.seed, rate=rate)
    if checkpoint is not None:
        check_progress(checkpoint, recipe, samples)
    validation = Validation.of(recipe.data, spread(watched, recipe.watch.shown), tokenizer)
    if recipe.watch.best and not watched:
        raise ConfigError("watch.best needs files that are held out: data.held_out or data.held_out_list names them")
    with torch.random.fork_rng(devices=[]):
        pair = torch.stack([samples[0], samples[1]])
        for index in range(len(recipe.stages)):
            with named(f"stages.{index}"):
                check_stage(recipe.stages[index], copy.deepcopy(tokenizer), pair, fabric)
    run = Run(recipe, tokenizer.to(fabric.device), samples, validation, folder, fabric, workers, report)
    first = run.first_stage(checkpoint)  # a checkpoint that does not fit is refused before the folder says otherwise
    if fabric.is_global_zero:
        span = Span(first.done, command, recipe.model_dump(mode="json"))
        folder.go_on(span) if resume else folder.begin(span)
    fabric.barrier()
    return run.everything(first)


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """So many of them, evenly spread."""
    if len(paths) <= count:
        return list(paths)
    return [paths[index * len(paths) // count] for index in range(count)]


def check_same_run(begun: Mapping[str, Any], recipe: Recipe, stage: int) -> None:
    """Refuses to go on with what would be neither the old run nor a new one.

    What may change: `watch`, which held-out files are watched, later stages, and of the present stage its steps,
    schedules, rates and weights.

    Args:
        begun: the recipe so far.
        recipe: to go on with.
        stage: the one under way.

    Raises:
        ConfigError: naming the field.
    """
    wanted = recipe.model_dump(mode="json")
    pairs = [(name, begun.get(name), wanted[name]) for name in ("name", "seed", "precision", "model")]
    names = {*begun["data"], *wanted["data"]} - {"cache", "validation"}  # which move no sample
    pairs += [(f"data.{name}", begun["data"].get(name), wanted["data"].get(name)) for name in sorted(names)]
    for index in range(min(stage + 1, len(begun["stages"]), len(wanted["stages"]))):
        old, new = begun["stages"][index], wanted["stages"][index]
        if index < stage:
            pairs.append((f"stages.{index}, which is done,", old, new))
            continue
        pairs += [(f"stages.{index}.{name}", old[name], new[name]) for name in ("batch", "freeze", "keep_codes")]
        pairs.append((f"stages.{index}.optimizers", sorted(old["optimizers"]), sorted(new["optimizers"])))
        pairs.append((f"stages.{index}.average above 0", old["average"] > 0, new["average"] > 0))
    for name, old, new in pairs:
        if old != new:
            raise ConfigError(f"--resume: {name} was {old!r} and is now {new!r}; give another --out to begin anew")


def check_progress(checkpoint: Mapping[str, Any], recipe: Recipe, samples: Samples) -> None:
    """Refuses a recipe that ends before the checkpoint, and other files than the run began with.

    Raises:
        ConfigError, InputError: saying which.
    """
    stage, step = int(checkpoint["stage"]), int(checkpoint["step"])
    if stage >= len(recipe.stages) or step > recipe.stages[stage].steps:
        raise ConfigError(f"--resume: the run is at step {step} of stage {stage}, and this recipe ends before that")
    if checkpoint["files"] != samples.fingerprint:
        raise InputError("--resume: the files to train on are not those that the run began with")


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
        self.window, self.clock = Window(), Clock()
        self.interrupted = False

    def first_stage(self, checkpoint: Mapping[str, Any] | None) -> Work:
        """The stage to begin with, or to go on with from a checkpoint.

        Raises:
            ConfigError: if the checkpoint is of other networks or optimizers.
        """
        if checkpoint is None:
            return Work(self.recipe, 0, self.tokenizer, self.fabric)
        work = Work(self.recipe, int(checkpoint["stage"]), self.tokenizer, self.fabric)
        work.load(checkpoint)
        self.window = Window.of(checkpoint["window"], self.fabric.device)
        return work

    def everything(self, first: Work) -> Path:
        """This stage and those after it; then the tokenizer is saved."""
        with self._stopped_by_signals():
            self._stage(first)
            for index in range(first.index + 1, len(self.recipe.stages)):
                self._stage(Work(self.recipe, index, self.tokenizer, self.fabric))
        return self._finish()

    # --- a stage -----------------------------------------------------------------------------------------------------

    def _stage(self, work: Work) -> None:
        codes_hash = self._whole().codes_hash if work.stage.keep_codes else None
        if self.fabric.is_global_zero:
            self.folder.rewind(work.done)
        before = sum(stage.steps * stage.batch for stage in self.recipe.stages[: work.index])
        micro = work.stage.batch // work.stage.accumulate
        source = batches(
            self.samples, batch=micro, first=before + work.step * work.stage.batch,
            count=(work.stage.steps - work.step) * work.stage.accumulate,
            rank=self.fabric.global_rank, ranks=self.fabric.world_size, workers=self.workers,
        )  # fmt: skip
        self.clock.restart()
        while work.step < work.stage.steps:
            self._step(work, source)
            self._look_after(work)
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
                losses = self._losses(work, batch)
                for each in losses.values():
                    self.fabric.backward(each.loss / work.stage.accumulate)
            self._note(losses)
        self.window.add({**rates, **work.step_optimizers(losses.keys())})
        self.tokenizer.quantizer.update()
        work.step += 1
        self.clock.samples += work.stage.batch
        if work.average is not None:
            work.average.update(work.step)

    def _losses(self, work: Work, batch: Mapping[str, Tensor]) -> Mapping[str, Losses]:
        try:
            return work.objective.losses(work.model, batch, work.step)
        except NotFiniteError as error:  # weights that a step has spoilt show in the next one's latents
            raise TrainingError(self._diagnosis(work, self.window.broken() or ["latents"])) from error

    def _inputs(self, x: Tensor) -> dict[str, Tensor]:
        prepared, _ = self.tokenizer.prepare(x)  # before it is moved: looking at values would make a GPU wait
        return {"x": self.fabric.to_device(prepared)}

    def _note(self, losses: Mapping[str, Losses]) -> None:
        for name, each in losses.items():
            own = "" if name == MODEL else f"{name}_"
            self.window.add({f"{own}loss": each.loss, **{f"{own}{key}": value for key, value in each.terms.items()}})

    # --- now and then ------------------------------------------------------------------------------------------------

    def _look_after(self, work: Work) -> None:
        watch, last = self.recipe.watch, work.step == work.stage.steps
        if work.step % watch.log == 0 or last:
            self._log(work)
        if work.step % watch.samples == 0 or last:
            self._show(work)
            self.clock.restart()
        if work.step % watch.checkpoint == 0 or last or self.interrupted:
            self._checkpoint(work)
            self.clock.restart()
        if self.interrupted:
            raise TrainingError(f"stopped after step {work.done}; --resume goes on from there")

    def _log(self, work: Work) -> None:
        means = self.window.means(self.fabric)
        broken = sorted(name for name, value in means.items() if not math.isfinite(value))
        if broken:
            raise TrainingError(self._diagnosis(work, broken))
        line = {"step": work.done, "stage": work.index, **means, **self.clock.speed()}
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
            self._keep_best(work, next(iter(values.values()), math.nan))
        if self.fabric.is_global_zero:
            self.folder.draw_page()

    def _keep_best(self, work: Work, value: float) -> None:
        """Keeps these weights if they are the best of the stage; the first rank decides for all."""
        if not self.recipe.watch.best or not math.isfinite(value):
            return
        best = self.folder.best() if self.fabric.is_global_zero else None
        better = best is None or best["stage"] != work.index or value > best["value"]
        if self.fabric.broadcast(better):
            state = full_state(self.tokenizer)
            if self.fabric.is_global_zero:
                self.folder.save_best({"weights": state, "value": value, "stage": work.index, "step": work.done})

    def _checkpoint(self, work: Work) -> None:
        broken = self.window.broken()
        if float(sum_over_ranks(torch.tensor(float(len(broken)), device=self.fabric.device))):
            raise TrainingError(self._diagnosis(work, broken or ["a term of another rank"]))
        if not self._rebuilds():
            raise TrainingError(self._diagnosis(work, ["a reconstruction"]))
        state = {**work.state(), "window": self.window.state(), "files": self.samples.fingerprint}
        if self.fabric.is_global_zero:
            self.folder.save(work.done, state)
        self.fabric.barrier()

    def _rebuilds(self) -> bool:
        """Whether the weights still give numbers: a step whose losses were good may have spoilt them."""
        whole = self._whole()
        try:
            rebuilt = whole.decode(whole.encode(self.samples[0][None]))
        except NotFiniteError:
            return False
        return bool(rebuilt.isfinite().all())

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the step, write a checkpoint and stop. Ranks are ended by their launcher instead."""
        if self.fabric.world_size > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: object) -> None:
            self.interrupted = True
            signal.signal(number, previous[signal.Signals(number)])  # a second one does not wait for the step

        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in previous:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _whole(self) -> NeuralTokenizer:
        """The tokenizer itself; where its weights are shards, a copy with all of them (all ranks must ask for it)."""
        if not any(isinstance(each, DTensor) for each in self.tokenizer.parameters()):
            return self.tokenizer
        with torch.random.fork_rng():  # random weights that are overwritten must not move what training draws
            whole = type(self.tokenizer)(self.tokenizer.config).to(self.fabric.device)
        fill(whole, full_state(self.tokenizer), "what was trained")
        return whole

    def _finish(self) -> Path:
        best = self.folder.best() if self.recipe.watch.best else None
        if best is not None and best["stage"] < len(self.recipe.stages) - 1:
            best = None
        if best is not None:
            load_full_state(self.tokenizer, best["weights"])
        if self.fabric.is_global_zero:
            self.tokenizer.save(
                self.folder.tokenizer, licence=self.recipe.licence, dtype=getattr(torch, self.recipe.weights)
            )
            self.folder.write_card(
                model_card(
                    self.recipe, self.tokenizer, len(set(self.samples.entries)), self.folder.history(),
                    self.folder.journal(), best,
                )
            )  # fmt: skip
            self.folder.draw_page()
            self.folder.close()
        self.fabric.barrier()
        return self.folder.tokenizer
