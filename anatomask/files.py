"""Local files: atomic writes, locks, and errors that name the file."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anatomask.errors import UserError


@contextmanager
def add_filename(path: Path) -> Iterator[None]:
    """Add `path` to an OSError raised within the block that names no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def refuse_pipe(path: Path, flag: str = "") -> None:
    """Refuse a named pipe, which may never end. A shell's own pipe (`<(command)`) is read.

    Raises:
        UserError: `path` is a named pipe; the message names the `flag`.
    """
    if path.is_fifo() and not path.is_relative_to("/dev"):
        raise UserError(f"{flag}{' ' * bool(flag)}{path} is a named pipe; put a file there")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to, and then replace `path` by it atomically.

    The file is flushed to the disk first. Where the block raises, the temporary file is removed and `path` is
    unchanged.

    Raises:
        OSError: naming `path`, even if raised within the block.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with add_filename(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush(temporary)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def exclusive_lock(path: Path) -> Iterator[bool]:
    """Take an exclusive lock on `path`; yield False if another process holds it.

    The lock ends with the block or the process; the empty file remains. Where the file system has no locks, yield True.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True


def file_digest(path: Path) -> str:
    """Digest of a file's content: SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path | bytes) -> None:
    """Flush a file, or the names in a folder, to the disk, so that it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
