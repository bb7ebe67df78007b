"""The page of a run: the journal's values, resumed runs without their abandoned steps, the latest samples."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from smalti.audio.io import write_audio
from smalti.bench.training_page import History, _smooth, read_journal, training_page, training_page_of
from smalti.errors import InputError
from tests.bench.test_report import EVIL, Outline
from tests.image.files import noise


def entry(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "stage": 0, "loss": 10.0 / (1 + step), **values}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    (folder / "samples").mkdir(parents=True)
    lines = [json.dumps(entry(step, psnr=20 + step / 10)) for step in range(100)]
    (folder / "journal.jsonl").write_text("\n".join(lines) + "\n")
    for step in range(10, 100, 10):
        Image.fromarray(noise(16, 16, seed=step)).save(folder / "samples" / f"step-{step:06d}.png")
    write_audio(folder / "samples" / "step-000090.wav", torch.zeros(1, 800), 8_000)
    (folder / "samples" / "notes.txt").write_text("no sample")
    (folder / "recipe.toml").write_text("[model]\nfactor = 8\n")
    return folder


def test_a_page_of_a_run_has_its_curves_samples_and_recipe(run: Path) -> None:
    html = training_page_of(run)
    outline = Outline()
    outline.feed(html)
    assert not outline.open and all(reference.startswith("data:") for reference in outline.references)
    assert html.count("<svg") == 2 and "my-run" in html and "factor = 8" in html and "step 99" in html
    assert html.count("data:image/png") == 5 and html.count("data:audio/wav") == 1
    assert re.search(r"Step 90.*Step 80", html, re.DOTALL) and "Step 30" not in html


def test_a_run_that_goes_on_is_a_page_too(run: Path) -> None:
    journal = run / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"step": 100, "lo')  # being written
    assert [each["step"] for each in read_journal(run)] == list(range(100))
    journal.write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(InputError, match="line 2"):
        read_journal(run)
    journal.unlink()
    with pytest.raises(InputError, match="folder of a run"):
        training_page_of(run)


def test_steps_of_an_abandoned_attempt_do_not_count() -> None:
    history = History.of([entry(step) for step in (0, 10, 20, 30, 15, 25)])
    assert [each["step"] for each in history.entries] == [0, 10, 15, 25] and history.resumed == [15]
    validated = History.of([entry(10), {"step": 10, "validation": 1.0}, entry(20)])  # no resumption
    assert validated.resumed == [] and [len(each) for each in validated.entries] == [4, 3]
    with pytest.raises(InputError, match="no step"):
        History.of([{"loss": 1.0}])


def test_resumptions_of_the_history_are_marked(run: Path) -> None:
    assert "resumed" not in training_page_of(run)
    (run / "history.json").write_text('[{"step": 0}, {"step": 40}, {"step": 70}]')
    html = training_page_of(run)
    assert "resumed 2 times" in html and "40, 70" in html
    for damaged in ("[{}, {}]", "{", "[1, 2]"):
        (run / "history.json").write_text(damaged)
        with pytest.raises(InputError, match=r"history\.json is no list"):
            training_page_of(run)


def test_stages_are_marked() -> None:
    journal = [entry(step) | {"stage": step // 10} for step in range(30)]
    assert History.of(journal).stages == [(0, 0), (10, 1), (20, 2)]
    assert "stage 2" in training_page(journal, [], {})


def test_losses_over_decades_are_logarithmic_and_others_are_not() -> None:
    html = training_page([entry(step, psnr=1.0 + step) for step in range(100)], [], {})
    assert "loss, logarithmic" in html and "psnr, logarithmic" not in html


def test_values_that_are_none_do_not_stop_it() -> None:
    journal = [entry(0, a=float("nan")), entry(1, a=float("inf")), {"step": 2, "text": "x", "flag": True}]  # type: ignore[dict-item]
    html = training_page(journal, [Path("gone.png")], {"name": EVIL, EVIL: EVIL, "command": EVIL})
    assert EVIL not in html and "no value yet" in html
    assert "Nothing was logged" in training_page([], [], {})


def test_a_long_run_is_a_small_page() -> None:
    journal = [entry(step, lr=1e-4) for step in range(50_000)]
    assert len(training_page(journal, [], {})) < 200_000


def test_means_are_those_of_the_window_that_ends_at_a_step() -> None:
    values = [float(step % 7) for step in range(200)] + [math.nan]
    means = dict(_smooth([(float(step), value) for step, value in enumerate(values)]))  # a window of 4
    assert means[0] == 0 and means[50] == pytest.approx(sum(values[47:51]) / 4)
    assert means[200] == pytest.approx(sum(values[197:200]) / 3)
