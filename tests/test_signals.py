from __future__ import annotations

import os
import signal

import pytest

from anatomask.errors import Stopped
from anatomask.signals import handled_by, stopped_by_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_block_with_its_exit_code(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=number.name) as stopped, stopped_by_signals():
        os.kill(os.getpid(), number)
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_of_two_blocks_the_inner_one_answers() -> None:
    seen: list[int] = []
    with pytest.raises(Stopped), stopped_by_signals():
        with handled_by(lambda number, frame: seen.append(number), signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)


def test_ctrl_c_stays_itself() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's own processes ignore it
    try:
        with pytest.raises(KeyboardInterrupt), stopped_by_signals():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
