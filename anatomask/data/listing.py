"""Listing of a folder of raw data: a bad entry neither hides the others nor stops the listing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from anatomask.errors import UserError, reason

SYSTEM_FOLDERS = ("lost+found", "$RECYCLE.BIN", "System Volume Information")
"""Folders that an operating system keeps for itself at the top of a disk."""

KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def is_file(path: Path) -> bool:
    """Return whether `path` is a regular file that this account may see; never raise."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder that this account may see; never raise."""
    return stat.S_ISDIR(_mode(path))


def is_entry(path: Path) -> bool:
    """Return whether the name exists and is no folder; dangling links and FIFOs count, and reading them fails."""
    return os.path.lexists(path) and not is_folder(path)


def require_file(path: Path) -> None:
    """Check that `path` is a regular file before a library opens it; opening a FIFO would block for ever.

    Raises:
        UserError: `path` does not exist, is a dangling link, is no regular file, or is hidden from this account.
    """
    remedy = "get the file again, or leave the case out"
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(f"{path} is a link to {path.readlink()}, which is not there; {remedy}") from None
        raise UserError(f"{path} is missing; {remedy}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); give this account access, or {remedy}") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder, not a file; {remedy}")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {_kind(mode)}, not a file; {remedy}")


def names_in(folder: Path) -> list[str]:
    """List the names in a folder, sorted.

    Raises:
        UserError: the folder cannot be listed.
    """
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 (names are all that is wanted)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({reason(error)}); give this account access to it") from error


def faults(source: Path) -> Iterator[tuple[Path, str]]:
    """Find what cannot be used below `source`, and why: folders that this account may not list or enter, and entries
    that are neither file nor folder (dangling links, FIFOs, sockets). Hidden entries are left out.

    Links to folders are not followed, as in `Path.rglob`.
    """
    pending = [source]
    while pending:
        folder = pending.pop()
        if not os.access(folder, os.R_OK | os.X_OK):
            yield folder, "permission denied"
            continue
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            yield folder, reason(error)
            continue
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
                continue
            if entry.is_symlink():
                if not (mode := _mode(path)):
                    yield path, "a link to nothing"
                elif stat.S_ISDIR(mode) and not os.access(path, os.R_OK | os.X_OK):
                    yield path, "permission denied"
            elif entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif not entry.is_file(follow_symlinks=False):
                yield path, _kind(_mode(path))


def _mode(path: Path) -> int:
    """Return the mode of what `path` leads to; 0 if it cannot be read."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def _kind(mode: int) -> str:
    return KINDS.get(stat.S_IFMT(mode), "something else")
