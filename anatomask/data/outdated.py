"""Finished cases whose source was written since: what was made of them is of older scans or labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from anatomask.data.datasets.base import RawCase
from anatomask.data.listing import files_below, is_folder
from anatomask.names import some


def outdated_note(cases: Iterable[RawCase], made: Mapping[str, int], files: str) -> list[str]:
    """Make a note of the finished cases that have newer scans or labels; empty if there are none.

    A file that was put in place with an older date is not noticed, nor is one that was removed.

    Args:
        cases: cases of the source.
        made: case -> time at which its file was written, in nanoseconds since 1970, for the finished cases.
        files: path of these files, for the message.
    """
    newest = cache(_newest)  # cases may share a folder
    newer = [raw.case for raw in cases if raw.case in made and max(map(newest, raw.paths)) > made[raw.case]]
    if not newer:
        return []
    return [
        f"scans or labels of {some(newer)} are newer than what was made of them, which is kept; delete {files} of "
        "each, and the same command makes it anew, or --overwrite all"
    ]


def _newest(path: Path) -> int:
    """Return when a file, or the newest file in a folder, was written, in nanoseconds; 0 where that cannot be read."""
    times = [0]
    for file in files_below(path) if is_folder(path) else (path,):
        with suppress(OSError):
            times.append(file.stat().st_mtime_ns)
    return max(times)
