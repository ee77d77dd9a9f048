"""Local files: written whole or not at all, and by one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anatomask.errors import UserError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError that is raised within say which file it is about: that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def refuse_pipe(path: Path, flag: str = "") -> None:
    """Raise UserError, naming the `flag`, for a named pipe: it may never end. A shell's (`<(command)`) is read."""
    if path.is_fifo() and not path.is_relative_to("/dev"):
        raise UserError(f"{flag}{' ' * bool(flag)}{path} is a named pipe; put a file there")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; what was written takes the place of `path` in one step.

    It is flushed to the disk first. Where the block raises, it is removed, and `path` stays as it was.

    Raises:
        OSError: naming `path`, from within the block, too.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush(temporary)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether no other process is in this block with the same `path`, an empty file that stays.

    It is over with the process, whatever ends that. Where the file system knows no locks, it cannot be told: yes.
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
    """Flush a file, or the names in a folder, to the disk: what follows survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
