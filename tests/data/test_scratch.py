"""Memory that is used again holds what was put there, and is never taken from an array that exists."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.data.block import BlockAccessor

from anatomask.data.samples import stacked
from anatomask.data.scratch import Scratch, in_a_row

SHAPES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SHAPES, st.booleans()), min_size=1, max_size=6))
def test_blocks_hold_what_was_put_there(blocks: list[tuple[list[tuple[int, int]], bool]]) -> None:
    """Whatever their shapes and sizes, as columns of Ray's blocks, and while some are kept."""
    scratch, value = Scratch(), 0
    kept: list[tuple[BlockAccessor, list[np.ndarray]]] = []
    for shapes, keep in blocks:
        scratch.begin()
        samples, expected = [], []
        for shape in shapes:
            value += 1
            sample = {"image": scratch.empty(shape, np.int16), "label": scratch.empty(shape, np.uint8)}
            sample["image"][...], sample["label"][...] = value, value
            samples.append(sample)
            expected.append(np.full(shape, value))
        block = BlockAccessor.for_block(BlockAccessor.batch_to_arrow_block(stacked(samples)))
        for known, wanted in [*kept, (block, expected)]:
            for name, column in known.to_batch_format("numpy").items():
                assert column[0].dtype == {"image": np.int16, "label": np.uint8}[name]
                for found, one in zip(column, wanted, strict=True):
                    np.testing.assert_array_equal(found, one)
        if keep:
            kept.append((block, expected))
        del sample, samples, block, known, column, found  # so that the next block may use their memory


def test_the_memory_of_a_block_is_used_again_and_its_crops_are_stacked_without_a_copy() -> None:
    scratch = Scratch()
    places = []
    for _ in range(3):
        scratch.begin()
        crops = [scratch.empty((2, 3, 4), np.int16) for _ in range(3)]
        row = in_a_row(crops)
        places.append(None if row is None else row.__array_interface__["data"])
        if row is not None:
            assert row.shape == (3, 2, 3, 4) and all(np.shares_memory(row, crop) for crop in crops)
        assert in_a_row(crops[::-1]) is None and in_a_row(crops[::2]) is None
        del crops, row
    assert places[0] is None  # the first block is new memory
    assert places[1] is not None and places[1] == places[2]
