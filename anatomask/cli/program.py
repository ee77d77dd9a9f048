"""Command line of one verb: settings in, exit code out."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

from rich.console import Console
from rich.table import Table

from anatomask.cli.arguments import parse, status_question
from anatomask.config import NAMED_INPUTS
from anatomask.data.addresses import is_address
from anatomask.errors import Note, Stopped, UserError, in_words
from anatomask.recipes import RECIPES
from anatomask.terminal.printing import message_text, never_fail_to_print


class Stage(Protocol):
    """Interface of a module of `anatomask.stages`."""

    stage: Callable[..., int]
    """Function that runs the stage: `stage(config, overwrite=...)` returns the exit code."""
    plan: Callable[[Any], list[tuple[str, str]]]
    """Function that returns the rows of the dry run."""


def run(verb: str, load: Callable[[], Stage], argv: Sequence[str] | None = None) -> int:
    """Parse the settings of `verb`, then load its stage, and print its plan (`--dry-run`) or run it.

    The stage is loaded last because loading takes seconds, which `--help` and bad settings need not wait for.

    Returns:
        The exit code: 0, 1 after a user's error (printed as one message), 130 after Ctrl-C, 143 after SIGTERM, or 129
        after SIGHUP.
    """
    never_fail_to_print()
    console = Console(stderr=True)
    try:
        arguments = sys.argv[1:] if argv is None else argv
        with notes_shown(console, verb):
            if verb == "sweep" and (asked := status_question(arguments)):
                return cast(Any, load()).show_status(asked.runs, asked.name, asked.storage)
            invocation = parse(verb, arguments, RECIPES)
            require_inputs(verb, invocation.config)
            module = load()
            if invocation.dry_run:
                show_plan(verb, module.plan(invocation.config))
                return 0
            return module.stage(invocation.config, overwrite=invocation.overwrite)
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if (said := in_words(error)) is None:
            raise
        return _fail(console, verb, said)
    except (KeyboardInterrupt, Stopped) as stop:
        console.print(f"anatomask {verb}: stopped. The same command goes on where it was.")
        return stop.exit_code if isinstance(stop, Stopped) else 130


def require_inputs(verb: str, config: Any) -> None:
    """Check that the files and folders exist that the settings name, before the stage is loaded.

    Raises:
        UserError: one does not.
        OSError: the path is too long, or leads through what may not be entered.
    """
    for field in NAMED_INPUTS.get(verb, ()):
        value = getattr(config, field)
        for path in value if isinstance(value, tuple) else (value,):
            if path and not is_address(path):
                try:
                    os.lstat(path)
                except FileNotFoundError:
                    raise UserError(f"{path}: there is no such file or folder; check the path") from None


@contextmanager
def notes_shown(console: Console, verb: str) -> Iterator[None]:
    """Print each `Note` raised as a warning inside the block, once, as one line; show other warnings as Python does."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", Note)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, Note):
                return usual(message, category, *place, **more)
            console.print(f"[bold yellow]anatomask {verb}:[/bold yellow] ", end="")
            console.print(str(message), markup=False, highlight=False, soft_wrap=True)

        warnings.showwarning = show
        yield


def show_plan(verb: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print the plan of a stage as a table of two columns."""
    table = Table(title=f"Plan of anatomask {verb} (nothing was started)", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)


def _fail(console: Console, verb: str, message: str) -> int:
    console.print(f"[bold red]anatomask {verb}:[/bold red] ", end="")
    console.print(message_text(message), markup=False, highlight=False, soft_wrap=True)
    return 1
