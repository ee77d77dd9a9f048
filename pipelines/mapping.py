"""Mapping a function over the cases of a data set by Ray Data tasks."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import ray
import ray.data
from rich.progress import Progress

MOST_TASKS = 2000
"""Beyond this many items, a task takes several: Ray's own bookkeeping would show."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def mapped(
    progress: Progress, title: str, items: Sequence[Item], work: Callable[[Item], Result]
) -> Generator[Result, None, None]:
    """`work` over the items, results as they come, with a bar. Close it before Ray is shut down.

    Ray Data carries positions and pickled results; the items and what `work` holds go to the workers once.
    """
    if not items:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    shared = ray.put((items, work))

    def do(row: dict[str, int]) -> dict[str, bytes]:
        all_items, function = ray.get(shared)
        return {"result": pickle.dumps(function(all_items[row["item"]]))}

    bar = progress.add_task(title, total=len(items), detail="")
    blocks = min(len(items), MOST_TASKS)
    stream = ray.data.from_items([{"item": i} for i in range(len(items))], override_num_blocks=blocks).map(do)
    for row in stream.iter_rows():
        progress.advance(bar)
        yield pickle.loads(row["result"])
