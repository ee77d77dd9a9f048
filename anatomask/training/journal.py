"""What happened to a run, in words: `log.txt`, a line each."""

from __future__ import annotations

import time
from pathlib import Path

from anatomask.files import naming

JOURNAL = "log.txt"


def note(run: Path, text: str) -> None:
    """Add a line with the time to the journal of a run."""
    path = run / JOURNAL
    with naming(path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
