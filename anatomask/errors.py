"""Errors that reach the user as a message instead of a traceback."""

import signal


class UserError(Exception):
    """Error of bad input. The message names the file or field and the remedy; the program ends with exit code 1."""


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
    """Return whether memory ran out, in whatever words: PyTorch's CPU allocator has no class of error for it."""
    return isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def unexpected(path: object, error: Exception) -> str:
    """Name the file at which an unforeseen failure of a case arose, and the remedy."""
    if is_out_of_memory(error):
        return f"{path}: {reason(error)}; leave it out, or prepare it on a machine with more"
    return f"{path} cannot be used ({type(error).__name__}: {reason(error)}); get it again or leave it out"


class Stopped(Exception):
    """Orderly end of the work after a signal. The program ends with the exit code that shells give that signal."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.exit_code = 128 + number


class Note(UserWarning):
    """Remark for the user while the work continues. The message is one sentence, shown once."""
