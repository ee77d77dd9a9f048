"""Training samples as a stream of batches by Ray Data, over the whole run and in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ExecutionResources

from anatomask.data.joined import open_joined
from anatomask.data.samples import Draw, SampleSequence, stacked
from anatomask.data.storage import Roots, storages

SAMPLES_PER_TASK = 32
SAMPLES_PER_EXECUTION = 2**17
"""Number of samples per Ray Data execution. A start takes seconds: half a millisecond per task, plus the readers'."""

Batch: TypeAlias = dict[str, np.ndarray]

BUFFER_BYTES = 512 * 2**20
"""Bytes that a worker reads ahead at most: without a limit, a short run would be read completely at its start."""


class SampleReader:
    """Reader of samples by number; Ray Data keeps one in each reading process, so a data set is opened once."""

    def __init__(
        self, data: Roots, sequence: SampleSequence, draw: Draw, begin: Callable[[], None] | None = None
    ) -> None:
        if begin is not None:
            begin()
        self.dataset = open_joined(data)
        self.sequence = sequence
        self.draw = draw

    def __call__(self, rows: Batch) -> Batch:
        """Read the samples whose numbers are in column `sample`, `stacked`."""
        drawn = [self.draw(self.dataset, self.sequence.case(k), self.sequence.rng(k)) for k in rows["sample"].tolist()]
        return {"sample": rows["sample"], **stacked(drawn)}


def stream_batches(
    data: Roots,
    sequence: SampleSequence,
    draw: Draw,
    samples: np.ndarray,
    batch_size: int,
    *,
    read_ahead: int,
    readers: int,
    reader_cpus: float,
    begin: Callable[[], None] | None = None,
) -> Iterator[Batch]:
    """Yield batches of `batch_size` samples, in the order of `samples`, read ahead by `readers` processes.

    Each process calls `begin` first. One Ray Data execution covers many epochs: its start costs seconds, so no epoch
    pays for it.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # so that a damaged case is named
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=BUFFER_BYTES)
    length = SAMPLES_PER_EXECUTION // batch_size * batch_size
    for first in range(0, len(samples), length):
        part = samples[first : first + length]
        numbers = np.array_split(part, range(SAMPLES_PER_TASK, len(part), SAMPLES_PER_TASK))
        # Put as they are: `from_numpy` would start a task of a whole CPU for each block, and wait for ever without one.
        rows = ray.data.from_blocks([pa.table({"sample": block}) for block in numbers]).map_batches(
            SampleReader,
            # Ray's dashboard shows their text: no credentials.
            fn_constructor_args=(storages(data), sequence, draw, begin),
            batch_size=batch_size,
            concurrency=readers,
            num_cpus=reader_cpus,
            zero_copy_batch=True,
        )
        yield from rows.iter_batches(batch_size=batch_size, prefetch_batches=read_ahead, drop_last=True)


def begun(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Read the first batch at once, in a thread, so that the readers start while the networks are built.

    Returns:
        The same batches. An error of reading the first one is raised when that batch is taken.
    """
    thread = ThreadPoolExecutor(1, "first-batch")
    first = thread.submit(lambda: list(itertools.islice(batches, 1)))
    thread.shutdown(wait=False)

    def all_of_them() -> Iterator[Batch]:
        yield from first.result()
        yield from batches

    return all_of_them()
