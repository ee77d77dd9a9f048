"""What happened to a run, in words: `log.txt`, a line each."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path

from anatomask.files import naming

JOURNAL = "log.txt"


def note(run: Path, text: str) -> None:
    """Add a line with the time to the journal of a run."""
    path = run / JOURNAL
    with naming(path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def note_warnings(run: Path) -> None:
    """Add what this process warns of from now on, such as an outage of storage, to the journal of a run."""
    log = logging.getLogger("anatomask")
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, _Journal)]
    log.addHandler(_Journal(run))


class _Journal(logging.Handler):
    def __init__(self, run: Path) -> None:
        super().__init__(logging.WARNING)
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # where the disk is full
            note(self.run, record.getMessage())
