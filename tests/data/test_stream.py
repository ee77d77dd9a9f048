"""What Ray Data brings is what was asked for, in that order, however many read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from threading import Event

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.data.block import BlockAccessor

from anatomask.data import stream
from anatomask.data.masked_draw import MaskedDraw
from anatomask.data.samples import Draw, FinetuningDraw, LoaderConfig, SampleSequence, worker_samples
from anatomask.data.shards import PreparedDataset
from anatomask.data.stream import Batch, batches_of, begun, stream_batches
from anatomask.errors import UserError

BATCH = 6
LOADER = LoaderConfig(patch_size=(32, 32, 32))
MASKED, FINETUNING = MaskedDraw(LOADER), FinetuningDraw(LOADER, (0, 1, 2))


@pytest.mark.ray
@pytest.mark.parametrize(("readers", "start", "draw"), [(1, 0, MASKED), (2, 0, MASKED), (2, 5, FINETUNING)])
def test_samples_come_in_order_over_several_executions(
    readers: int, start: int, draw: Draw, head: PreparedDataset, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two readers, and after a start in the middle, too; each sample is what its number says.

    Crops that are turned differ in shape.
    """
    monkeypatch.setattr(stream, "SAMPLES_PER_TASK", 8)
    monkeypatch.setattr(stream, "SAMPLES_PER_EXECUTION", 45)  # two executions of 42, the second cut short
    sequence = SampleSequence(("one",), seed=3)
    numbers = worker_samples(start, 12, BATCH, 0, 1)
    batches = stream_batches(head.path, sequence, draw, numbers, BATCH, read_ahead=2, readers=readers, reader_cpus=0.1)
    come = list(batches)
    np.testing.assert_array_equal(np.concatenate([batch["sample"] for batch in come]), numbers)
    for batch in come:
        expected = draw(head, "one", sequence.rng(int(batch["sample"][2])))
        for name, value in expected.items():
            np.testing.assert_array_equal(batch[name][2], value)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), max_size=8), st.integers(1, 5))
def test_rows_of_tables_become_batches_whatever_the_chunks(chunks: list[int], batch_size: int) -> None:
    """Tables of two chunks each; a chunk that is a batch is not copied."""
    starts = np.cumsum([0, *chunks])
    images = np.arange(starts[-1] * 6, dtype=np.int16).reshape(-1, 2, 3)
    pieces = [
        BlockAccessor.batch_to_arrow_block({"sample": np.arange(first, stop), "image": images[first:stop]})
        for first, stop in pairwise(starts)
    ]
    tables = [pa.concat_tables(pieces[first : first + 2]) for first in range(0, len(pieces), 2)]
    found = list(batches_of(tables, batch_size))
    whole = len(images) // batch_size * batch_size
    assert [len(batch["sample"]) for batch in found] == [batch_size] * (whole // batch_size)
    np.testing.assert_array_equal(np.concatenate([[], *(batch["sample"] for batch in found)]), np.arange(whole))
    np.testing.assert_array_equal(np.concatenate([images[:0], *(batch["image"] for batch in found)]), images[:whole])
    if chunks and set(chunks) == {batch_size}:
        assert all(
            np.shares_memory(batch["image"], piece) for batch, piece in zip(found, map(pixels, pieces), strict=True)
        )


def pixels(table: pa.Table) -> np.ndarray:
    """The memory of a table's images."""
    return np.asarray(BlockAccessor.for_block(table).to_batch_format("numpy")["image"])


def test_the_first_batch_is_read_before_it_is_asked_for() -> None:
    asked = Event()

    def batches() -> Iterator[Batch]:
        asked.set()
        yield {"sample": np.array([0])}
        yield {"sample": np.array([1])}

    stream = begun(batches())
    assert asked.wait(30)
    assert [int(batch["sample"][0]) for batch in stream] == [0, 1]


def test_reading_processes_import_no_torch() -> None:
    """It would add more than a second to the time of the first batch."""
    draws = "anatomask.data.stream, anatomask.data.samples, anatomask.data.masked_draw"
    code = f"import sys, {draws}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_empty_stream_stays_empty() -> None:
    assert list(begun(iter(()))) == []


def test_what_the_first_batch_raises_comes_when_it_is_asked_for() -> None:
    def damaged(number: int) -> Batch:
        raise UserError(f"shard {number} is damaged")

    stream = begun(map(damaged, [1]))
    with pytest.raises(UserError, match="shard 1"):
        next(stream)
