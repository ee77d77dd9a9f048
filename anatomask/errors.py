"""The one error that reaches the user as a message instead of a traceback."""


class UserError(Exception):
    """Bad input. The message names the file or field and the remedy; the program ends with exit code 1."""
