"""Files as bytes: which of them are text or executables, how they are read in blocks and written whole.

folder ──is_text, is_executable──► files ──ByteFile──► blocks, and an error if the file changes meanwhile
file  ◄──written under another name, then renamed── blocks
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from smalti.errors import InputError

PROSE = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".bib", ".org", ".adoc", ".log", ".srt", ".vtt", ".po")
DATA = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".xml", ".sql")
PAGES = (".html", ".htm", ".xhtml", ".svg", ".css", ".scss", ".js", ".mjs", ".jsx", ".ts", ".tsx", ".php")
CODE = (
    ".py", ".pyi", ".ipynb", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu", ".m", ".mm", ".java", ".kt",
    ".scala", ".cs", ".go", ".rs", ".swift", ".rb", ".pl", ".pm", ".lua", ".r", ".jl", ".hs", ".ml", ".ex", ".exs",
    ".erl", ".clj", ".lisp", ".el", ".f", ".f90", ".s", ".asm", ".v", ".sv", ".vhd", ".sh", ".bash", ".zsh", ".bat",
    ".ps1", ".cmake", ".mk", ".proto", ".diff", ".patch",
)  # fmt: skip
SUFFIXES = frozenset((*PROSE, *DATA, *PAGES, *CODE))
NAMES = frozenset((  # of files that are text and have no suffix, by custom
    "readme", "license", "licence", "copying", "notice", "authors", "contributors", "changelog", "changes", "news",
    "todo", "install", "makefile", "dockerfile", "jenkinsfile", "gemfile", "rakefile",
))  # fmt: skip
BLOCK = 2**22  # bytes read at once
_WRITE_BUFFER = 2**20

_ELF = b"\x7fELF"
_MACH_O = frozenset(bytes.fromhex(magic) for magic in ("feedface", "feedfacf", "cefaedfe", "cffaedfe"))
_MACH_O_FAT = frozenset(bytes.fromhex(magic) for magic in ("cafebabe", "cafebabf"))
_MAX_FAT = 30  # architectures in one file; Java's classes begin like fat files, with a version from 45 on instead


def is_text(path: Path) -> bool:
    """Whether a file counts as text: by its suffix, or by its name where it has none (README, Makefile)."""
    return path.suffix.lower() in SUFFIXES or path.name.lower() in NAMES


def is_executable(path: Path) -> bool:
    """Whether a file is an ELF, PE or Mach-O image (program, library or object): by its first bytes, whatever its name.

    A file that can't be read counts, so that the run reports it instead of passing over it.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if head[:2] == b"MZ" and len(head) == 64:
                file.seek(int.from_bytes(head[60:64], "little"))
                return file.read(4) == b"PE\0\0"
    except OSError:
        return True
    if head[:4] in _MACH_O_FAT:
        return 0 < int.from_bytes(head[4:8], "big") <= _MAX_FAT
    return head[:4] == _ELF or head[:4] in _MACH_O


@dataclass(frozen=True)
class FileState:
    """What tells that a file is still the same: its size in bytes, and when it was last written."""

    size: int
    mtime_ns: int


class ByteFile:
    """A file that is read from front to back, and may not change while it is; `contextlib.closing` closes it.

    Args:
        path: of a regular file.

    Raises:
        OSError: if it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.state = self._now()

    def close(self) -> None:
        self._file.close()

    def blocks(self, start: int = 0, size: int = BLOCK) -> Iterator[bytes]:
        """Its bytes from `start` on; blocks end at multiples of `size`, wherever the first begins.

        Raises:
            InputError: if the file changed since it was opened.
        """
        self._file.seek(start)
        while block := self._file.read(size - start % size):
            start += len(block)
            yield block
        if start != self.state.size:
            raise InputError(f"the file has {self.state.size} bytes, but {start} were read: it changed meanwhile")
        self.check()

    def check(self) -> None:
        """Raises InputError if the file changed since it was opened."""
        now = self._now()
        if now != self.state:
            raise InputError(f"the file changed while it was read ({self.state.size} bytes before, {now.size} now)")

    def _now(self) -> FileState:
        status = os.fstat(self._file.fileno())
        return FileState(status.st_size, status.st_mtime_ns)


def texts(path: Path, size: int = BLOCK) -> Iterator[str]:
    """A file's text, cut behind line ends into parts of about `size` bytes; bytes that are no UTF-8 become U+FFFD.

    Raises:
        OSError: if it can't be read.
        InputError: if it changes meanwhile.
    """
    rest = b""
    with closing(ByteFile(path)) as file:
        for block in file.blocks(size=size):
            lines, end, rest = (rest + block).rpartition(b"\n")
            if end:
                yield (lines + end).decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


def write_bytes(path: Path, blocks: Iterable[bytes]) -> None:
    """Writes a file block by block; it appears whole under its name, or not at all.

    Raises:
        OSError: if it can't be written.
    """
    staged = path.with_name(f".smalti-{secrets.token_hex(8)}.tmp")
    try:
        with staged.open("wb", buffering=_WRITE_BUFFER) as file:
            for block in blocks:
                file.write(block)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
