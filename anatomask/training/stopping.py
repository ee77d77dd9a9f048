"""Stopping a training from outside: a signal to the driver, a file in the run's folder for the workers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from anatomask.errors import Stopped, UserError
from anatomask.signals import ENDING, handled_by
from anatomask.training.journal import note

POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0
"""Seconds for what follows the workers' end. A signal to all processes of a job ends Ray too, silently."""


def stop_file(run: Path) -> Path:
    """Return the path of the file at which workers write a checkpoint and end. Rank 0 removes it as its last action."""
    return run / "stop"


def run_until_stopped(work: Callable[[], object], run: Path) -> None:
    """Run `work` in a thread; at a signal, ask the workers of `run` to write a checkpoint and end, and wait.

    The signals are SIGINT, SIGTERM and SIGHUP; a second one ends the wait. Outside the main thread, where no signal
    arrives, `work` just runs.

    Raises:
        Stopped: a signal came; the workers' checkpoint is written.
    """
    stop_file(run).unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        work()
        return
    received: list[signal.Signals] = []

    def ask(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        if len(received) > 1:
            raise KeyboardInterrupt
        stop_file(run).touch()
        note(run, f"{received[0].name}: stopping after a checkpoint (a second one stops at once)")

    failure: list[BaseException] = []

    def attempt() -> None:
        try:
            work()
        except BaseException as error:  # handed to the main thread, whatever it is
            failure.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    answered: float | None = None
    try:
        with handled_by(ask, signal.SIGINT, *ENDING):
            thread.start()
            while thread.is_alive() and (answered is None or time.monotonic() < answered + GRACE_SECONDS):
                thread.join(POLL_SECONDS)
                if received and answered is None and not stop_file(run).exists():
                    answered = time.monotonic()
    finally:
        stop_file(run).unlink(missing_ok=True)
    if failure and (not received or isinstance(failure[0], UserError | OSError)):
        raise failure[0]
    if received:
        raise Stopped(received[0])
