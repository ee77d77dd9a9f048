"""Progress in the terminal."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

POLL_SECONDS = 0.5


def progress_bar() -> Progress:
    """A bar that says what is being done, how far it is, and how long it still takes; fits 80 columns."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[detail]}"),
        console=Console(stderr=True),
    )


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
def following(metrics: Path, total: int, description: str, start: int) -> Iterator[None]:
    """While a training runs (elsewhere), show the progress that it writes to `metrics.jsonl`."""

    def show() -> None:
        row = last_row(metrics)
        if row is not None:
            detail = f"loss {row['train/loss']:.3f} {row['train/samples_per_second']:.1f}/s"
            progress.update(task, completed=row["step"], description=description, detail=detail)

    with progress_bar() as progress:
        task = progress.add_task(f"{description}: starting", total=total, completed=start, detail="")
        with polling(show):
            yield


def last_row(metrics: Path) -> dict[str, float] | None:
    """The last whole row of a `metrics.jsonl` that has a loss, without reading all of it; None when there is none."""
    if not metrics.exists():
        return None
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 65536))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        if b'"train/loss"' in line and line.startswith(b"{"):
            return dict(json.loads(line))
    return None
