"""Journal of a run: `log.txt`, an event per line."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path

from anatomask.files import add_filename

JOURNAL = "log.txt"
METRICS = "metrics.jsonl"
"""Name of the file of a run's scalars, which lies beside the journal."""


def note(run: Path, text: str) -> None:
    """Append a line with the time to the journal of a run."""
    path = run / JOURNAL
    with add_filename(path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def note_events(run: Path) -> None:
    """Append what is logged in this process from now on, as an outage of storage, to the journal of a run."""
    log = logging.getLogger("anatomask")
    log.setLevel(logging.INFO)
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, _Journal)]
    log.addHandler(_Journal(run))


class _Journal(logging.Handler):
    def __init__(self, run: Path) -> None:
        super().__init__(logging.INFO)
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # where the disk is full
            note(self.run, record.getMessage())
