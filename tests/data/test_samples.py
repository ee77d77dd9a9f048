from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anatomask.data.samples import SampleSequence, centred_origin, random_origin, worker_samples, worker_share

AXES = st.tuples(*[st.integers(1, 40)] * 3)


@given(cases=st.integers(1, 9), seed=st.integers(0, 5), epoch=st.integers(0, 4))
def test_an_epoch_holds_each_case_once(cases: int, seed: int, epoch: int) -> None:
    sequence = SampleSequence(tuple(f"c{index}" for index in range(cases)), seed)
    drawn = [sequence.case(epoch * cases + k) for k in range(cases)]
    assert sorted(drawn) == sorted(sequence.cases)
    assert drawn == [SampleSequence(sequence.cases, seed).case(epoch * cases + k) for k in range(cases)]


def test_seed_epoch_and_sample_change_what_is_drawn() -> None:
    cases = tuple(f"c{index}" for index in range(20))

    def order(seed: int, epoch: int) -> list[str]:
        return [SampleSequence(cases, seed).case(epoch * 20 + k) for k in range(20)]

    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    numbers = {float(SampleSequence(cases, seed).rng(k).random()) for seed in (0, 1) for k in range(50)}
    assert len(numbers) == 100


@given(start=st.integers(0, 20), updates=st.integers(1, 10), batch=st.integers(1, 9), data=st.data())
def test_workers_share_each_batch_in_order_and_evenly(
    start: int, updates: int, batch: int, data: st.DataObject
) -> None:
    workers = data.draw(st.integers(1, batch))
    shares = [len(worker_share(batch, rank, workers)) for rank in range(workers)]
    assert max(shares) - min(shares) <= 1
    parts = [
        worker_samples(start, start + updates, batch, rank, workers).reshape(updates, share)
        for rank, share in enumerate(shares)
    ]
    assert np.concatenate(parts, axis=1).ravel().tolist() == list(range(start * batch, (start + updates) * batch))


def test_a_batch_that_workers_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="at least the 3 workers"):
        worker_samples(0, 1, 2, 0, 3)


@given(shape=AXES, size=AXES, seed=st.integers(0, 100))
def test_a_crop_lies_inside_or_is_centred(shape, size, seed: int) -> None:
    rng = np.random.default_rng(seed)
    voxel = [int(rng.integers(extent)) for extent in shape]
    for origin in (random_origin(shape, size, rng), centred_origin(voxel, shape, size)):
        for start, extent, edge in zip(origin, shape, size, strict=True):
            if extent >= edge:
                assert 0 <= start <= extent - edge
            else:
                before, after = -start, edge - extent + start
                assert before >= 0
                assert 0 <= after - before <= 1
    origin = centred_origin(voxel, shape, size)
    assert all(0 <= v - o < edge for v, o, edge in zip(voxel, origin, size, strict=True))


def test_crop_origins_are_uniform_over_all_valid_positions() -> None:
    rng = np.random.default_rng(0)
    origins = Counter(random_origin((5, 4, 3), (3, 3, 3), rng) for _ in range(6000))
    assert len(origins) == 3 * 2 * 1
    assert max(abs(count - 1000) for count in origins.values()) < 5 * np.sqrt(1000)
