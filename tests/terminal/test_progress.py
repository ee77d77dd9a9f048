"""What a training shows while it runs, in a terminal and without one."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from anatomask.data.storage import Storage
from anatomask.terminal import progress
from anatomask.terminal.progress import NewLines, duration, figures_of, following, outages_told
from tests.outages import Network

CPU = {"train/loss": 0.8123, "train/samples_per_second": 12.34, "train/wait": 0.004}
GPU = {"train/gpu_memory_gib": 21.29, "train/gpu_memory_total_gib": 79.61, "train/gpu_use": 0.93}
LARGEST = {
    "train/loss": 123.4567,
    "train/r_t": 0.5,
    "train/samples_per_second": 1234.5,
    "train/wait": 1.0,
    "train/gpu_memory_gib": 139.8,
    "train/gpu_memory_total_gib": 139.8,
    "train/gpu_use": 1.0,
}


class Training:
    """A run's folder, what is written to it, and the console that shows it."""

    def __init__(self, folder: Path, *, terminal: bool) -> None:
        self.metrics, self.log = folder / "metrics.jsonl", folder / "log.txt"
        self.console = Console(file=io.StringIO(), force_terminal=terminal, width=80, _environ={"TERM": "xterm"})

    def row(self, step: int, **scalars: float) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps({"step": step, **CPU, **scalars}) + "\n")

    def say(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text)

    @contextmanager
    def followed(self, total: int = 2000, start: int = 0) -> Iterator[None]:
        with following(self.metrics, NewLines(self.log), total, "pretrain", start, self.console):
            yield

    @property
    def lines(self) -> list[str]:
        """All that was shown, without the codes that move the cursor."""
        assert isinstance(self.console.file, io.StringIO)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.console.file.getvalue()).splitlines()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The seconds that have passed; nothing polls but the test."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "POLL_SECONDS", 3600.0)
    yield now


@pytest.mark.parametrize("scalars", [{}, {"train/r_t": 0.25, **GPU}, LARGEST], ids=["cpu", "gpu", "largest"])
def test_a_terminal_shows_a_bar_and_the_figures_in_80_columns(tmp_path: Path, scalars: dict[str, float]) -> None:
    training = Training(tmp_path, terminal=True)
    with training.followed():
        training.row(120, **scalars)
    bar, figures = training.lines[-2:]
    assert re.search(r"pretrain ━+.* 120/2000 0:00:0\d left", bar) and len(bar) <= 80
    assert figures.strip() == "  ".join(figures_of({**CPU, **scalars})) and len(figures) <= 80 and "…" not in figures


def test_the_figures_are_those_that_the_row_holds() -> None:
    assert figures_of(CPU) == ["loss 0.812", "12.3 samples/s", "waiting 0.4 %"]
    whole = figures_of({**CPU, "train/r_t": 0.25, **GPU})
    assert "  ".join(whole) == "loss 0.812  r_t 0.25  12.3 samples/s  waiting 0.4 %  GPU 21.3/79.6 GiB 93 %"
    silent = {name: value for name, value in GPU.items() if name != "train/gpu_use"}
    assert figures_of({**CPU, **silent})[-1] == "GPU 21.3/79.6 GiB"


@pytest.mark.parametrize("terminal", [True, False])
def test_what_befell_the_run_stands_above_the_bar_or_between_the_lines(tmp_path: Path, terminal: bool) -> None:
    training = Training(tmp_path, terminal=terminal)
    training.say("of an earlier start\n")
    with training.followed():
        training.row(40)
        training.say("worker lost, goes on from update 40 [see log]\nhalf a li")
    where = training.lines.index("worker lost, goes on from update 40 [see log]")
    assert any("40/2000" in line for line in training.lines[where + 1 :])
    assert not any("earlier" in line or "half" in line for line in training.lines)


def test_lines_come_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    lines = NewLines(path)
    assert lines.read() == []
    path.write_text("one\ntwo\nthr")
    assert lines.read() == ["one", "two"]
    with path.open("a") as file:
        file.write("ee\n")
    assert lines.read() == ["three"] and lines.read() == []
    path.unlink()  # --overwrite
    assert lines.read() == []
    path.write_text("anew\n")
    assert lines.read() == ["anew"]


def test_without_a_terminal_lines_come_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    training = Training(tmp_path, terminal=False)
    polls: list[Callable[[], None]] = []

    @contextmanager
    def by_hand(show: Callable[[], None]) -> Iterator[None]:
        polls.append(show)
        yield

    monkeypatch.setattr(progress, "polling", by_hand)
    with training.followed():
        for step in range(10, 2001, 10):
            clock[0] += 3
            training.row(step, **{"train/r_t": 0.25})
            polls[0]()
    told = [int(re.match(r"pretrain (\d+)/2000", line)[1]) for line in training.lines[1:]]  # type: ignore[index]
    assert training.lines[0] == "pretrain: starting 0/2000"
    assert told == [10, *range(50, 2000, 40), 2000]  # 12 seconds apart, and the last
    assert training.lines[5].startswith("pretrain 170/2000  loss 0.812  r_t 0.25  12.3 samples/s  waiting 0.4 %")
    assert all(line.endswith(" left") for line in training.lines[2:-1])
    assert training.lines[-1].endswith("  waiting 0.4 %")
    assert not any("\x1b" in line for line in training.console.file.getvalue())  # type: ignore[attr-defined]


def test_tasks_are_told_in_plain_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=80)
    polls: list[Callable[[], None]] = []

    @contextmanager
    def by_hand(show: Callable[[], None]) -> Iterator[None]:
        polls.append(show)
        yield

    monkeypatch.setattr(progress, "polling", by_hand)
    with progress.progress_shown(console) as shown:
        shown.get_time = lambda: clock[0]
        writing = shown.add_task("resampling [and] writing", total=50, detail="scans")
        for _ in range(50):
            polls[0]()
            clock[0] += 3
            shown.advance(writing)
        polls[0]()
        shown.add_task("taking the fingerprint", total=2, detail="")
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    numbers = [int(re.search(r" (\d+)/50 scans", line)[1]) for line in lines[:-1]]  # type: ignore[index]
    assert numbers == [*range(0, 50, 4), 50]  # 12 seconds apart, and the last
    assert lines[0] == "resampling [and] writing 0/50 scans" and lines[3].endswith("  2 min left")
    assert lines[-2:] == ["resampling [and] writing 50/50 scans", "taking the fingerprint 0/2"]


def test_what_ends_within_a_moment_is_told_once(clock: list[float]) -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=80)
    with pytest.raises(KeyboardInterrupt), progress.progress_shown(console) as shown:
        shown.add_task("writing phantoms", total=2, completed=1, detail="scans")
        raise KeyboardInterrupt
    assert isinstance(console.file, io.StringIO) and console.file.getvalue() == "writing phantoms 1/2 scans\n"


def test_the_time_left_is_that_of_the_updates_left(tmp_path: Path) -> None:
    now = [0.0]
    bar = progress.progress_bar(Console(file=io.StringIO()))
    bar.get_time = lambda: now[0]
    task = bar.add_task("pretrain", total=2000, detail="")
    for step in (10, 20, 30):
        now[0] += 40
        bar.update(task, completed=step)
    assert bar.tasks[0].time_remaining == pytest.approx(4 * 1970, abs=1)


def test_rows_of_an_earlier_start_are_not_shown(tmp_path: Path) -> None:
    training = Training(tmp_path, terminal=False)
    for step in (100, 137):
        training.row(step)
    with training.followed(start=120):
        pass
    assert training.lines == ["pretrain: starting 120/2000"]
    with training.followed(start=120):
        training.metrics.write_text("")  # as the recorder does, down to the checkpoint
        training.row(120)
        training.row(137, **{"train/loss": 0.5})
    assert [line.split("  ")[:2] for line in training.lines[2:]] == [["pretrain 137/2000", "loss 0.500"]]


def test_a_run_that_is_stopped_tells_how_far_it_came(tmp_path: Path, clock: list[float]) -> None:
    training = Training(tmp_path, terminal=False)
    with pytest.raises(KeyboardInterrupt), training.followed():
        training.row(10)
        raise KeyboardInterrupt
    assert training.lines[-1].startswith("pretrain 10/2000  loss")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59, "59 s"), (59.6, "1 min"), (720, "12 min"), (3599, "1 h 00 min"), (11100, "3 h 05 min"), (187200, "2 d 4 h")],
)
def test_durations_read_easily(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_outage_for_which_tasks_wait_is_told(
    s3: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "ASK_SECONDS", 0.05)
    network = Network(s3.endpoint)
    storage = Storage(replace(s3, endpoint=network.endpoint).address("folder"), answered=True)

    def await_words(words: str) -> None:
        while words not in caplog.text:
            time.sleep(0.05)

    with outages_told(storage):
        network.cut()
        await_words("s3://bucket/folder/.: storage does not answer")
        network.mend()
        await_words("storage answers again")
    network.cut()
