"""Ray Data tasks that map a function over the cases of a data set."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ray
import ray.data
from rich.progress import Progress

from anatomask.cluster_shares import memory_of_tasks
from anatomask.data.memory import TooLarge

MOST_TASKS = 2000
"""Number of items beyond which a task takes several: Ray's own bookkeeping would show."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Refused:
    """Item that needs more memory than its task may take."""

    item: Any
    error: TooLarge


def mapped_within_memory(
    progress: Progress,
    title: str,
    items: Sequence[Item],
    work: Callable[..., Result],
    refused: Callable[[Item, TooLarge], Result],
) -> Generator[Result, None, None]:
    """Map `work` as `mapped` does, with no task above its memory; large items come last, fewer at once.

    Args:
        progress: display of the bars.
        title: title of the bar.
        items: arguments of `work`.
        work: function of an item and the bytes of `memory` that it may take; it raises TooLarge before it takes more.
        refused: result of an item that is too large for a machine that does nothing else.
    """
    share, most = memory_of_tasks(len(items))
    large: list[Refused] = []
    with closing(mapped(progress, title, items, partial(attempt, work, share))) as results:
        for result in results:
            if isinstance(result, Refused):
                large.append(result)
            else:
                yield result
    for one in large:
        if one.error.needs > most:
            yield refused(one.item, one.error.at(most))
    fitting = [one for one in large if one.error.needs <= most]
    reserved = max((one.error.needs for one in fitting), default=0)
    again = [one.item for one in fitting]
    with closing(mapped(progress, "large scans", again, partial(attempt, work, most), reserved)) as results:
        for result in results:
            yield refused(result.item, result.error) if isinstance(result, Refused) else result


def attempt(work: Callable[..., Result], memory: int, item: Item) -> Result | Refused:
    """Return the result of `work`, or the item if it does not fit into `memory`."""
    try:
        return work(item, memory=memory)
    except TooLarge as error:
        return Refused(item, error)


def mapped(
    progress: Progress, title: str, items: Sequence[Item], work: Callable[[Item], Result], memory: int = 0
) -> Generator[Result, None, None]:
    """Map `work` over the items and yield results as they come, with a bar. Close it before Ray is shut down.

    Ray Data carries positions and pickled results; the items and what `work` holds are sent to the workers once. Each
    task reserves `memory` bytes, so that as many run at once as have room.
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
    rows = ray.data.from_items([{"item": i} for i in range(len(items))], override_num_blocks=blocks)
    most = memory_of_tasks(1)[1]  # a task that reserves more than any node has would wait for ever
    stream = rows.map(do, memory=min(memory, most)) if memory else rows.map(do)
    for row in stream.iter_rows():
        progress.advance(bar)
        yield pickle.loads(row["result"])
