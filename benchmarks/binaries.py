"""python -m benchmarks.binaries FOLDER [--megabytes 200] [--seed 0]

Collects executables for training binary-bpe and for judging it: this machine's own, by Debian package, and those of
other platforms out of wheels from PyPI. A package is either for training or held out, never both.

    FOLDER/train/KIND/...       FOLDER/heldout/KIND/...       FOLDER/sources.json: what came from where
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smalti.text.io import is_executable

TRAINED = (
    "numpy", "scipy", "pillow", "lxml", "orjson", "regex", "cryptography", "pydantic-core", "tokenizers", "psutil",
    "aiohttp", "grpcio", "cffi", "zstandard", "msgpack", "rpds-py", "yarl", "frozenlist", "propcache", "wrapt",
    "bitarray", "markupsafe",
)  # fmt: skip
HELD_OUT = (
    "scikit-learn", "pandas", "matplotlib", "h5py", "kiwisolver", "contourpy", "shapely", "pyzmq", "greenlet",
    "safetensors", "pyyaml", "multidict",
)  # fmt: skip
PLATFORMS = {
    "elf-x86-64": ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64"),
    "elf-arm64": ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_28_aarch64"),
    "pe-x86-64": ("win_amd64",),
    "pe-arm64": ("win_arm64",),
    "macho-x86-64": ("macosx_10_9_x86_64", "macosx_10_12_x86_64", "macosx_10_13_x86_64", "macosx_10_14_x86_64"),
    "macho-arm64": ("macosx_11_0_arm64", "macosx_12_0_arm64", "macosx_14_0_arm64"),
}
# Shares of the training data. Held-out data has 1/12 of it for every kind.
SHARES = {
    "elf-debian": 0.38, "elf-x86-64": 0.08, "elf-arm64": 0.12, "elf-debug": 0.05, "pe-x86-64": 0.16, "pe-arm64": 0.06,
    "macho-x86-64": 0.06, "macho-arm64": 0.09,
}  # fmt: skip
HELD_OUT_SHARE = 1 / 12
LARGEST_SHARE = 0.02  # of one package in its kind: the more packages, the better it carries over to others
DEBIAN_FILES = Path("/var/lib/dpkg/info")
DEBUG = b".debug_info"
MAGIC = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
HEAD = 8192  # bytes of a large file that say what it is

Part = Literal["train", "heldout"]


@dataclass(frozen=True)
class Binary:
    """An executable.

    Args:
        kind: a key of SHARES.
        package: what it came in.
        name: of the file.
        data: its bytes.
    """

    kind: str
    package: str
    name: str
    data: bytes


def main(arguments: list[str] | None = None) -> int:
    """Collects, samples, writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.binaries", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=200, help="of training data")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    found: dict[tuple[Part, str], list[Binary]] = defaultdict(list)
    for part, binary in collected():
        found[part, binary.kind].append(binary)
    sources = {}
    for (part, kind), binaries in sorted(found.items()):
        share = SHARES[kind] if part == "train" else HELD_OUT_SHARE
        chosen = sampled(binaries, int(options.megabytes * 1e6 * share), random.Random(options.seed))
        write(options.folder / part / kind, chosen)
        size = sum(len(binary.data) for binary in chosen)
        sources[f"{part}/{kind}"] = {"bytes": size, "packages": sorted({binary.package for binary in chosen})}
        print(f"{part}/{kind}: {len(chosen)} files, {size / 1e6:.1f} MB", flush=True)
    (options.folder / "sources.json").write_text(json.dumps(sources, indent=1) + "\n")
    return 0


def collected() -> Iterator[tuple[Part, Binary]]:
    """All executables of this machine's packages and of the wheels."""
    yield from debian()
    with tempfile.TemporaryDirectory() as folder:
        for part, packages in (("train", TRAINED), ("heldout", HELD_OUT)):
            for kind, platforms in PLATFORMS.items():
                for package in packages:
                    for binary in unpacked(Path(folder), kind, package, platforms):
                        yield ("train" if part == "train" else "heldout"), binary


def debian() -> Iterator[tuple[Part, Binary]]:
    """Executables that this machine's packages installed; every third package is held out."""
    for listing in sorted(DEBIAN_FILES.glob("*.list")):
        package = listing.stem.partition(":")[0]
        held_out = hashlib.sha256(package.encode()).digest()[-1] % 3 == 0
        for line in listing.read_text().splitlines():
            path = Path(line)
            if path.is_file() and not path.is_symlink() and is_executable(path):
                yield "heldout" if held_out else "train", Binary("elf-debian", package, path.name, path.read_bytes())


def unpacked(folder: Path, kind: str, package: str, platforms: Sequence[str]) -> Iterator[Binary]:
    """Executables of a package's wheel for a platform; none if there is no such wheel."""
    target = folder / kind / package
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    for platform in platforms:
        command += ["--platform", platform]
    subprocess.run([*command, "--python-version", "3.11", "--dest", target, package], capture_output=True, check=False)
    for wheel in target.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                data = archive.read(name)
                if data[:4] in MAGIC or data[:2] == b"MZ":
                    debug = kind.startswith("elf") and DEBUG in data
                    yield Binary("elf-debug" if debug else kind, package, name.replace("/", "_"), data)


def sampled(binaries: Sequence[Binary], size: int, rng: random.Random) -> list[Binary]:
    """About so many bytes, from as many packages as possible; of large files the head and a part from anywhere."""
    by_package: dict[str, list[Binary]] = defaultdict(list)
    for binary in binaries:
        by_package[binary.package].append(binary)
    limit = max(int(LARGEST_SHARE * size), size // len(by_package))
    chosen: list[Binary] = []
    for package in rng.sample(sorted(by_package), len(by_package)):
        room = min(limit, size - sum(len(each.data) for each in chosen))
        for binary in rng.sample(by_package[package], len(by_package[package])):
            if room <= 0:
                break
            start = rng.randrange(HEAD, max(HEAD + 1, len(binary.data) - room))
            part = binary.data if len(binary.data) <= room else binary.data[:HEAD] + binary.data[start : start + room]
            chosen.append(Binary(binary.kind, package, binary.name, part))
            room -= len(part)
    return chosen


def write(folder: Path, binaries: Sequence[Binary]) -> None:
    """A file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, binary in enumerate(binaries):
        (folder / f"{number:05d}-{binary.package}-{binary.name[-80:]}").write_bytes(binary.data)


if __name__ == "__main__":
    sys.exit(main())
