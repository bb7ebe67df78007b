"""Text of any size is encoded, verified and decoded in bounded memory, by a process of its own."""

from __future__ import annotations

import filecmp
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

LIMIT = 10**9  # bytes of all processes

# Peaks are read where Linux keeps them; the run starts no other process, which is checked too.
PROGRAM = """
import sys
from pathlib import Path
from smalti.store import decode_store, encode_again, encode_paths, verify
from tests.text.runs import RunTokenizer

names, store, workers = sys.argv[1].split(":"), Path(sys.argv[2]), int(sys.argv[3])
tokenizer = RunTokenizer.Config().build()
done = encode_paths(names, store, tokenizer, reference="runs", workers=workers)
assert (done.encoded, done.failed) == (len(names), 0), done
assert verify(store).sound
assert encode_again(store, tokenizer, 1).differing == 0
assert not decode_store(store, store / "out", tokenizer).failed
assert not Path("/proc/self/task").joinpath(str(__import__("os").getpid()), "children").read_text()
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])
"""


def peak(files: list[Path], store: Path, workers: int) -> int:
    """Bytes of memory that encoding, verifying and decoding take; the decoded files are compared."""
    command = [sys.executable, "-c", PROGRAM, ":".join(map(str, files)), str(store), str(workers)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert ran.returncode == 0, ran.stderr
    assert all(filecmp.cmp(file, store / "out" / file.name, shallow=False) for file in files)
    return int(ran.stdout) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own figures")
@pytest.mark.parametrize(
    ("megabytes", "count"),
    [(8, 1), pytest.param(300, 1, marks=pytest.mark.slow), pytest.param(75, 4, marks=pytest.mark.slow)],
)
def test_memory_does_not_grow_with_files(tmp_path: Path, megabytes: int, count: int) -> None:
    """Nearly as many tokens as bytes: the worst case."""
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{index}.txt" for index in range(count)]
    for path in files:
        with path.open("wb") as file:
            for _ in range(megabytes):
                file.write(rng.integers(97, 101, 10**6, np.uint8).tobytes())
    assert peak(files, tmp_path / "store", count) < LIMIT


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own figures")
def test_a_line_of_100_million_bytes_of_one_letter(tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_bytes(b"a" * 10**8)
    assert peak([tmp_path / "line.txt"], tmp_path / "store", 1) < LIMIT
