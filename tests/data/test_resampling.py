from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from anatomask.data.resampling import (
    resample_image,
    resample_label,
    resampled_affine,
    resampled_planes,
    separate_axis,
    target_shape,
)

shapes = st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(1, 14))
seeds = st.integers(0, 2**32 - 1)


def zoom(volume: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """SciPy's own resampling in three dimensions, in float64."""
    factors = np.divide(shape, volume.shape)
    return ndimage.zoom(volume.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)


@settings(deadline=None, max_examples=30)
@given(shapes, shapes, seeds)
def test_images_as_scipy_resamples_them(old: tuple[int, ...], new: tuple[int, ...], seed: int) -> None:
    volume = np.random.default_rng(seed).uniform(-1000, 1000, old).astype(np.float32)
    result = resample_image(volume, new)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, zoom(volume, new, 3).clip(volume.min(), volume.max()), atol=0.02)


def test_a_smooth_scan_keeps_its_values_where_they_are() -> None:
    def phantom(shape: tuple[int, ...]) -> np.ndarray:
        axes = [(np.arange(n) + 0.5) / n for n in shape]
        x, y, z = np.meshgrid(*axes, indexing="ij")
        return 500 * np.sin(3 * x) + 300 * np.cos(4 * y) * z

    inside = (slice(4, -4),) * 3
    np.testing.assert_allclose(
        resample_image(phantom((30, 24, 20)), (45, 36, 28))[inside], phantom((45, 36, 28))[inside], atol=0.5
    )


@settings(deadline=None, max_examples=30)
@given(shapes, shapes, seeds, st.integers(1, 5))
def test_each_voxel_goes_to_the_class_with_the_largest_share(
    old: tuple[int, ...], new: tuple[int, ...], seed: int, classes: int
) -> None:
    ids = np.array([0, 1, 3, 104, 255])[:classes]
    label = np.random.default_rng(seed).choice(ids, old).astype(np.uint8)
    result = resample_label(label, new)
    shares = np.stack([zoom(label == c, new, 1) for c in ids])
    position = np.searchsorted(ids, result)
    assert result.dtype == np.uint8
    assert set(np.unique(result)) <= set(np.unique(label))
    taken = np.take_along_axis(shares, position[None], 0)[0]
    np.testing.assert_allclose(taken, shares.max(0), atol=1e-5)
    clear = np.diff(np.sort(shares, axis=0)[-2:], axis=0)[0] > 1e-4 if classes > 1 else np.ones(new, bool)
    np.testing.assert_array_equal(result[clear], ids[shares.argmax(0)][clear])


@settings(deadline=None, max_examples=30)
@given(shapes, shapes, seeds, st.integers(0, 2))
def test_thick_slices_are_resampled_one_by_one(
    old: tuple[int, ...], new: tuple[int, ...], seed: int, axis: int
) -> None:
    """Each new slice is the nearest old one, resampled in its plane by SciPy."""
    volume = np.random.default_rng(seed).uniform(-1000, 1000, old).astype(np.float32)
    label = (volume > 300).astype(np.uint8) + (volume > 700)
    plane = tuple(n for i, n in enumerate(new) if i != axis)
    images, labels = resample_image(volume, new, axis), resample_label(label, new, axis)
    for index in range(new[axis]):
        position = (index + 0.5) * old[axis] / new[axis] - 0.5
        if abs(position % 1 - 0.5) < 1e-6:
            continue  # two slices are equally near
        nearest = min(max(round(position), 0), old[axis] - 1)
        expected = zoom(np.moveaxis(volume, axis, 0)[nearest], plane, 3).clip(volume.min(), volume.max())
        np.testing.assert_allclose(images.take(index, axis), expected, atol=0.02)
        np.testing.assert_array_equal(
            labels.take(index, axis), resample_label(label.take([nearest], axis), _with(plane, axis)).take(0, axis)
        )


def _with(plane: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*plane[:axis], 1, *plane[axis:])


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((1.5, 1.5, 1.5), (1.5, 1.5, 1.5), None),
        ((0.8, 0.8, 5.0), (1.5, 1.5, 1.5), 2),
        ((6.0, 0.7, 0.7), (1.5, 1.5, 1.5), 0),
        ((1.0, 1.0, 3.0), (1.5, 1.5, 1.5), None),  # three times is not over three times
        ((0.3, 1.2, 1.2), (1.5, 1.5, 1.5), None),  # two thick axes
        ((1.0, 1.0, 1.0), (0.5, 2.0, 0.5), 1),  # the target is anisotropic
    ],
)
def test_which_axis_is_resampled_apart(spacing: tuple[float, ...], target: tuple[float, ...], axis: int | None) -> None:
    assert separate_axis(spacing, target) == axis


def test_neighbouring_classes_are_not_mixed() -> None:
    label = np.zeros((8, 8, 8), np.uint8)
    label[:4], label[4:] = 1, 5
    assert set(np.unique(resample_label(label, (23, 23, 23)))) == {1, 5}


@settings(deadline=None, max_examples=50)
@given(shapes, shapes, seeds, st.integers(0, 2), st.sampled_from([torch.float16, torch.float32]))
def test_planes_from_slabs_are_those_of_the_whole_volume(
    old: tuple[int, ...], new: tuple[int, ...], seed: int, axis: int, kind: torch.dtype
) -> None:
    """Interpolated linearly as SciPy does, however the volume is cut into slabs."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.normal(size=(3, *old))).to(kind)
    cuts = sorted(set(rng.integers(1, old[axis], rng.integers(0, old[axis])).tolist())) if old[axis] > 1 else []
    widths = np.diff([0, *cuts, old[axis]]).tolist()
    before = scores.clone()
    planes = list(resampled_planes(scores.split(widths, axis + 1), axis, old, new))
    whole = np.stack([zoom(channel, new, 1) for channel in scores.numpy()])
    np.testing.assert_allclose(torch.stack(planes, axis + 1).numpy(), whole, atol=1e-4)
    assert torch.equal(scores, before)


def test_the_same_shape_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(5, 6, 7)).astype(np.float32), rng.integers(0, 9, (5, 6, 7)).astype(np.uint8)
    np.testing.assert_array_equal(resample_image(image, image.shape), image)
    np.testing.assert_array_equal(resample_label(label, label.shape), label)


@given(shapes, shapes, seeds)
def test_voxel_edges_stay_where_they_are(old: tuple[int, ...], new: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3] = rng.normal(size=(3, 4))
    resampled = resampled_affine(affine, old, new)
    for corner in np.ndindex(2, 2, 2):
        before = nib.affines.apply_affine(affine, np.multiply(corner, old) - 0.5)
        after = nib.affines.apply_affine(resampled, np.multiply(corner, new) - 0.5)
        np.testing.assert_allclose(before, after, atol=1e-9)


def test_target_shape_keeps_the_extent_and_at_least_a_voxel() -> None:
    assert target_shape((100, 50, 1), (1.0, 3.0, 0.1), (2.0, 1.5, 1.5)) == (50, 100, 1)
