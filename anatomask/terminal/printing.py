"""Printing of text from outside: names and messages in any encoding, of any length."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Mapping

from rich.console import Console

from anatomask.names import readable

LONGEST = 4000
"""Characters of a message at most."""


def never_fail_to_print() -> None:
    """Print characters that the terminal's encoding lacks (± and umlauts in ASCII) as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def quiet_matplotlib() -> None:
    """Keep Matplotlib from printing, when it is imported, that it cannot cache its fonts in the home folder."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def message_text(message: str) -> str:
    """Return a message of bounded length, with the control characters that names may hold as escapes."""
    kept = message if len(message) <= LONGEST else f"{message[:LONGEST]} …"
    return "\n".join(map(readable, kept.split("\n")))


def remark(text: str) -> None:
    """Print a remark that the user should know besides the result."""
    Console(stderr=True).print(message_text(text), markup=False, highlight=False, soft_wrap=True)


def show_failures(verb: str, reasons: Mapping[str, str]) -> None:
    """Print why each case or trial of a verb failed, a line each."""
    console = Console(stderr=True)
    for name, reason in reasons.items():
        console.print(f"[bold red]anatomask {verb}:[/bold red] ", end="")
        console.print(message_text(f"{name}: {reason}"), markup=False, highlight=False, soft_wrap=True)
