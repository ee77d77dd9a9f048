"""Signals that end a program in order: SIGTERM, and SIGHUP, which a closed terminal or a lost connection sends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from anatomask.errors import Stopped

ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], object], *numbers: signal.Signals) -> Iterator[None]:
    """Let `handler` answer signals inside the block, but for a SIGHUP that `nohup` has told the program to ignore.

    Outside the main thread, where no signal arrives, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    before = {number: signal.signal(number, handler) for number in numbers if number not in ignored}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Interrupt the block at SIGTERM or SIGHUP, so that what was begun is left in order.

    Inside the block it is a `KeyboardInterrupt`: Ray's functions pass no other exception of a signal on.

    Raises:
        Stopped: a signal came.
    """
    received: list[signal.Signals] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    try:
        with handled_by(interrupt, *ENDING):
            yield
    except KeyboardInterrupt:
        if received:
            raise Stopped(received[0]) from None
        raise
