"""Training samples as a stream of batches by Ray Data, over the whole run and in order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ExecutionResources
from ray.data.block import BlockAccessor

from anatomask.data.joined import open_joined
from anatomask.data.samples import Draw, Sample, SampleSequence, stacked
from anatomask.data.scratch import Scratch
from anatomask.data.storage import Roots, storages

SAMPLES_PER_TASK = 32
"""Number of samples that a reading process is asked for at once, rounded up to whole batches."""
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
        self.scratch = Scratch()
        self.dataset.empty = self.scratch.empty
        self.sequence = sequence
        self.draw = draw

    def __call__(self, rows: Batch) -> Batch:
        """Read the samples whose numbers are in column `sample`, `stacked`."""
        self.scratch.begin()
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
        tables = planned(samples[first : first + length], batch_size)
        # Put as they are: `from_numpy` would start a task of a whole CPU for each block, and wait for ever without one.
        rows = ray.data.from_blocks(tables).map_batches(
            SampleReader,
            # Ray's dashboard shows their text: no credentials.
            fn_constructor_args=(storages(data), sequence, draw, begin),
            batch_size=None,
            concurrency=readers,
            num_cpus=reader_cpus,
            zero_copy_batch=True,
        )
        blocks = math.ceil(read_ahead * batch_size / len(tables[0]))
        read = rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=blocks)
        yield from batches_of(read, batch_size)


def planned(samples: np.ndarray, batch_size: int) -> list[pa.Table]:
    """Divide the numbers of samples into tables, each of which a reading process is asked for at once."""
    per_task = math.ceil(SAMPLES_PER_TASK / batch_size) * batch_size
    numbers = np.array_split(samples, range(per_task, len(samples), per_task))
    return [pa.table({"sample": block}) for block in numbers]


def batches_of(tables: Iterable[pa.Table], batch_size: int) -> Iterator[Batch]:
    """Yield the rows of tables as batches of `batch_size`, in order; rows at the end that are fewer are left out.

    A reader sends a table of several batches, each of which is passed on as a view of the object store's memory. Ray
    Data would copy the tables into one array before it cuts batches out of it.
    """
    rest: list[Sample] = []
    for table in tables:
        for chunk in table.to_batches(max_chunksize=batch_size):
            rows: Batch = BlockAccessor.for_block(pa.Table.from_batches([chunk])).to_batch_format("numpy")
            if not rest and len(chunk) == batch_size:
                yield rows
                continue
            rest += [{name: column[row] for name, column in rows.items()} for row in range(len(chunk))]
            while len(rest) >= batch_size:
                yield stacked(rest[:batch_size])
                del rest[:batch_size]


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
