"""The loop: what comes out, what survives interruptions, and what is refused."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import smalti
from smalti.errors import CheckpointError, ConfigError, InputError, TrainingError
from smalti.image.llamagen import LlamaGen
from smalti.systems import create
from smalti.tokenizer import NeuralTokenizer
from smalti.train.distributed import load_full_state
from smalti.train.loop import train
from smalti.train.objective import Losses
from smalti.train.run import RunFolder
from tests.image.test_llamagen import official
from tests.train.runs import GAN, KilledError, journal, killed_at, numbers, pictures, recipe, run, with_gan


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("photos"))


def test_loss_falls_codes_are_used_and_the_folder_encodes(photos: Path, tmp_path: Path) -> None:
    lines = run(recipe(stage={"steps": 120}), photos, tmp_path / "run")
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["utilisation"] > 0.3
    tokenizer = smalti.load(tmp_path / "run" / "tokenizer")
    x = torch.rand(1, 3, 20, 24)
    assert tokenizer.decode(tokenizer.encode(x)).shape == x.shape
    assert (tmp_path / "run" / "samples" / "step-00000120.png").exists()
    assert "<svg" in (tmp_path / "run" / "page.html").read_text()
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    card = (tmp_path / "run" / "tokenizer" / "README.md").read_text()
    assert "10 files" in card
    assert "480 random samples in 120 steps" in card
    assert f"| 120 | {lines[-1]['loss']:.4g} |" in card


def test_resumed_run_makes_the_steps_of_an_uninterrupted_one(photos: Path, tmp_path: Path) -> None:
    plan = with_gan(steps=130, accumulate=2)
    whole = run(plan, photos, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(plan, photos, tmp_path / "killed", report=killed_at(27))
    again = run(plan, photos, tmp_path / "killed", resume=True)
    assert [line["step"] for line in again] == list(range(1, 131))
    assert numbers(again) == numbers(whole)
    one, other = (smalti.load(tmp_path / name / "tokenizer").state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_workers_that_decode_change_nothing(photos: Path, tmp_path: Path) -> None:
    here = run(recipe(stage={"steps": 6}), photos, tmp_path / "here")
    there = run(recipe(stage={"steps": 6}), photos, tmp_path / "there", workers=2)
    assert numbers(here) == numbers(there)


def test_micro_batches_give_the_gradient_of_the_whole_batch(photos: Path, tmp_path: Path) -> None:
    whole = run(recipe(stage={"steps": 5}), photos, tmp_path / "whole")
    parts = run(recipe(stage={"steps": 5, "accumulate": 4}), photos, tmp_path / "parts")
    # k-means starts from the first micro-batch alone, so only what came before the codebook is comparable.
    assert len(parts) == len(whole)
    vq = {"system": "vqgan", "config": create("vqgan").config.tiny().model_dump()}
    same = [
        run(recipe(model=vq, stage={"steps": 3, "batch": 4, "accumulate": micro}), photos, tmp_path / f"vq{micro}")
        for micro in (1, 2)
    ]
    for one, other in zip(*same, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(photos: Path, tmp_path: Path) -> None:
    def interrupt(line: object) -> None:
        if line["step"] == 7:  # type: ignore[index]
            os.kill(os.getpid(), signal.SIGINT)

    plan = recipe(watch={"log": 1, "samples": 100, "checkpoint": 100})
    with pytest.raises(TrainingError, match=r"stopped after step [78]; --resume"):
        train(plan, data=photos, out=tmp_path / "run", report=interrupt)
    whole = run(plan, photos, tmp_path / "whole")
    assert numbers(run(plan, photos, tmp_path / "run", resume=True)) == numbers(whole)


@pytest.mark.parametrize("log", [1, 20])
def test_nan_stops_and_keeps_the_last_good_checkpoint(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: int
) -> None:
    from smalti.train.image_objective import ImageObjective

    honest = ImageObjective.losses

    def poisoned(self: ImageObjective, model: object, batch: object, step: int) -> dict[str, Losses]:
        found = honest(self, model, batch, step)  # type: ignore[arg-type]
        factor = math.nan if step == 14 else 1.0
        return {name: Losses(each.loss * factor, each.terms) for name, each in found.items()}

    monkeypatch.setattr(ImageObjective, "losses", poisoned)
    with pytest.raises(TrainingError, match=r"loss.* became infinite or no number at step 15 .*00000010\.pt"):
        train(recipe(watch={"log": log, "checkpoint": 10}), data=photos, out=tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoints" / "00000010.pt", weights_only=True)
    assert all(bool(torch.isfinite(each).all()) for each in state["model"].values() if each.is_floating_point())
    if log == 1:
        assert journal(tmp_path / "run")[-1]["step"] == 14


def test_a_rate_that_spoils_the_weights_stops_with_the_last_good_checkpoint(photos: Path, tmp_path: Path) -> None:
    plan = recipe(watch={"log": 20, "checkpoint": 10})
    train(plan, data=photos, out=tmp_path / "run")
    wild = {"steps": 60, "optimizers": {"model": {"rate": 1e30}}}
    with pytest.raises(TrainingError, match=r"became infinite or no number at step 3\d .*00000030\.pt"):
        train(recipe(watch=plan.watch, stage=wild), data=photos, out=tmp_path / "run", resume=True)
    # The step that spoils them has good losses itself, and is one that would be saved.
    every = {**plan.watch.model_dump(), "checkpoint": 1}
    with pytest.raises(TrainingError, match=r"a reconstruction became .* at step 31 .*00000030\.pt"):
        train(recipe(watch=every, stage=wild), data=photos, out=tmp_path / "run", resume=True)
    train(recipe(stage={"steps": 31}), data=photos, out=tmp_path / "run", resume=True)


def test_best_weights_of_steps_that_a_resumption_forgets_are_forgotten(photos: Path, tmp_path: Path) -> None:
    plan = recipe(watch={"log": 1, "samples": 6, "checkpoint": 10, "best": True, "shown": 2})
    train(plan, data=photos, out=tmp_path / "run")
    folder = RunFolder(tmp_path / "run", keep=3)
    best = folder.best()
    assert best is not None
    folder.rewind(best["step"])
    assert folder.best() is not None
    folder.rewind(best["step"] - 1)
    assert folder.best() is None


def test_decoder_alone_learns_and_the_codes_stay(photos: Path, tmp_path: Path) -> None:
    run(recipe(), photos, tmp_path / "first")
    start = str(tmp_path / "first" / "tokenizer")
    run(recipe(model={"start": start}, stage={"keep_codes": True}), photos, tmp_path / "second")
    before, after = (smalti.load(tmp_path / name / "tokenizer") for name in ("first", "second"))
    assert before.codes_hash == after.codes_hash
    assert not torch.equal(before.decoder.layers[0].weight, after.decoder.layers[0].weight)


def test_official_checkpoint_is_continued_whole_or_with_its_codes_kept(photos: Path, tmp_path: Path) -> None:
    original = LlamaGen(LlamaGen.Config.tiny())
    save_file(official(original), tmp_path / "vq_ds2.safetensors")
    before = smalti.load("llamagen", checkpoint=tmp_path / "vq_ds2.safetensors")
    for keep in (False, True):
        model = {"start": "llamagen", "checkpoint": str(tmp_path / "vq_ds2.safetensors")}
        plan = recipe(model=model, stage={"steps": 4, "keep_codes": keep, "average": 0.0})
        run(plan, photos, tmp_path / f"run{keep}")
        after = smalti.load(tmp_path / f"run{keep}" / "tokenizer")
        assert (after.codes_hash == before.codes_hash) is keep
        assert not torch.equal(after.decoder.conv_in.weight, before.decoder.conv_in.weight)


def test_stages_follow_one_another_and_resume_in_the_second(photos: Path, tmp_path: Path) -> None:
    first = recipe().stages[0].replace(steps=12)
    second = with_gan(steps=12).stages[0].replace(freeze=("encoder",))
    plan = recipe().replace(stages=(first, second))
    whole = run(plan, photos, tmp_path / "whole")
    assert [line["stage"] for line in whole] == [0] * 12 + [1] * 12
    with pytest.raises(KilledError):
        run(plan, photos, tmp_path / "killed", report=killed_at(23))
    assert numbers(run(plan, photos, tmp_path / "killed", resume=True)) == numbers(whole)


def test_codes_kept_in_a_later_stage_survive_an_interruption(photos: Path, tmp_path: Path) -> None:
    stages = (recipe().stages[0].replace(steps=8), recipe().stages[0].replace(steps=12, keep_codes=True))
    plan = recipe().replace(stages=stages)
    whole = run(plan, photos, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(plan, photos, tmp_path / "killed", report=killed_at(19))
    assert numbers(run(plan, photos, tmp_path / "killed", resume=True)) == numbers(whole)


def test_what_an_earlier_stage_scheduled_stays_and_later_ones_do_not_reach_back(photos: Path, tmp_path: Path) -> None:
    eps = "model.encoder.layers.2.norm.eps"
    first = recipe(stage={"steps": 6, "schedules": [{"target": eps, "points": [(0, 0.1), (5, 0.5)]}]}).stages[0]
    second = recipe(stage={"steps": 12}).stages[0]
    third = recipe(stage={"steps": 2, "schedules": [{"target": eps, "points": [(0, 9.0)]}]}).stages[0]
    plan = recipe().replace(stages=(first, second, third))
    whole = run(plan, photos, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(plan, photos, tmp_path / "killed", report=killed_at(17))
    assert numbers(run(plan, photos, tmp_path / "killed", resume=True)) == numbers(whole)


def test_a_resumed_run_takes_new_rates_but_no_other_networks(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run(recipe(), photos, tmp_path / "run", report=killed_at(12))
    slower = {"model": {"rate": 2e-3, "warmup": 5, "decay": "cosine", "clip": 1.0, "weight_decay": 0.5}}
    changed = run(recipe(stage={"optimizers": slower}), photos, tmp_path / "run", resume=True)
    plain = run(recipe(), photos, tmp_path / "plain")
    assert changed[:10] == plain[:10] or numbers(changed[:10]) == numbers(plain[:10])
    assert numbers(changed)[-1] != numbers(plain)[-1]
    for stage, message in (
        ({"average": 0.0}, "average above 0"),
        ({"batch": 8}, "batch was 4 and is now 8"),
        ({"steps": 20}, "this recipe ends before that"),
        ({"objective": GAN, "optimizers": {"model": {}, "discriminator": {}}}, "optimizers was"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(recipe(stage=stage), data=photos, out=tmp_path / "run", resume=True)
    moved = photos.parent / "moved" / "photos"
    pictures(moved)
    with pytest.raises(InputError, match="not those that the run began with"):
        train(recipe(), data=moved.parent, out=tmp_path / "run", resume=True)
    pictures(photos.parent / "others", count=5)
    with pytest.raises(InputError, match="not those that the run began with"):
        train(recipe(), data=photos.parent / "others", out=tmp_path / "run", resume=True)
    pictures(photos.parent / "namesakes", size=48)
    with pytest.raises(InputError, match="not those that the run began with"):
        train(recipe(), data=photos.parent / "namesakes", out=tmp_path / "run", resume=True)


def test_the_card_and_the_page_say_which_steps_were_made_by_which_recipe(photos: Path, tmp_path: Path) -> None:
    first, longer = recipe(), recipe(stage={"steps": 40})
    with pytest.raises(KilledError):
        run(first, photos, tmp_path / "run", report=killed_at(12), command="smalti train first.toml")
    for plan, stop in ((longer, 25), (first, 28)):
        with pytest.raises(KilledError):
            run(plan, photos, tmp_path / "run", report=killed_at(stop), resume=True)
    run(longer, photos, tmp_path / "run", resume=True, command="smalti train longer.toml")
    spans = RunFolder(tmp_path / "run", keep=3).history()
    # The third recipe was given up before its first checkpoint, so none of its steps is left.
    assert [(each.step, each.recipe["stages"][0]["steps"]) for each in spans] == [(0, 30), (10, 40), (20, 40)]
    card = (tmp_path / "run" / "tokenizer" / "README.md").read_text()
    assert "Made by `smalti train first.toml`, seed 0" in card
    assert "From step 10 on by `smalti.train.loop.train(...)`: stages.0.steps: 30 → 40." in card
    assert "From step 20" not in card  # went on by the same recipe
    assert json.loads((tmp_path / "run" / "tokenizer" / "recipe.json").read_text()) == longer.model_dump(mode="json")
    assert "resumed 2 times" in (tmp_path / "run" / "page.html").read_text()
    run(first, photos, tmp_path / "once")
    assert (tmp_path / "run" / "tokenizer" / "history.json").exists()
    assert "changed on the way" not in (tmp_path / "once" / "tokenizer" / "README.md").read_text()
    assert not (tmp_path / "once" / "tokenizer" / "history.json").exists()


def test_a_refused_resumption_leaves_the_folder_as_it_was(photos: Path, tmp_path: Path) -> None:
    run(recipe(stage={"steps": 10}), photos, tmp_path / "run")
    names = ("recipe.json", "history.json", "journal.jsonl")
    before = [(tmp_path / "run" / name).read_bytes() for name in names]
    grouped = {"steps": 20, "optimizers": {"model": {"rates": {"encoder.*": 0.5}}}}
    with pytest.raises(ConfigError, match="grouped otherwise"):
        train(recipe(stage=grouped), data=photos, out=tmp_path / "run", resume=True)
    assert [(tmp_path / "run" / name).read_bytes() for name in names] == before


def test_what_made_no_step_is_said_so(photos: Path, tmp_path: Path) -> None:
    run(recipe(stage={"steps": 5}), photos, tmp_path / "run")
    (tmp_path / "run" / "history.json").unlink()
    stored = recipe(stage={"steps": 5}, weights="float16")
    train(stored, data=photos, out=tmp_path / "run", resume=True, command="smalti train stored.toml")
    card = (tmp_path / "run" / "tokenizer" / "README.md").read_text()
    assert "Made by `a command that is not known`" in card
    assert '- After the last step by `smalti train stored.toml`: weights: "float32" → "float16".' in card
    (tmp_path / "run" / "history.json").write_text("[{")
    with pytest.raises(CheckpointError, match=r"history\.json can't be read"):
        train(stored, data=photos, out=tmp_path / "run", resume=True)


def test_a_stage_that_a_resumption_adds_is_on_the_card(photos: Path, tmp_path: Path) -> None:
    run(recipe(stage={"steps": 4}), photos, tmp_path / "run")
    more = recipe(stage={"steps": 4}).replace(
        stages=(recipe(stage={"steps": 4}).stages[0], with_gan(steps=4).stages[0])
    )
    run(more, photos, tmp_path / "run", resume=True)
    assert "stages.1 added" in (tmp_path / "run" / "tokenizer" / "README.md").read_text()


def test_samples_of_steps_that_a_resumption_forgets_are_forgotten(photos: Path, tmp_path: Path) -> None:
    watch = {"log": 1, "samples": 2, "checkpoint": 4, "shown": 2}
    with pytest.raises(KilledError):
        run(recipe(watch=watch), photos, tmp_path / "run", report=killed_at(7))
    run(recipe(watch=watch, stage={"steps": 5}), photos, tmp_path / "run", resume=True)
    assert sorted(each.name for each in (tmp_path / "run" / "samples").iterdir()) == [
        f"step-{step:08d}.png" for step in (2, 4, 5)
    ]


def test_held_out_files_that_can_not_be_judged_are_left_out(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = pictures(tmp_path / "photos")
    (folder / "10.png").write_bytes(b"no picture")
    run(recipe(stage={"steps": 2}), folder, tmp_path / "run")
    assert "10.png is left out of what is watched" in caplog.text
    assert (tmp_path / "run" / "samples" / "step-00000002.png").exists()
    (folder / "11.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="none of 2 held-out files can be measured"):
        train(recipe(stage={"steps": 2}), data=folder, out=tmp_path / "none")


def test_a_checkpoint_of_another_network_is_refused() -> None:
    network = nn.Linear(2, 3)
    for other in (nn.Linear(2, 1), nn.Linear(2, 3, bias=False)):
        with pytest.raises(ConfigError, match=r"another Linear: .*(bias|weight).* differ in name or shape"):
            load_full_state(network, other.state_dict())


def test_bf16_trains_in_float32_weights(photos: Path, tmp_path: Path) -> None:
    lines = run(recipe(precision="bf16"), photos, tmp_path / "run")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert smalti.load(tmp_path / "run" / "tokenizer").dtype == torch.float32


def test_best_weights_are_kept_where_the_recipe_asks(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = {"log": 1, "samples": 5, "checkpoint": 5, "shown": 2, "best": True}
    # A rate that ruins the network after the warm-up, so that the last weights are not the best.
    ruin = {"steps": 20, "average": 0.0, "schedules": [], "optimizers": {"model": {"rate": 3.0, "warmup": 20}}}
    run(recipe(watch=watch, stage=ruin), photos, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    measured = [line["validation_psnr"] for line in lines if "validation_psnr" in line]
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert best["value"] == max(measured) > measured[-1]
    saved = smalti.load(tmp_path / "run" / "tokenizer").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in best["weights"].items())


def test_schedules_move_what_they_name(photos: Path, tmp_path: Path) -> None:
    points = [(0, 1.0), (10, 3.0)]
    plan = recipe(stage={"schedules": [{"target": "objective.l1_weight", "points": points}]})
    lines = run(plan, photos, tmp_path / "run")
    assert [line["objective.l1_weight"] for line in lines[:12:5]] == pytest.approx([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"batch": 5, "accumulate": 2}, "batch 5 does not divide"),
        (
            {"freeze": ["encodr"]},
            r"^stages\.0\.freeze: smalti-photo has no part 'encodr'; its parts are encoder, quantizer, decoder",
        ),
        (
            {"optimizers": {"model": {}, "discriminator": {}}},
            r"^stages\.0\.optimizers: this objective takes \['model'\], got \['discriminator', 'model'\]",
        ),
        (
            {"schedules": [{"target": "model.nothing", "points": [(0, 1)]}]},
            r"^stages\.0\.schedules\.0\.target: .*'model\.nothing'",
        ),
        ({"objective": {"type": "audio"}}, r"^stages\.0\.objective: .*not PhotoTokenizer"),
        (
            {
                "objective": {"type": "image", "adversary": {"network": {"layers": 5}}},
                "optimizers": {"model": {}, "discriminator": {}},
            },
            "^stages\\.0\\.objective: these samples do not fit: a PatchGAN of 5 layers needs",
        ),
        (
            {
                "objective": {
                    "type": "image",
                    "adversary": {"network": {"layers": 1}, "last_layer": "decoder.layers.0.weight"},
                },
                "freeze": ["decoder"],
                "optimizers": {"model": {}, "discriminator": {}},
            },
            r"^stages\.0\.objective\.adversary\.last_layer: 'decoder.* is frozen in this stage",
        ),
        ({"freeze": ["encoder", "quantizer", "decoder"]}, r"^stages\.0\.optimizers\.model: nothing to train"),
        (
            {"optimizers": {"model": {"rates": {"encodr.*": 0.1}}}},
            r"^stages\.0\.optimizers\.model\.rates: no parameter matches",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, stage: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(recipe(stage=stage), data=photos, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_best_needs_what_it_is_judged_by(photos: Path, tmp_path: Path) -> None:
    data = {"type": "images", "rules": [{"type": "random-crop", "size": 16}]}
    with pytest.raises(ConfigError, match="needs files that are held out"):
        train(recipe(data=data, watch={"best": True}), data=photos, out=tmp_path / "run")


def test_a_run_is_neither_overwritten_nor_continued_as_another(photos: Path, tmp_path: Path) -> None:
    run(recipe(stage={"steps": 2}), photos, tmp_path / "run")
    with pytest.raises(InputError, match="--resume"):
        train(recipe(), data=photos, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="seed was 0 and is now 1"):
        train(recipe(seed=1), data=photos, out=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="no run to go on with"):
        train(recipe(), data=photos, out=tmp_path / "nothing", resume=True)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_make_the_steps_of_one_process(photos: Path, tmp_path: Path, strategy: str) -> None:
    plan = with_gan(steps=20)
    alone = run(plan, photos, tmp_path / "alone")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    root, given = Path(__file__).parents[2], [str(photos), str(tmp_path / "two"), strategy]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "tests.train.rank", *given],
        capture_output=True, text=True, cwd=root, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for one, two in zip(alone, journal(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert two.get("discriminator_loss") == pytest.approx(one.get("discriminator_loss"), abs=1e-5)
    one, two = (smalti.load(tmp_path / name / "tokenizer") for name in ("alone", "two"))
    assert isinstance(one, NeuralTokenizer)
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)
    # Codebooks and all other weights, to the last bit.
    assert (tmp_path / "two" / "rank-0").read_text() == (tmp_path / "two" / "rank-1").read_text()
