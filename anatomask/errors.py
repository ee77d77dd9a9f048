"""Errors that reach the user as a message instead of a traceback."""

import errno
import os
import signal

REMEDIES = {
    errno.ENOENT: "there is no such file or folder; check the path",
    errno.ENOSPC: "no space is left on the device; free some or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose a folder that you may use",
    errno.EPERM: "permission denied; choose a folder that you may use",
    errno.ENOTDIR: "a file is in the way; choose another folder",
    errno.EEXIST: "a file is in the way; choose another folder",
    errno.EISDIR: "a folder is in the way; choose another path",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "the machine has too many files open; close some programs",
}
"""Reason and remedy for an error of the operating system, by its number; others show the system's own words."""


MORE_MEMORY = "close other programs, lower --cluster.workers, or take a machine with more"


class UserError(Exception):
    """Error of bad input. The message names the file or field and the remedy; the program ends with exit code 1."""


def in_words(error: BaseException) -> str | None:
    """Describe an error that a user can mend, or the one by which a task of Ray failed; None for a defect."""
    for one in (getattr(error, "cause", None), error):
        if isinstance(one, UserError):
            return str(one)
        if isinstance(one, BaseException) and is_out_of_memory(one):
            return f"memory ran out{f' ({first_line(one)})' if str(one) else ''}; {MORE_MEMORY}"
        if isinstance(one, OSError):
            return _of_the_system(one)
    return None


def _of_the_system(error: OSError) -> str:
    """Describe an error of the operating system: the file, the reason and the remedy."""
    if error.errno is None:
        return str(error) or type(error).__name__
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else "output"
    return f"{name}: {REMEDIES.get(error.errno, os.strerror(error.errno))}"


def reason(error: BaseException) -> str:
    """Format the error of a library in one line, without the path that our own message already names."""
    said = " ".join(str(getattr(error, "strerror", None) or error).split())
    if is_out_of_memory(error):
        return f"it needs more memory than there is{f': {said}' if said else ''}"
    return said or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, in whatever words.

    PyTorch's CPU allocator has no class of error for it; PyTorch's for GPUs and Ray's have one name.
    """
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "DefaultCPUAllocator: can't allocate memory" in str(error)


def unexpected(path: object, error: Exception) -> str:
    """Name the file at which an unforeseen failure of a case arose, and the remedy."""
    if is_out_of_memory(error):
        return f"{path}: {reason(error)}; leave it out, or prepare it on a machine with more"
    return f"{path} cannot be used ({type(error).__name__}: {reason(error)}); get it again or leave it out"


class Stopped(Exception):
    """Orderly end of the work after a signal, or a request by a file.

    The program ends with the exit code that shells give the signal, or with 0 where it was asked by a file.
    """

    def __init__(self, number: signal.Signals | None = None) -> None:
        super().__init__(f"stopped by {number.name if number else 'a file'}")
        self.exit_code = 128 + number if number else 0


class Note(UserWarning):
    """Remark for the user while the work continues. The message is one sentence, shown once."""
