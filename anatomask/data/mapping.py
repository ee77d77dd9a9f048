"""Local files that stay mapped between readings, as mapping their pages anew would take longer than reading a crop."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

MAPPED_FILES = 1024
"""Number of files that stay mapped. Their pages are the page cache's: the kernel takes them when memory is short."""


class MappedFiles:
    """Contents of the local files that were read recently. A file that has changed since is mapped anew."""

    def __init__(self) -> None:
        self._mapped: dict[str, tuple[tuple[int, ...], pa.Buffer]] = {}

    def read(self, path: str) -> pa.Buffer:
        """Return the content of a file, whose path is UTF-8 whatever the locale, as a view of its pages.

        Raises:
            OSError: it is not there or cannot be read.
        """
        now = Path(os.fsdecode(path.encode())).stat()
        version = now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns
        before, content = self._mapped.get(path, ((), None))
        if content is None or before != version:
            self._mapped.pop(path, None)
            with pa.memory_map(path) as file:
                content = file.read_buffer()  # which keeps the mapping, but not the file open
            if len(self._mapped) >= MAPPED_FILES:
                del self._mapped[next(iter(self._mapped))]
            self._mapped[path] = version, content
        return content
