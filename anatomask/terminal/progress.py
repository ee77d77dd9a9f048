"""Progress: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.parsing import from_json

POLL_SECONDS = 0.5
ASK_SECONDS = 20.0
ESTIMATE_SECONDS = 600
"""Seconds of past work from whose speed the time left is estimated."""
SHORTEST_PAUSE = 10.0
LONGEST_PAUSE = 300.0
"""Seconds between plain lines: a hundredth of the elapsed time, within these two limits."""


def progress_bar(console: Console | None = None) -> Progress:
    """Make a bar with the task, its progress and the time left; it fits 80 columns."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[detail]}"),
        console=console or Console(stderr=True),
        speed_estimate_period=ESTIMATE_SECONDS,
    )


@contextmanager
def progress_shown(console: Console | None = None) -> Iterator[Progress]:
    """Show the tasks that are added within the block: as bars in a terminal, as plain lines elsewhere."""
    console = console or Console(stderr=True)
    progress = progress_bar(console)
    if is_live(console):
        with progress:
            yield progress
        return
    lines = TaskLines(progress, console)
    try:
        with polling(lines.show):
            yield progress
    finally:
        lines.show(at_the_end=True)


def is_live(console: Console) -> bool:
    """Return whether the console can redraw what it shows."""
    return console.is_terminal and not console.is_dumb_terminal


def pause_after(seconds: float) -> float:
    """Return the seconds between plain lines after `seconds` of work."""
    return min(max(seconds / 100, SHORTEST_PAUSE), LONGEST_PAUSE)


class TaskLines:
    """Plain lines about the tasks of a progress: one at its start, one at its end, and some in between."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self.progress = progress
        self.console = console
        self.began = time.monotonic()
        self.told: dict[TaskID, tuple[float, float]] = {}
        """Number of completed steps and time of the last line, by task."""

    def show(self, *, at_the_end: bool = False) -> None:
        """Print what is due: what is new, what has ended, and what was not told for a while."""
        now = time.monotonic()
        for task in self.progress.tasks:
            completed, when = self.told.get(task.id, (-1.0, -math.inf))
            due = task.finished or at_the_end or now - when >= pause_after(now - self.began)
            if task.completed != completed and due:
                self.told[task.id] = task.completed, now
                self.console.print(line_of(task), markup=False, highlight=False, soft_wrap=True)


def line_of(task: Task) -> str:
    """Format a task as a line: what it does, how far it is, and the time left."""
    detail = f" {task.fields['detail']}" if task.fields.get("detail") else ""
    left = f"  {duration(task.time_remaining)} left" if task.time_remaining and not task.finished else ""
    return f"{task.description} {task.completed:.0f}/{task.total or 0:.0f}{detail}{left}"


@contextmanager
def polling(show: Callable[[], None]) -> Iterator[None]:
    """Call `show` every half second in the background, and once more at the end."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_SECONDS):
            show()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        show()


@contextmanager
def outages_told(storage: Storage) -> Iterator[None]:
    """Poll remote storage within the block, to report here an outage for which tasks wait elsewhere."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(ASK_SECONDS):
            with suppress(UserError, OSError):  # the tasks say so
                storage.names(".", "")

    if not storage.local:
        threading.Thread(target=ask, daemon=True).start()
    try:
        yield
    finally:
        stop.set()


@contextmanager
def following(
    metrics: Path, journal: NewLines, total: int, description: str, start: int, console: Console | None = None
) -> Iterator[None]:
    """Show, during a training elsewhere, the figures that it writes to `metrics.jsonl` and the lines of its journal.

    The training has `total` updates, of which `start` are done.
    """
    console = console or Console(stderr=True)
    progress = progress_bar(console)
    bar = progress.add_task(f"{description}: starting", total=total, completed=start, detail="")
    before = last_row(metrics)  # of an earlier start: what came after its checkpoint is done again

    def new_row() -> Mapping[str, float] | None:
        row = last_row(metrics)
        if row is None or row == before or row["step"] <= start:
            return None
        progress.update(bar, completed=row["step"], description=description)
        return row

    shown = in_terminal if is_live(console) else in_lines
    with shown(console, progress, journal, new_row):
        yield


@contextmanager
def in_terminal(
    console: Console, progress: Progress, journal: NewLines, new_row: Callable[[], Mapping[str, float] | None]
) -> Iterator[None]:
    """Show the bar, the newest row's figures below it, and the journal's lines above."""
    figures = Text(no_wrap=True, overflow="ellipsis")

    def show() -> None:
        for line in journal.read():
            console.print(line, markup=False, highlight=False)
        if (row := new_row()) is not None:
            figures.plain = "  " + "  ".join(figures_of(row))

    with Live(console=console, get_renderable=lambda: Group(progress, figures)), polling(show):
        yield


@contextmanager
def in_lines(
    console: Console, progress: Progress, journal: NewLines, new_row: Callable[[], Mapping[str, float] | None]
) -> Iterator[None]:
    """Print a line for the first row, for the last, and for some in between, and the journal's lines."""
    (task,) = progress.tasks
    began = told = time.monotonic()
    step: float | None = None

    def write(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(*, at_the_end: bool = False) -> None:
        nonlocal told, step
        for line in journal.read():
            write(line)
        row, now = new_row(), time.monotonic()
        due = step is None or at_the_end or now - told >= pause_after(now - began)
        if row is None or row["step"] == step or not due:
            return
        told, step = now, row["step"]
        left = [f"{duration(task.time_remaining)} left"] if task.time_remaining else []
        write("  ".join([f"{task.description} {step:.0f}/{task.total:.0f}", *figures_of(row), *left]))

    write(f"{task.description} {task.completed:.0f}/{task.total:.0f}")
    try:
        with polling(show):
            yield
    finally:
        show(at_the_end=True)


class NewLines:
    """Reader of the lines that a file gains from now on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = path.stat().st_size if path.exists() else 0

    def read(self) -> list[str]:
        """Return the whole lines written since the last call."""
        size = self.path.stat().st_size if self.path.exists() else 0
        self.position = self.position if self.position <= size else 0  # another file of that name
        if self.position == size:
            return []
        with self.path.open("rb") as file:
            file.seek(self.position)
            whole, newline, _ = file.read().rpartition(b"\n")
        self.position += len(whole + newline)
        return whole.decode(errors="replace").splitlines()


def figures_of(row: Mapping[str, float]) -> list[str]:
    """Format what a row of `metrics.jsonl` says about the training, 74 columns at most, without missing figures."""
    of = {name.removeprefix("train/"): value for name, value in row.items()}
    parts = [f"loss {of['loss']:.3f}"]
    if "r_t" in of:
        parts.append(f"r_t {of['r_t']:.2f}")
    if "samples_per_second" in of:
        parts.append(f"{short(of['samples_per_second'])} samples/s")
    if "wait" in of:
        parts.append(f"waiting {short(100 * of['wait'])} %")
    if "gpu_memory_gib" in of:
        parts.append(f"GPU {short(of['gpu_memory_gib'])}/{short(of['gpu_memory_total_gib'])} GiB")
    if "gpu_use" in of:
        parts[-1] += f" {100 * of['gpu_use']:.0f} %"
    return parts


def short(number: float) -> str:
    """Format a number with one decimal where there is room for it: 0.4, 79.6, 140."""
    return f"{number:.1f}" if number < 99.95 else f"{number:.0f}"


def duration(seconds: float) -> str:
    """Format a rough duration: 40 s, 12 min, 3 h 05 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def last_row(metrics: Path) -> dict[str, float] | None:
    """Return the last whole row of a `metrics.jsonl` that has a loss, without reading all of it; else None."""
    if not metrics.exists():
        return None
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 65536))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        if b'"train/loss"' in line and line.startswith(b"{"):
            with suppress(ValueError):  # a damaged line is ignored
                return dict(from_json(line))
    return None
