"""Listing of a folder of raw data: a bad entry neither hides the others nor stops the listing."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from anatomask.errors import UserError, reason

SYSTEM_FOLDERS = ("lost+found", "$RECYCLE.BIN", "System Volume Information")
"""Folders that an operating system keeps for itself at the top of a disk."""

KINDS = {
    0: "a link to nothing",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


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


def files_below(source: Path) -> Iterator[Path]:
    """Find all that is no folder below `source`, links and FIFOs included: whether it can be read shows when it is.

    Links to folders are followed, but no folder is listed twice: a scan is found once, and a link to a folder around
    it makes no circle. Hidden entries are left out, and what is in hidden folders.
    """
    return (Path(entry.path) for _, entries, _ in _folders(source) for entry in entries)


def faults(source: Path) -> Iterator[tuple[Path, str]]:
    """Find what cannot be used below `source`, where `files_below` looks, and why: folders that this account may not
    list or enter, and entries that are neither file nor folder (dangling links, FIFOs, sockets).
    """
    for folder, entries, why in _folders(source):
        if why:
            yield folder, why
        for entry in entries:
            path = Path(entry.path)
            if not entry.is_file(follow_symlinks=False) and not is_file(path):
                yield path, _kind(_mode(path))


def _folders(source: Path) -> Iterator[tuple[Path, list[os.DirEntry[str]], str]]:
    """List `source` and the folders below it, linked ones last: each with its entries that are no folders, sorted, and
    the reason why it cannot be listed, if so.
    """
    pending = deque([(source, source.resolve())])
    seen: set[Path] = set()
    while pending:
        folder, real = pending.popleft()
        if real in seen:
            continue
        seen.add(real)
        if not os.access(folder, os.R_OK | os.X_OK):
            yield folder, [], "permission denied"
            continue
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            yield folder, [], reason(error)
            continue
        others: list[os.DirEntry[str]] = []
        inside: list[tuple[Path, Path]] = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
                continue
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                inside.append((path, real / entry.name))
            elif entry.is_symlink() and is_folder(path):
                pending.append((path, path.resolve()))
            else:
                others.append(entry)
        pending.extendleft(reversed(inside))
        yield folder, others, ""


def _mode(path: Path) -> int:
    """Return the mode of what `path` leads to; 0 if it cannot be read."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def _kind(mode: int) -> str:
    return KINDS.get(stat.S_IFMT(mode), "something else")
