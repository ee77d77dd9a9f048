"""Files on any file system that pyarrow reads (local, S3, GCS), written atomically."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa
from pyarrow import fs as pafs

from anatomask.data.addresses import cannot_open, is_address, public_address
from anatomask.data.mapping import MappedFiles
from anatomask.data.outages import MAX_OUTAGE, is_outage, one_line, outlast
from anatomask.data.ranges import fetched
from anatomask.errors import UserError
from anatomask.files import flush, refuse_pipe
from anatomask.names import shown
from anatomask.parsing import from_json

OBJECT_STORES = ("s3", "gcs", "abfs")
"""File systems where a file appears when its upload is complete; elsewhere a rename is needed."""

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""Pattern of the name of a file until its write is complete."""

PIECE = 2**26
"""Bytes of a large file that are handed to the file system at once, which copies them."""

ANSWER_SECONDS: Mapping[str, Mapping[str, Any]] = {
    "s3": {"connect_timeout": 5.0, "request_timeout": 10.0},
    "gcs": {"retry_time_limit": timedelta(seconds=10)},
}
"""Options that make an unanswered request fail within 30 s; pyarrow's defaults take 99 s, in GCS 15 minutes."""

Stamp: TypeAlias = tuple[int, int]
"""Bytes of a file, and the second of its last change: object stores do not tell it more exactly everywhere."""

T = TypeVar("T")


class Storage:
    """Folder, local or remote; paths are relative to it.

    Local files are memory-mapped for reading. No reader ever sees half a file: a write goes to a temporary name and is
    then renamed, or is an upload to an object store. When remote storage that has answered once stops answering,
    operations wait for it. Storage that has never answered may be a wrong address, so operations fail at once. It
    pickles as address, waiting time and whether it has answered.

    The root may hold credentials (`s3://key:secret@bucket/folder`), which no message shows.

    Args:
        root: folder, or address of one.
        max_outage: minutes without an answer after which storage that has answered before is given up.
        answered: True if the storage has answered in another process.

    Raises:
        UserError: pyarrow does not know such an address, or cannot reach it.
    """

    def __init__(self, root: str | os.PathLike[str], max_outage: float = MAX_OUTAGE, *, answered: bool = False) -> None:
        self.root = os.fspath(root)
        self.max_outage = max_outage
        self.answered = answered
        if is_address(self.root):
            try:  # the region of a bucket is looked up
                self.filesystem, self._base = self._patiently("", lambda: _remote(self.root))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise UserError(cannot_open(self.root, error)) from None
            if not self._base:
                raise UserError(f"{public_address(self.root)} names no folder; write it as s3://bucket/folder")
        else:
            self.filesystem, self._base = pafs.LocalFileSystem(use_mmap=True), _utf8(Path(self.root).absolute())
        self._mapped = MappedFiles()

    @classmethod
    def of(cls, root: Root) -> Storage:
        """Return the storage itself, or that of a folder or an address."""
        return root if isinstance(root, Storage) else cls(root)

    @property
    def local(self) -> bool:
        """True if files are on this machine."""
        return self.filesystem.type_name == "local"

    def __repr__(self) -> str:
        return f"Storage({self.show()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.root, self.max_outage, self.answered)

    def locate(self, path: str) -> str:
        """Return the path as the file system expects it.

        Raises:
            UserError: the path leads out of the folder.
        """
        if ".." in path.split("/") or path.startswith("/"):
            raise UserError(f"{self.show()}: {shown(path)} leads out of this folder; correct the file that names it")
        return f"{self._base}/{path}"

    def show(self, path: str = "") -> str:
        """Return the path as the user wrote it, for messages: without options and credentials."""
        root = public_address(self.root).partition("?")[0] if is_address(self.root) else self.root
        return f"{root.rstrip('/')}/{path}".rstrip("/")

    def _patiently(self, path: str, act: Callable[[], T]) -> T:
        """Return the result of `act`, and repeat it during an outage of storage that has answered before."""
        return outlast(act, self.show(path), self.max_outage) if self.answered else act()

    def _asked(self, path: str, act: Callable[[], T]) -> T:
        """Return the result of `act`; every use of the file system goes through here.

        An OSError names the file. An error of a remote file system, which has no errno, becomes a UserError.
        """
        try:
            if self.local:
                return act()
            result = self._patiently(path, act)
        except OSError as error:
            if self.local or isinstance(error, FileNotFoundError):
                error.filename = self.show(path)
                raise
            gone = f"no answer for {self.max_outage:g} min; " if self.answered and is_outage(error) else ""
            raise UserError(
                f"{self.show(path)}: {gone}{one_line(error)}. Check the address, the credentials and the network; the "
                "same command goes on"
            ) from None
        self.answered = True
        return result

    def exists(self, path: str) -> bool:
        """Return whether there is a file or folder.

        Raises:
            OSError, UserError: the (remote) file system cannot be queried.
        """
        return self._kind(path) is not pafs.FileType.NotFound

    def _kind(self, path: str) -> pafs.FileType:
        return self._asked(path, lambda: self.filesystem.get_file_info(self.locate(path)).type)

    def sizes(self, folder: str, suffix: str = "") -> dict[str, int]:
        """Return the bytes of a folder's files ending with `suffix`, by sorted name without it; empty without a folder.

        Raises:
            OSError, UserError: the (remote) folder cannot be read.
        """
        return {name: info.size for name, info in self._files(folder, suffix)}

    def times(self, folder: str, suffix: str = "") -> dict[str, int]:
        """Return when the files of `sizes` were written, in nanoseconds since 1970, where the file system knows it."""
        return {name: info.mtime_ns for name, info in self._files(folder, suffix) if info.mtime_ns}

    def _files(self, folder: str, suffix: str) -> Iterator[tuple[str, pafs.FileInfo]]:
        for name, info in self._entries(folder).items():
            if info.type is pafs.FileType.File and name.endswith(suffix):
                yield name.removesuffix(suffix), info

    def names(self, folder: str, suffix: str) -> list[str]:
        """List the names of `sizes`."""
        return list(self.sizes(folder, suffix))

    def folders(self, folder: str) -> list[str]:
        """List the sorted names of the folders in a folder; empty without it.

        Raises:
            OSError, UserError: as `sizes`.
        """
        return [name for name, info in self._entries(folder).items() if info.type is pafs.FileType.Directory]

    def _entries(self, folder: str) -> dict[str, pafs.FileInfo]:
        """Return everything in a folder, by sorted name; empty without it."""
        selector = pafs.FileSelector(self.locate(folder), allow_not_found=True)
        found = self._asked(folder, lambda: self.filesystem.get_file_info(selector))
        return {info.base_name: info for info in sorted(found, key=lambda info: info.base_name)}

    def stamps(self) -> dict[str, Stamp]:
        """Return the stamp of every file below the root, by its path.

        Raises:
            OSError, UserError: as `sizes`.
        """
        selector = pafs.FileSelector(self._base, allow_not_found=True, recursive=True)
        found = self._asked("", lambda: self.filesystem.get_file_info(selector))
        return {
            info.path.removeprefix(f"{self._base}/"): _stamp(info) for info in found if info.type is pafs.FileType.File
        }

    def stamp(self, path: str) -> Stamp:
        """Return the stamp of a file.

        Raises:
            OSError, UserError: as `exists`.
        """
        return _stamp(self._asked(path, lambda: self.filesystem.get_file_info(self.locate(path))))

    def inspect(self, path: str, look: Callable[[pa.NativeFile], T]) -> T:
        """Apply `look` to a file, local or remote; `look` may be called again.

        Raises:
            FileNotFoundError: it is not there.
            OSError, UserError: it cannot be read (from remote storage).
        """

        def act() -> T:
            if self.local:
                refuse_pipe(Path(self.locate(path)))
            with self.filesystem.open_input_file(self.locate(path)) as file:
                return look(file)

        return self._asked(path, act)

    def read(self, path: str) -> bytes:
        """Read all bytes of a file.

        Raises:
            FileNotFoundError, OSError, UserError: as `inspect`.
        """
        return self.inspect(path, lambda file: file.read())

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[pa.Buffer]:
        """Read the (start, length) ranges of a file in the given order: mapped if it is local, else in parallel.

        Raises:
            OSError, UserError: as `inspect`; and OSError where the file ends before a range does.
        """
        parts = self._mapped_parts(path, ranges) if self.local else self.inspect(path, partial(fetched, ranges=ranges))
        if any(len(part) != length for part, (_, length) in zip(parts, ranges, strict=True)):
            raise OSError(f"{self.show(path)} is cut off")
        return parts

    def _mapped_parts(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[pa.Buffer]:
        file = self.locate(path)
        refuse_pipe(Path(file))
        content = self._asked(path, lambda: self._mapped.read(file))
        return [content[start : start + length] for start, length in ranges]

    def read_json(self, path: str, remedy: str = "run the command that wrote it with --overwrite") -> Any:
        """Parse a JSON file.

        Raises:
            UserError: it is not JSON; the message ends with `remedy`.
            OSError: it is not there or cannot be read.
        """
        try:
            return from_json(self.read(path))
        except ValueError as error:
            raise UserError(f"{self.show(path)} is damaged ({error}); {remedy}") from error

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        """Write a file atomically, with the folders that it needs.

        Raises:
            OSError, UserError: the (remote) folder cannot be written.
        """
        target = self.locate(path)
        put = self._put if self.filesystem.type_name in OBJECT_STORES else self._put_and_rename
        self._asked(path, lambda: put(target, data))

    def _put_and_rename(self, target: str, data: bytes | pa.Buffer) -> None:
        folder, name = target.rsplit("/", 1)
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            self.filesystem.create_dir(folder, recursive=True)
            self._put(temporary, data)
            if self.local:
                flush(temporary.encode())
            self.filesystem.move(temporary, target)
        except BaseException:
            with suppress(OSError):
                self.filesystem.delete_file(temporary)
            raise

    def _put(self, target: str, data: bytes | pa.Buffer) -> None:
        with self.filesystem.open_output_stream(target, compression=None) as stream:
            for start in range(0, len(data), PIECE):
                if start:
                    stream.flush()  # waits until the last piece has gone, so that copies do not pile up
                stream.write(memoryview(data)[start : start + PIECE])

    def write_json(self, path: str, value: Any) -> None:
        """Write a value as JSON, indented, as `write` does.

        Raises:
            OSError: as `write`.
            TypeError: the value is none that JSON has.
        """
        self.write(path, as_json(value))

    def clear(self, path: str) -> None:
        """Delete a file or a folder, if it is there.

        Raises:
            OSError, UserError: it cannot be deleted (from remote storage).
        """
        deletes = {pafs.FileType.Directory: self.filesystem.delete_dir, pafs.FileType.File: self.filesystem.delete_file}
        if delete := deletes.get(self._kind(path)):
            self._asked(path, lambda: delete(self.locate(path)))

    def foreign(self, folder: str, own: str) -> list[str]:
        """List the paths in a folder that neither match the pattern `own` nor are left by an interrupted write.

        Raises:
            OSError, UserError: the (remote) folder cannot be read.
        """
        return [f"{folder}/{name}" for name in self._entries(folder) if not _belongs(name, own)]

    def clear_files(self, folder: str, own: str) -> list[str]:
        """Delete the files of a folder that are not `foreign`, and the folder if nothing else is in it.

        Returns:
            The paths that are foreign, which are kept.

        Raises:
            OSError, UserError: as `clear`.
        """
        entries = self._entries(folder)
        files = [name for name, info in entries.items() if info.type is pafs.FileType.File and _belongs(name, own)]
        for path in [folder] if len(files) == len(entries) else [f"{folder}/{name}" for name in files]:
            self.clear(path)
        return [f"{folder}/{name}" for name in entries if name not in files]

    def refuse_foreign(self, names: Iterable[str], writer: str, remedy: str) -> None:
        """Check that none of these files exists before `writer` has written any.

        Raises:
            UserError: one exists; the message ends with `remedy`.
            OSError: the file system cannot be queried.
        """
        for name in names:
            if self.exists(name):
                raise UserError(f"{self.show(name)} is there, but no {writer} wrote it; {remedy}")

    def clear_unfinished(self, folders: Sequence[str]) -> None:
        """Delete what killed writes left in these folders.

        Raises:
            OSError, UserError: as `clear`.
        """
        for folder in folders if self.filesystem.type_name not in OBJECT_STORES else ():
            for name in self.sizes(folder):
                if TEMPORARY.fullmatch(name):
                    self.clear(f"{folder}/{name}")


Root: TypeAlias = str | os.PathLike[str] | Storage
"""Folder, its address, or its storage."""
Roots: TypeAlias = Root | tuple[Storage, ...]
"""One folder, or several."""


def storages(roots: Roots) -> tuple[Storage, ...]:
    """Return the storage of each folder."""
    return roots if isinstance(roots, tuple) else (Storage.of(roots),)


def _restored(root: str, max_outage: float, answered: bool) -> Storage:
    return Storage(root, max_outage, answered=answered)


def _utf8(folder: Path) -> str:
    """Return the path as pyarrow expects it, as UTF-8 whatever the locale.

    Raises:
        UserError: the path is not text.
    """
    try:
        return os.fsencode(folder).decode()
    except UnicodeError:
        raise UserError(f"{folder} is not UTF-8: rename it, or set a locale of UTF-8, as LC_ALL=C.UTF-8") from None


def _remote(address: str) -> tuple[pafs.FileSystem, str]:
    """Open the file system of an address, whose requests fail after `ANSWER_SECONDS`; return it with the path there."""
    filesystem, base = pafs.FileSystem.from_uri(address)
    rebuild, (options,) = filesystem.__reduce__()
    if filesystem.type_name not in ANSWER_SECONDS or rebuild(options) != filesystem:  # which has options that it loses
        return filesystem, base
    return rebuild({**options, **ANSWER_SECONDS[filesystem.type_name]}), base


def _stamp(info: pafs.FileInfo) -> Stamp:
    return int(info.size or 0), int(info.mtime_ns or 0) // 10**9


def _belongs(name: str, own: str) -> bool:
    return bool(re.fullmatch(own, name) or TEMPORARY.fullmatch(name))


def as_json(value: Any) -> bytes:
    """Encode a value as `Storage.write_json` writes it."""
    return (json.dumps(value, indent=1) + "\n").encode()
