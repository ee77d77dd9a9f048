from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anatomask.data.fingerprint import Fingerprint, Histogram, body_voxels, case_histograms

volumes = hnp.arrays(np.int16, st.integers(1, 60), elements=st.integers(-1024, 3071))


@given(st.lists(volumes, min_size=1, max_size=4), st.floats(0, 100))
def test_merged_histograms_give_the_statistics_of_all_voxels(parts: list[np.ndarray], percent: float) -> None:
    histogram = Histogram.merge(map(Histogram.of, parts))
    voxels = np.concatenate(parts).astype(float)
    assert histogram.total == voxels.size
    assert histogram.percentile(percent) == pytest.approx(np.percentile(voxels, percent), abs=1e-6)
    assert histogram.mean_std() == pytest.approx((voxels.mean(), voxels.std()), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_half_precision_voxels_are_counted_as_what_they_are(seed: int) -> None:
    """Much of one value, as around a normalised scan: NumPy 2.4.6 sorts these wrongly on some processors."""
    rng = np.random.default_rng(seed)
    air, body, noise = np.full(7000, -3.547), np.sort(rng.normal(size=20000)), rng.normal(0, 0.01, 20000)
    voxels = np.concatenate([air, body, noise]).astype(np.float16)
    histogram = Histogram.of(voxels)
    expected = Counter(voxels.tolist())
    assert histogram.values.tolist() == sorted(expected)
    assert dict(zip(histogram.values.tolist(), histogram.counts.tolist(), strict=True)) == expected


def test_no_voxels_are_not_a_number() -> None:
    empty = Histogram.merge([])
    assert np.isnan([empty.percentile(50), *empty.mean_std()]).all()


def test_labelled_cases_count_foreground_and_others_their_body() -> None:
    ct = np.array([[[-1000, -700, 40, 60]]], np.int16)
    pet = np.array([[[0, 2, 0, 5]]], np.float16)
    label = np.array([[[0, 1, 2, 0]]], np.uint8)
    images = np.stack([ct.astype(np.float32), pet.astype(np.float32)])
    foreground = case_histograms(images, label, ("ct", "zscore"))
    assert [h.values.tolist() for h in foreground] == [[-700, 40], [0, 2]]
    body = case_histograms(images, None, ("ct", "zscore"))
    assert [h.values.tolist() for h in body] == [[40, 60], [2, 5]]


def test_a_scan_of_air_counts_all_voxels() -> None:
    air = np.full((2, 2, 2), -1000, np.int16)
    assert body_voxels(air, "ct").size == 8


def test_round_trip() -> None:
    fingerprint = Fingerprint.from_histograms(("CT",), ("ct",), [Histogram.of(np.arange(100))])
    assert Fingerprint.from_dict(fingerprint.to_dict()) == fingerprint
