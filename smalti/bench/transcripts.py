"""What is said in sounds: a CSV with the columns file and text."""

from __future__ import annotations

import csv
from pathlib import Path

from smalti.errors import InputError


def read_transcripts(file: Path) -> dict[str, str]:
    """Texts by the id of their file, which is its path below the folder that is measured, and by its bare name.

    Args:
        file: a CSV with the columns "file" and "text" and perhaps others; rows without text are passed over.

    Raises:
        InputError: if it can't be read, or lacks a column.
    """
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines)
            if not {"file", "text"} <= set(rows.fieldnames or ()):
                raise InputError(f"{file} needs the columns file and text; it has {', '.join(rows.fieldnames or ())}")
            texts = {row["file"]: row["text"] for row in rows if row["file"] and row["text"]}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} can't be read: {error}") from None
    return {Path(name).name: text for name, text in texts.items()} | texts
