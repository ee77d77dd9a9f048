"""What Ray Data brings is what was asked for, in that order, however many read."""

from __future__ import annotations

import numpy as np
import pytest

from anatomask.data import stream
from anatomask.data.samples import LoaderConfig, SampleSequence, worker_samples
from anatomask.data.shards import PreparedDataset
from anatomask.data.stream import stream_batches
from anatomask.methods.masked import MaskedDraw

BATCH = 6


@pytest.mark.ray
@pytest.mark.parametrize(("readers", "start"), [(1, 0), (2, 0), (2, 5)])
def test_samples_come_in_order_over_several_executions(
    readers: int, start: int, head: PreparedDataset, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two readers, and after a start in the middle, too; each sample is what its number says."""
    monkeypatch.setattr(stream, "SAMPLES_PER_TASK", 8)
    monkeypatch.setattr(stream, "SAMPLES_PER_EXECUTION", 45)  # two executions of 42, the second cut short
    sequence, draw = SampleSequence(("one",), seed=3), MaskedDraw(LoaderConfig(patch_size=(32, 32, 32)))
    numbers = worker_samples(start, 12, BATCH, 0, 1)
    batches = stream_batches(head.path, sequence, draw, numbers, BATCH, read_ahead=2, readers=readers, reader_cpus=0.1)
    come = list(batches)
    np.testing.assert_array_equal(np.concatenate([batch["sample"] for batch in come]), numbers)
    for batch in (come[0], come[-1]):
        expected = draw(head, "one", sequence.rng(int(batch["sample"][2])))
        for name, value in expected.items():
            np.testing.assert_array_equal(batch[name][2], value)
