from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from anatomask.errors import Stopped
from anatomask.training import stopping
from anatomask.training.stopping import run_or_leave, run_until_stopped, stop_file


def signalled(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_the_workers_and_waits_for_them(number: signal.Signals, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        signalled(number)
        while not stop_file(tmp_path).exists():
            time.sleep(0.01)
        checkpoint.touch()
        stop_file(tmp_path).unlink()

    with pytest.raises(Stopped, match=number.name) as stopped:
        run_until_stopped(work, tmp_path)
    assert stopped.value.exit_code == 128 + number
    assert checkpoint.exists()
    assert number.name in (tmp_path / "log.txt").read_text()
    assert signal.getsignal(signal.SIGINT) is before


def test_it_does_not_wait_for_a_ray_that_the_same_signal_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.1)
    over = threading.Event()

    def work() -> None:
        signalled(signal.SIGTERM)
        while not stop_file(tmp_path).exists():
            time.sleep(0.01)
        stop_file(tmp_path).unlink()  # the workers have answered
        over.wait(60)

    try:
        with pytest.raises(Stopped):
            run_until_stopped(work, tmp_path)
        assert not over.is_set()
    finally:
        over.set()


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    over = threading.Event()

    def work() -> None:
        signalled(signal.SIGINT)
        while not stop_file(tmp_path).exists():
            time.sleep(0.01)
        signalled(signal.SIGINT)
        over.wait(60)

    try:
        with pytest.raises(KeyboardInterrupt):
            run_until_stopped(work, tmp_path)
    finally:
        over.set()
    assert not stop_file(tmp_path).exists()


def test_without_a_signal_it_is_as_if_work_were_called(tmp_path: Path) -> None:
    stop_file(tmp_path).touch()  # left by a run that was killed
    seen: list[bool] = []
    run_until_stopped(lambda: seen.append(stop_file(tmp_path).exists()), tmp_path)
    assert seen == [False]
    with pytest.raises(ZeroDivisionError):
        run_until_stopped(lambda: 1 // 0, tmp_path)
    thread = threading.Thread(target=run_until_stopped, args=(lambda: seen.append(True), tmp_path))
    thread.start()
    thread.join()
    assert seen == [False, True]


def test_work_without_a_checkpoint_is_left_once_the_file_is_there(tmp_path: Path) -> None:
    over, done = threading.Event(), list[int]()
    run_or_leave(lambda: done.append(1), stop_file(tmp_path))
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        run_or_leave(lambda: 1 // 0, stop_file(tmp_path))

    def work() -> None:
        stop_file(tmp_path).touch()
        over.wait(60)

    try:
        with pytest.raises(Stopped) as stopped:
            run_or_leave(work, stop_file(tmp_path))
        assert not over.is_set() and stopped.value.exit_code == 0
    finally:
        over.set()
