"""Stopping trainings from outside: a signal to the driver, for the workers a file in the folder of the run or sweep."""

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
    """Return the path of the file at which the workers of a run, or of all a sweep's, write a checkpoint and end.

    Rank 0 of a run removes the run's as its last action.
    """
    return run / "stop"


class Attempt(threading.Thread):
    """Thread that does some work and keeps what it raised; the process ends without it."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Do the work."""
        try:
            self.work()
        except BaseException as error:  # handed to the thread that waits, whatever it is
            self.failure = error


def run_or_leave(work: Callable[[], object], stop: Path) -> None:
    """Run `work` in a thread, and leave it there once the file `stop` exists.

    Raises:
        Stopped: the file exists.
    """
    attempt = Attempt(work)
    attempt.start()
    while attempt.is_alive():
        if stop.exists():
            raise Stopped
        attempt.join(POLL_SECONDS)
    if attempt.failure is not None:
        raise attempt.failure


def run_until_stopped(work: Callable[[], object], run: Path) -> None:
    """Run `work` in a thread; at a signal, ask the workers of `run` to write a checkpoint and end, and wait.

    `run` is the folder of a training, or of a sweep for the trainings of its trials. The signals are SIGINT, SIGTERM
    and SIGHUP; a second one ends the wait. Outside the main thread, where no signal arrives, `work` just runs.

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

    thread = Attempt(work)
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
    if thread.failure is not None and (not received or isinstance(thread.failure, UserError | OSError)):
        raise thread.failure
    if received:
        raise Stopped(received[0])
