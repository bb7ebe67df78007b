"""Training data: a sample is a function of seed and number alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from smalti.audio.io import write_audio
from smalti.errors import ConfigError, InputError
from smalti.image.io import read_image
from smalti.image.resize import RandomCrop, size_after
from smalti.train.data import Images, Recordings, Samples, batches, find_files
from tests.train.runs import pictures

CROP = Images(rules=(RandomCrop(size=16),))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("photos"))


def samples(photos: Path, seed: int = 0, data: Images = CROP) -> Samples:
    return Samples(data, find_files(data, photos, Path())[0], folder=photos, seed=seed)


def test_a_sample_is_the_same_whenever_it_is_asked_for(photos: Path) -> None:
    one, other = samples(photos), samples(photos)
    forwards = [one[index] for index in range(30)]
    backwards = [other[index] for index in reversed(range(30))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert not torch.equal(samples(photos, seed=1)[0], forwards[0])


def test_every_file_comes_once_an_epoch_in_another_order_each_time(photos: Path) -> None:
    series = samples(photos)
    epochs = [[series._file(12 * epoch + index) for index in range(12)] for epoch in range(3)]
    assert all(len(set(epoch)) == 12 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_crops_are_cut_from_their_file(photos: Path) -> None:
    series = samples(photos, data=CROP.replace(flip=False))
    for index in range(5):
        whole, crop = read_image(series._file(index)), series[index]
        windows = whole.unfold(1, 16, 1).unfold(2, 16, 1).movedim(0, 2)
        assert bool((windows == crop).all(dim=(2, 3, 4)).any())


def test_ranks_share_a_batch_in_runs_and_later_starts_go_on(photos: Path) -> None:
    series = samples(photos)
    whole = list(batches(series, batch=4, first=0, count=3))
    halves = [list(batches(series, batch=4, first=0, count=3, rank=rank, ranks=2)) for rank in range(2)]
    for index, batch in enumerate(whole):
        assert torch.equal(batch, torch.cat([half[index] for half in halves]))
    assert torch.equal(next(batches(series, batch=4, first=8, count=1)), whole[2])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "one size, as a last random-crop does; got no rules"),
        ([{"type": "resize-shorter", "size": 32}], "one size.*got resize-shorter"),
        ([{"type": "random-crop", "size": 32}, {"type": "random-shrink", "at_least": 8}], "random-crop, random-shrink"),
        ([{"type": "resize", "height": 32, "width": 16}], "turn takes squares, and rules end in 16x32"),
        (
            [{"type": "resize", "height": 8, "width": 8}, {"type": "random-crop", "size": 16}],
            "a crop of 16 does not fit into pictures of 8x8",
        ),
        ([{"type": "halving-random-crop", "size": 16, "smallest": 1.0, "largest": 0.5}], "smallest must not be above"),
    ],
)
def test_rules_that_leave_several_sizes_are_refused(rules: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Images(rules=rules, turn=True)


def test_a_resize_behind_a_crop_leaves_one_size() -> None:
    crop, shorter = {"type": "random-crop", "size": 32}, {"type": "resize-shorter", "size": 16}
    assert size_after(Images(rules=[shorter, crop, shorter]).rules) == (16, 16)
    stretched = [{"type": "resize", "height": 40, "width": 30}, shorter]
    assert size_after(Images(rules=stretched).rules) == (16, 21)


def test_held_out_files_are_never_trained_on(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# two of them\n10.png\n1[12].png  # the last\n")
    data = Images(held_out=("00.*",), held_out_list="list.txt", validation=("1*",))
    train, watched = find_files(data, photos, tmp_path)
    assert {path.name for path in train} == {f"{index:02d}.png" for index in range(1, 10)}
    assert [path.name for path in watched] == ["10.png", "11.png"]


def test_held_out_files_that_are_not_there_are_said(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, watched = find_files(Images(held_out=("00.png", "other/*")), photos, Path())
    assert (len(train), len(watched)) == (11, 1)
    assert "nothing of what is to be held out (other/*)" in caplog.text


def test_what_can_not_be_found_is_said(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        find_files(Images(), tmp_path / "nowhere", Path())
    with pytest.raises(InputError, match="nothing to train on"):
        find_files(Images(include=("*.jpg",)), photos, Path())
    with pytest.raises(ConfigError, match=r"held_out_list: .*gone.txt can't be read"):
        find_files(Images(held_out_list="gone.txt"), photos, tmp_path)


def test_a_file_that_can_not_be_read_is_passed_over_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = pictures(tmp_path / "photos", count=3)
    (folder / "01.png").write_bytes(b"not a picture")
    series = samples(folder)
    assert all(series[index].shape == (3, 16, 16) for index in range(6))
    assert caplog.text.count("01.png is left out") == 1  # said once
    for path in folder.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="files in a row can't be trained on"):
        samples(folder)[0]


def test_one_good_file_among_many_that_are_too_small_is_enough(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", count=40, size=12)
    pictures(folder, count=1, size=40)
    series = samples(folder)
    assert all(series[index].shape == (3, 16, 16) for index in range(100))


def test_segments_have_the_rate_length_and_level_that_were_asked_for(tmp_path: Path) -> None:
    time = torch.arange(8000) / 8000
    write_audio(tmp_path / "long.wav", 0.1 * torch.sin(6.28 * 100 * time)[None], 8000)
    write_audio(tmp_path / "short.wav", 0.5 * torch.sin(6.28 * 100 * time[:700])[None], 8000)
    data = Recordings(seconds=0.2, shortest=0.0, peak_db=(-6.0, -6.0), speed=(0.8, 1.2))
    series = Samples(data, find_files(data, tmp_path, Path())[0], folder=tmp_path, seed=0, rate=16_000)
    for index in range(12):
        segment = series[index]
        assert segment.shape == (1, 3200)
        assert float(segment.abs().max()) == pytest.approx(10 ** (-6 / 20), rel=1e-5)


def test_long_recordings_come_in_proportion_and_unfit_ones_never(tmp_path: Path) -> None:
    for name, rate, seconds in (("a", 16_000, 3.0), ("b", 16_000, 1.0), ("c", 16_000, 0.2), ("d", 8_000, 2.0)):
        write_audio(tmp_path / f"{name}.wav", torch.rand(1, round(rate * seconds)) - 0.5, rate)
    data = Recordings(seconds=0.5, shortest=0.5, least_rate=16_000)
    series = Samples(data, find_files(data, tmp_path, Path())[0], folder=tmp_path, seed=0, rate=16_000)
    assert Counter(path.stem for path in series.entries) == {"a": 6, "b": 2}
    with pytest.raises(InputError, match="too short or of too low a rate"):
        Samples(data.replace(shortest=9.0), [tmp_path / "a.wav"], folder=tmp_path, seed=0, rate=16_000)


def test_playing_speed_moves_pitch(tmp_path: Path) -> None:
    time = torch.arange(32_000) / 16_000
    write_audio(tmp_path / "tone.wav", 0.5 * torch.sin(2 * torch.pi * 400 * time)[None], 16_000)
    for speed in (0.8, 1.25):
        data = Recordings(seconds=1.0, speed=(speed, speed))
        segment = Samples(data, [tmp_path / "tone.wav"], folder=tmp_path, seed=0, rate=16_000)[0]
        assert int(torch.fft.rfft(segment[0]).abs().argmax()) == pytest.approx(400 * speed, abs=1)


def test_turned_samples_are_quarter_turns_of_a_crop_and_other_colours_keep_the_range(photos: Path) -> None:
    turned = samples(photos, data=CROP.replace(flip=False, turn=True))
    kept = 0
    for index in range(12):
        whole, crop = read_image(turned._file(index)), turned[index]
        windows = whole.unfold(1, 16, 1).unfold(2, 16, 1).movedim(0, 2)
        found = [bool((windows == crop.rot90(-k, (1, 2))).all(dim=(2, 3, 4)).any()) for k in range(4)]
        assert any(found)
        kept += found[0]
    assert kept < 12
    plain, coloured = samples(photos), samples(photos, data=CROP.replace(colour=0.3))
    assert all(float(coloured[index].min()) >= 0 and float(coloured[index].max()) <= 1 for index in range(8))
    assert any(not torch.allclose(plain[index], coloured[index], atol=0.05) for index in range(8))


def test_what_is_watched_is_the_photo_as_it_is(photos: Path) -> None:
    data = CROP.replace(turn=True, colour=0.5)
    assert torch.equal(data.watched(photos / "03.png", None), read_image(photos / "03.png"))
