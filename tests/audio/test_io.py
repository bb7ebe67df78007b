"""Audio files: what is read, what is refused, what comes back."""

from __future__ import annotations

import io
import os
import random
import struct
import time
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.audio.io import (
    MAX_SAMPLES,
    encode_audio,
    read_audio,
    resample,
    resampled_length,
    to_channels,
    write_audio,
)
from smalti.errors import InputError

soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")


def steps(bits: int, channels: int = 2, time: int = 777) -> Tensor:
    """Random samples that a file of so many bits holds exactly."""
    full = 2 ** (bits - 1)
    whole = torch.randint(-full, full, (channels, time), generator=torch.Generator().manual_seed(bits))
    return (whole.double() / full).float()


def tone(seconds: float = 0.5, rate: int = 24_000) -> Tensor:
    return 0.3 * torch.sin(torch.arange(int(seconds * rate)) * 0.1)[None]


def pcm(samples: Tensor, format: str = "wav") -> bytes:
    return encode_audio(samples, 24_000, format)  # type: ignore[arg-type]


# --- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "bits"), [("wav", 16), ("wav", 24), ("wav", 32), ("flac", 16), ("flac", 24)])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_what_is_written_comes_back_exactly(format: str, bits: int, channels: int) -> None:
    samples = steps(min(bits, 24), channels)
    again, rate = read_audio(encode_audio(samples, 44_100, format, bits))  # type: ignore[arg-type]
    assert rate == 44_100
    assert torch.equal(again, samples)


@pytest.mark.parametrize("format", ["ogg", "mp3"])
def test_lossy_formats_come_back_at_their_length_and_close(format: str) -> None:
    samples = tone(1.0)
    again, rate = read_audio(pcm(samples, format))
    assert (rate, again.shape) == (24_000, samples.shape)
    assert (again - samples).abs().mean() < 0.02


@pytest.mark.parametrize("count", [1, 2, 319, 320, 321])
@pytest.mark.parametrize("format", ["wav", "flac", "ogg"])
def test_short_sounds_are_read_whole(format: str, count: int) -> None:
    samples = tone()[:, :count]
    again, _ = read_audio(pcm(samples, format))
    assert again.shape == samples.shape


def test_unsigned_8_bits_against_the_standard_library() -> None:
    values = bytes(range(256))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8_000)
        file.writeframes(values)
    samples, rate = read_audio(buffer.getvalue())
    assert rate == 8_000
    assert samples[0].tolist() == [(value - 128) / 128 for value in values]


def test_16_and_24_bits_against_the_standard_library() -> None:
    for bits in (16, 24):
        samples = steps(bits, channels=2, time=50)
        with wave.open(io.BytesIO(encode_audio(samples, 8_000, "wav", bits))) as file:  # type: ignore[arg-type]
            raw, width = file.readframes(50), bits // 8
        whole = [int.from_bytes(raw[i : i + width], "little", signed=True) for i in range(0, len(raw), width)]
        assert (torch.tensor(whole).view(50, 2).t() / 2 ** (bits - 1)).float().equal(samples)


def test_samples_beyond_full_scale_are_cut_in_whole_numbers_and_kept_in_floating_ones() -> None:
    samples = torch.tensor([[1.5, -1.5, 0.25]])
    assert read_audio(encode_audio(samples, 8_000, "wav", 16))[0].tolist() == [[32767 / 32768, -1.0, 0.25]]
    assert read_audio(encode_audio(samples, 8_000, "wav", 32))[0].equal(samples)


def test_long_sounds_are_written_in_lossy_formats_too() -> None:
    samples = tone(120.0)
    assert read_audio(pcm(samples, "ogg"))[0].shape == samples.shape


def test_paths_files_and_bytes_are_read_alike(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "sound.flac", steps(16), 16_000)
    from_path, rate = read_audio(path)
    assert rate == 16_000
    assert from_path.equal(read_audio(path.read_bytes())[0])
    with path.open("rb") as file:
        assert from_path.equal(read_audio(file)[0])


def test_content_decides_the_decoder(tmp_path: Path) -> None:
    for format, suffix in (("wav", ".mp3"), ("flac", ".wav"), ("ogg", ".raw"), ("mp3", ".flac")):
        path = tmp_path / f"sound{suffix}"
        path.write_bytes(pcm(tone(), format))
        assert read_audio(path)[0].shape == tone().shape


def test_a_tag_before_flac_and_mp3_is_skipped() -> None:
    tag = b"ID3\x03\x00\x00\x00\x00\x01\x00" + bytes(128)
    for format in ("flac", "mp3"):
        assert read_audio(tag + pcm(tone(), format))[0].shape == tone().shape


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".wav")
    write_audio(path, tone(), 24_000)
    before = path.read_bytes()
    with pytest.raises(InputError):
        write_audio(path, torch.full((1, 5), float("nan")), 24_000)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_truncated_files_are_refused_wherever_they_end(format: str) -> None:
    data = pcm(tone(), format)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        with pytest.raises(InputError):
            read_audio(data[: int(share * len(data))])
    for missing in (1, 2, 50):
        with pytest.raises(InputError):
            read_audio(data[:-missing])


@pytest.mark.parametrize("format", ["flac", "ogg"])
def test_a_flipped_bit_is_seen_where_there_are_checksums(format: str) -> None:
    samples = tone()
    data = pcm(samples, format)
    draw = random.Random(0)
    for _ in range(60):
        damaged = bytearray(data)
        place = draw.randrange(len(data) // 2, len(data))  # the sound; in front of it lie comments and padding
        damaged[place] ^= 1 << draw.randrange(8)
        with pytest.raises(InputError):
            read_audio(bytes(damaged))


def test_bytes_changed_at_random_never_crash() -> None:
    draw = random.Random(1)
    for format in ("wav", "flac", "ogg", "mp3"):
        data = pcm(tone(0.1), format)
        for _ in range(150):
            damaged = bytearray(data)
            for _ in range(draw.randrange(1, 20)):
                damaged[draw.randrange(min(len(data), 200))] = draw.randrange(256)
            try:
                samples, _ = read_audio(bytes(damaged))
            except InputError:
                continue
            assert bool(torch.isfinite(samples).all())


STARTS = [b"", b"RIFF\x00\x00\x00\x00WAVE", b"fLaC", b"OggS", b"ID3", b"\xff\xfb"]


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400), start=st.sampled_from(STARTS))
def test_what_is_no_audio_is_refused(data: bytes, start: bytes) -> None:
    with pytest.raises(InputError):
        read_audio(start + data)


def test_two_streams_in_one_ogg_are_refused() -> None:
    one, other = pcm(tone(), "ogg"), pcm(tone() / 2, "ogg")
    with pytest.raises(InputError, match="2 streams"):
        read_audio(one + other)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_floating_files_with_nan_or_infinity_are_refused(value: float) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0.0, value, 0.0], dtype=np.float32), 8_000, format="WAV", subtype="FLOAT")
    with pytest.raises(InputError, match="NaN"):
        read_audio(buffer.getvalue())


def test_empty_missing_and_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.wav", tmp_path / "text.wav"
    empty.write_bytes(b"")
    text.write_text("not a sound")
    none = tmp_path / "none.wav"
    for path, reason in ((empty, "is empty"), (text, "is not WAV"), (none, "not exist"), (tmp_path, "opened")):
        with pytest.raises(InputError, match=reason) as caught:
            read_audio(path)
        assert path.name in str(caught.value)


def test_a_file_without_samples_is_refused() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((0, 1)), 8_000, format="WAV")
    with pytest.raises(InputError, match="no samples"):
        read_audio(buffer.getvalue())


def test_absurd_claims_are_refused_at_once() -> None:
    began = time.monotonic()
    data = pcm(tone())
    assert data[36:40] == b"data"
    for size in (0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFFF):
        with pytest.raises(InputError, match="truncated"):
            read_audio(data[:40] + struct.pack("<I", size) + data[44:])
    flac = bytearray(pcm(tone(), "flac"))
    fields = int.from_bytes(flac[18:26], "big")  # rate, channels, bits and, in the last 36 bits, the samples
    flac[18:26] = (fields | (1 << 36) - 1).to_bytes(8, "big")
    with pytest.raises(InputError, match=str(MAX_SAMPLES)):
        read_audio(bytes(flac))
    flac[18:26] = (fields >> 36 << 36).to_bytes(8, "big")
    with pytest.raises(InputError, match="how many"):
        read_audio(bytes(flac))
    assert time.monotonic() - began < 1


def test_the_cap_counts_all_channels() -> None:
    samples = steps(16, channels=2, time=100)
    assert read_audio(pcm(samples), max_samples=200)[0].shape == (2, 100)
    with pytest.raises(InputError, match="199"):
        read_audio(pcm(samples), max_samples=199)


def test_a_rate_that_is_none_of_sound_is_refused() -> None:
    data = pcm(tone())
    for rate in (3, 999, 2**31):
        with pytest.raises(InputError):
            read_audio(data[:24] + struct.pack("<I", rate) + data[28:])


@pytest.mark.parametrize(
    ("samples", "format"),
    [
        (torch.zeros(5), "wav"),
        (torch.zeros(0, 5), "wav"),
        (torch.zeros(1, 0), "wav"),
        (torch.zeros(1, 5, dtype=torch.int16), "wav"),
        (torch.zeros(9, 5), "flac"),
        (torch.zeros(1, 5), "aiff"),
    ],
)
def test_what_can_not_be_written_is_refused(samples: Tensor, format: str) -> None:
    with pytest.raises(InputError):
        pcm(samples, format)


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.flac"):
        write_audio(tmp_path / "sound.aac", tone(), 24_000)


# --- rates and channels ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 3000),
    rate_from=st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000]),
    rate_to=st.sampled_from([8_000, 16_000, 24_000, 44_100, 48_000]),
)
def test_resampled_lengths_are_rounded_halves_up(length: int, rate_from: int, rate_to: int) -> None:
    exact = Fraction(length * rate_to, rate_from) + Fraction(1, 2)
    expected = max(1, exact.numerator // exact.denominator)
    assert resampled_length(length, rate_from, rate_to) == expected
    assert resample(torch.zeros(1, length), rate_from, rate_to).shape == (1, expected)


def test_a_tone_keeps_its_pitch_and_what_lies_above_the_band_is_gone() -> None:
    t = torch.arange(48_000, dtype=torch.float64) / 48_000
    low, high = (torch.sin(2 * torch.pi * f * t).float() for f in (1_000, 15_000))
    resampled = resample(torch.stack([low, high]), 48_000, 24_000)
    expected = torch.sin(2 * torch.pi * 1_000 * torch.arange(24_000, dtype=torch.float64) / 24_000)
    inside = slice(200, -200)
    assert (resampled[0, inside].double() - expected[inside]).abs().max() < 1e-4
    assert resampled[1, inside].abs().max() < 1e-4


def test_a_row_is_resampled_alike_in_every_batch() -> None:
    x = torch.randn(3, 2, 500)
    together = resample(x, 44_100, 24_000)
    assert together.shape == (3, 2, 272)
    assert all(torch.equal(resample(x[i, j], 44_100, 24_000), together[i, j]) for i in range(3) for j in range(2))


def test_the_same_rate_changes_nothing() -> None:
    x = torch.randn(1, 9)
    assert resample(x, 24_000, 24_000) is x


def test_what_can_not_be_resampled_is_refused() -> None:
    with pytest.raises(InputError, match="rate of 3 Hz"):
        resample(torch.zeros(1, 9), 3, 24_000)
    with pytest.raises(InputError, match="gradient"):
        resample(torch.zeros(1, 9, requires_grad=True), 16_000, 24_000)
    with pytest.raises(InputError, match="more than"):
        resample(torch.zeros(()).expand(1, 2**26), 1_000, 48_000)


def test_channels_are_averaged_or_repeated() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert to_channels(x, 1).tolist() == [[2.0, 4.0]]
    assert to_channels(x[:1], 3).tolist() == [[1.0, 2.0]] * 3
    assert to_channels(x, 2) is x
    with pytest.raises(InputError, match="6 channels"):
        to_channels(torch.zeros(6, 4), 2)
