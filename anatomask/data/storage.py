"""Files on any file system that pyarrow reads (local, S3, GCS), written whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from anatomask.errors import UserError

REQUESTS_AT_ONCE = 16
"""To remote storage, which takes its time for each."""
JOINED_BELOW = 2**16
"""Bytes between two ranges of a remote file up to which they are read as one."""


class Storage:
    """A folder, local or remote; paths are relative to it.

    Local files are memory-mapped for reading. Every write goes to a temporary name and is then renamed, so that no
    reader ever sees half a file. Pickles as its path alone.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        if "://" in self.root:
            self.filesystem, self._base = pafs.FileSystem.from_uri(self.root)
        else:
            self.filesystem, self._base = pafs.LocalFileSystem(use_mmap=True), Path(self.root).absolute().as_posix()

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.root,)

    def locate(self, path: str) -> str:
        """The path as the file system wants it."""
        return f"{self._base}/{path}"

    def show(self, path: str) -> str:
        """The path as the user wrote it, for messages."""
        return f"{self.root.rstrip('/')}/{path}"

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder. Raises OSError when the file system cannot tell."""
        return self.filesystem.get_file_info(self.locate(path)).type is not pafs.FileType.NotFound

    def names(self, folder: str, suffix: str) -> list[str]:
        """Sorted names, without the suffix, of the files in a folder that end with it; empty if it is not there.

        Raises:
            OSError: the folder cannot be read.
        """
        found = self.filesystem.get_file_info(pafs.FileSelector(self.locate(folder), allow_not_found=True))
        return sorted(info.base_name.removesuffix(suffix) for info in found if info.base_name.endswith(suffix))

    def read(self, path: str) -> bytes:
        """All bytes of a file.

        Raises:
            FileNotFoundError: it is not there.
            OSError: it cannot be read.
        """
        with self.filesystem.open_input_stream(self.locate(path), compression=None) as stream:
            return stream.read()

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[pa.Buffer]:
        """The (start, length) ranges of a file, in the order given: mapped where it is local, else read in parallel.

        Raises:
            OSError: it is not there, cannot be read, or ends before a range does.
        """
        with self.filesystem.open_input_file(self.locate(path)) as file:
            if isinstance(self.filesystem, pafs.LocalFileSystem):
                parts = []
                for start, length in ranges:
                    file.seek(start)
                    parts.append(file.read_buffer(length))
            else:
                with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
                    spans = _joined(ranges)
                    read = dict(zip(spans, pool.map(lambda span: file.read_at(span[1], span[0]), spans), strict=True))
                parts = [_within(read, start, length) for start, length in ranges]
        if any(len(part) != length for part, (_, length) in zip(parts, ranges, strict=True)):
            raise OSError(f"{self.show(path)} is cut off")
        return parts

    def read_json(self, path: str, remedy: str = "run the command that wrote it with --overwrite") -> Any:
        """The parsed file.

        Raises:
            UserError: it is not JSON; the message ends with `remedy`.
            OSError: it is not there or cannot be read.
        """
        try:
            return json.loads(self.read(path))
        except ValueError as error:
            raise UserError(f"{self.show(path)} is damaged ({error}); {remedy}") from error

    def write(self, path: str, data: bytes) -> None:
        """Write a file atomically, with the folders that it needs.

        Raises:
            OSError: the folder cannot be written; `filename` is the path.
        """
        target = self.locate(path)
        folder, name = target.rsplit("/", 1)
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            self.filesystem.create_dir(folder, recursive=True)
            with self.filesystem.open_output_stream(temporary, compression=None) as stream:
                stream.write(data)
            self.filesystem.move(temporary, target)
        except BaseException as error:
            if isinstance(error, OSError):
                error.filename = self.show(path)
            with suppress(OSError):
                self.filesystem.delete_file(temporary)
            raise

    def write_json(self, path: str, value: Any) -> None:
        """Write a value as JSON, indented, as `write` does.

        Raises:
            OSError: as `write`.
            TypeError: the value is none that JSON has.
        """
        self.write(path, (json.dumps(value, indent=1) + "\n").encode())

    def clear(self, path: str) -> None:
        """Delete a file or a folder, if it is there.

        Raises:
            OSError: it cannot be deleted.
        """
        kind = self.filesystem.get_file_info(self.locate(path)).type
        if kind is pafs.FileType.Directory:
            self.filesystem.delete_dir(self.locate(path))
        elif kind is pafs.FileType.File:
            self.filesystem.delete_file(self.locate(path))


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The (start, length) spans that hold all ranges, those that lie near each other in one."""
    spans: list[tuple[int, int]] = []
    for start, length in sorted(ranges):
        if spans and start - sum(spans[-1]) <= JOINED_BELOW:
            first, extent = spans.pop()
            spans.append((first, max(extent, start + length - first)))
        else:
            spans.append((start, length))
    return spans


def _within(read: Mapping[tuple[int, int], bytes], start: int, length: int) -> pa.Buffer:
    """A range, cut out of the span that holds it."""
    (first, _), data = next((span, data) for span, data in read.items() if 0 <= start - span[0] < max(span[1], 1))
    return pa.py_buffer(data)[start - first : start - first + length]
