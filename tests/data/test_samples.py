from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anatomask.data.masked_draw import MaskedDraw
from anatomask.data.samples import (
    Draw,
    FinetuningDraw,
    LoaderConfig,
    SampleSequence,
    centred_origin,
    inside_scan,
    mirrored_axes,
    random_origin,
    stacked,
    worker_samples,
    worker_share,
)
from anatomask.data.shards import PreparedDataset

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
def test_a_crop_lies_inside_or_is_centred(shape: list[int], size: list[int], seed: int) -> None:
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


LOADER = LoaderConfig(patch_size=(64, 32, 48))


@pytest.mark.parametrize("draw", [MaskedDraw(LOADER), FinetuningDraw(LOADER, (0, 1, 2))])
def test_a_real_sample_is_a_function_of_its_number_and_leaves_as_it_is_stored(
    head: PreparedDataset, draw: Draw
) -> None:
    samples = [draw(head, "one", SampleSequence(("one",), 0).rng(k)) for k in (*range(9), *range(9))]
    k, another, *_ = (k for k in range(9) if samples[k]["image"].shape[1:] == LOADER.patch_size)  # is not turned
    first, again, other = samples[k], samples[k + 9], samples[another]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["image"], other["image"])
    assert first["image"].dtype == np.int16
    assert first["image"].shape == (1, *LOADER.patch_size)
    assert {name for name, column in first.items() if column.size > 1000} <= {"image", "label"}
    assert first["inside"].tolist() == [[4, 59], [0, 32], [0, 48]]  # 55 voxels in 64: padded at both ends
    assert not first["image"][:, :4].any() and not first["image"][:, 59:].any()
    assert first["minimum"] == -1024
    np.testing.assert_array_equal(first["normalisation"], head.normalisation("one"))


def test_finetuning_draws_the_label_of_the_image_and_a_seed_for_each_sample(
    prepared: Callable[..., PreparedDataset],
) -> None:
    voxels = np.arange(20 * 40 * 35, dtype=np.int16).reshape(20, 40, 35)  # each of another value
    dataset = prepared(voxels, label=(voxels % 7 == 3).astype(np.uint8))
    draw = FinetuningDraw(LoaderConfig(patch_size=(32, 32, 32)), (0, 1, 2))
    samples = [draw(dataset, "one", np.random.default_rng(k)) for k in range(12)]
    for sample in samples:
        (start, stop), *_ = sample["inside"]
        assert (start, stop) == (6 - sample["box_start"][0], 26 - sample["box_start"][0])
        assert sample["label"].dtype == np.uint8
        assert np.array_equal(sample["label"][start:stop], sample["image"][0, start:stop] % 7 == 3)
        assert not sample["label"][:start].any() and not sample["label"][stop:].any()
    assert len({int(sample["seed"]) for sample in samples}) == 12


@pytest.mark.parametrize("axes", [(), (1,), (1, 2), (0, 1, 2)])
def test_every_mirroring_of_the_axes_occurs_and_no_other(head: PreparedDataset, axes: tuple[int, ...]) -> None:
    draw = FinetuningDraw(LoaderConfig(patch_size=(32, 32, 32)), axes)
    flips = [draw(head, "one", np.random.default_rng(seed))["flip"] for seed in range(60)]
    assert len({tuple(each) for each in flips}) == 2 ** len(axes)
    assert not any(each[axis] for each in flips for axis in {0, 1, 2} - set(axes))


def test_sides_are_not_mirrored_into_each_other() -> None:
    loader = LoaderConfig(patch_size=(32, 32, 32))
    assert mirrored_axes(loader, ["liver", "spleen"]) == (0, 1, 2)
    assert mirrored_axes(loader, ["Parotid_L", "Parotid_R"]) == (1, 2)
    assert mirrored_axes(replace(loader, mirror_axes=(2, 0)), ["kidney left"]) == (0, 2)


@given(shape=st.tuples(*[st.integers(1, 12)] * 3), origin=st.tuples(*[st.integers(-15, 15)] * 3), size=AXES)
def test_inside_is_where_a_crop_lies_in_the_scan(
    shape: tuple[int, ...], origin: tuple[int, ...], size: tuple[int, ...]
) -> None:
    for (start, stop), extent, first, edge in zip(inside_scan(origin, shape, size), shape, origin, size, strict=True):
        assert [k for k in range(edge) if 0 <= first + k < extent] == list(range(start, stop))


def test_a_crop_that_turns_brings_the_box_that_it_turns_in(head: PreparedDataset) -> None:
    draw = FinetuningDraw(LoaderConfig(patch_size=(32, 32, 32)), (0, 1, 2))
    samples = [draw(head, "one", np.random.default_rng(seed)) for seed in range(60)]
    moved = [not np.array_equal(sample["matrix"], np.eye(3)) for sample in samples]
    assert 10 < sum(moved) < 35  # 0.36 of them
    for sample, moves in zip(samples, moved, strict=True):
        shape = sample["label"].shape
        assert sample["image"].shape == (1, *shape)
        if moves:
            reach = np.abs(sample["matrix"]).sum(1) * 31
            assert (np.array(shape) >= reach + 1).all() and (np.array(shape) <= reach + 3).all()
        else:
            assert shape == (32, 32, 32) and not sample["box_start"].any()


def test_columns_of_samples_that_differ_in_shape_hold_one_array_each() -> None:
    samples = [{"image": np.full((2, edge), edge), "seed": np.asarray(edge)} for edge in (3, 5, 3)]
    columns = stacked(samples)
    assert columns["seed"].tolist() == [3, 5, 3] and columns["image"].dtype == object
    assert [image.shape for image in columns["image"]] == [(2, 3), (2, 5), (2, 3)]
    assert stacked(samples[::2])["image"].shape == (2, 2, 3)
