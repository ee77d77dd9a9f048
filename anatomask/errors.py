"""The errors that reach the user as a message instead of a traceback."""

import signal


class UserError(Exception):
    """Bad input. The message names the file or field and the remedy; the program ends with exit code 1."""


class Stopped(Exception):
    """A signal ended the work in good order. The program ends with the exit code that shells give that signal."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.exit_code = 128 + number
