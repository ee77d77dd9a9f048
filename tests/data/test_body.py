from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anatomask.data.body import body_bounds, body_shares
from anatomask.data.fingerprint import Histogram
from anatomask.data.masked_draw import MaskedDraw
from anatomask.data.samples import LoaderConfig
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError

LOADER = LoaderConfig(patch_size=(48, 48, 48))


@given(values=hnp.arrays(np.int16, st.integers(2, 60), elements=st.integers(-50, 50)))
def test_otsu_maximises_the_variance_between_two_groups(values: np.ndarray) -> None:
    threshold = Histogram.of(values).otsu_threshold()
    if len(np.unique(values)) < 2:
        assert np.isnan(threshold)
        return

    def between(t: float) -> float:
        low, high = values[values <= t].astype(float), values[values > t].astype(float)
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    candidates = np.unique(values)[:-1]
    assert threshold in candidates
    assert between(threshold) == pytest.approx(max(map(between, candidates)))


@given(seed=st.integers(0, 1000), patch=st.sampled_from([2, 4]))
def test_body_shares_patch_by_patch(seed: int, patch: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (8, 4, 12)
    image = rng.integers(-1000, 1000, shape).astype(np.int16)
    inside = np.sort(np.stack([rng.integers(0, side + 1, 2) for side in shape]), axis=1)
    shares = body_shares(image, inside, -500, 200, patch).reshape([side // patch for side in shape])
    for index in np.ndindex(shares.shape):
        count = 0
        for offset in np.ndindex(patch, patch, patch):
            voxel = tuple(i * patch + o for i, o in zip(index, offset, strict=True))
            within = all(first <= v < stop for v, (first, stop) in zip(voxel, inside, strict=True))
            count += within and -500 < image[voxel] <= 200
        assert shares[index] == pytest.approx(count / patch**3)


def test_on_a_real_head_air_is_never_hidden_and_mirroring_moves_the_patches(
    head_voxels: np.ndarray, prepared: Callable[..., PreparedDataset]
) -> None:
    dataset = prepared(head_voxels)
    draw = MaskedDraw(LOADER, patch=8, among="body", body_share=0.25)
    shares = []
    for k in range(12):
        sample = draw(dataset, "one", np.random.default_rng(k))
        assert sample["among"].shape == (216,) and sample["candidates"] == sample["among"].sum() > 0
        crop = sample["image"][0]
        outside = np.ones(crop.shape, bool)
        outside[tuple(slice(*bounds) for bounds in sample["inside"].tolist())] = False
        body = (crop > -500) & ~outside
        flipped = np.flip(body, tuple(np.flatnonzero(sample["flip"])))  # what the device makes of it
        expected = flipped.reshape(6, 8, 6, 8, 6, 8).mean((1, 3, 5)).ravel() >= 0.25
        assert np.array_equal(sample["among"], expected)
        shares.append(expected.mean())
    assert 0.1 < np.mean(shares) < 0.9  # a head and neck in a box of air


def test_soft_tissue_is_less_than_body_and_needs_hounsfield_units(
    head_voxels: np.ndarray, prepared: Callable[..., PreparedDataset]
) -> None:
    dataset = prepared(head_voxels)
    body, soft = (
        MaskedDraw(LOADER, 8, among)(dataset, "one", np.random.default_rng(3))["among"]
        for among in ("body", "foreground")
    )
    assert 0 < soft.sum() < body.sum() and not (soft & ~body).any()
    magnetic = prepared(head_voxels.astype(np.float16), root="mr")
    with pytest.raises(UserError, match=r"--method.among foreground is defined in HU.*choose --method.among body"):
        body_bounds(magnetic, "one", "foreground")


def test_a_magnetic_resonance_scan_is_divided_by_otsus_threshold(
    real_data: Path, prepared: Callable[..., PreparedDataset]
) -> None:
    scan = nib.Nifti1Image.from_filename(real_data / "scans" / "prostatex_0000_t2.nii.gz").get_fdata()[::2, ::2]
    dataset = prepared(scan.astype(np.float16))
    channel, lowest, highest = body_bounds(dataset, "one", "body")
    assert channel == 0 and highest == np.inf
    assert lowest == Histogram.of(scan.astype(np.float16)).otsu_threshold()
    assert 0.1 < (scan > lowest).mean() < 0.9


def test_a_scan_without_body_is_named(prepared: Callable[..., PreparedDataset]) -> None:
    dataset = prepared(np.full((50, 50, 50), -1000, np.int16))
    with pytest.raises(UserError, match=r"16 crops of case one hold no patch .* is body: lower --method.body-share"):
        MaskedDraw(LOADER, 8, "body")(dataset, "one", np.random.default_rng(0))
