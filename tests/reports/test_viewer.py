"""Scans of the viewer: where they lie, what they show, and that they fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomask.data.shards import PreparedDataset
from anatomask.evaluation.results import CaseScore, summarise, to_csv
from anatomask.reports.evaluated_runs import EvaluatedRun, read_run
from anatomask.reports.predictions import CaseLabels
from anatomask.reports.viewer import MARGIN_MM, ViewedCase, fitting_grid, viewed_cases


def run_of(dataset: PreparedDataset, folder: Path, prediction: np.ndarray) -> EvaluatedRun:
    """A run that predicted this, whatever score is told."""
    (folder / "predictions").mkdir(parents=True)
    nib.save(nib.Nifti1Image(prediction, dataset.original_label("one").affine), folder / "predictions/one.nii.gz")
    scores = [
        CaseScore(folder.name, dataset.name, "one", c, name, 0.5, 0.5, 9) for c, name in dataset.class_names.items()
    ]
    (folder / "cases.csv").write_text(to_csv(scores))
    summary = {
        "run": folder.name, "method": "scratch", "initialisation": "random", "dataset": dataset.name,
        "data": dataset.path, "split": "train", **summarise(scores),
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return read_run(str(folder))


def opened(volume: bytes) -> nib.Nifti1Image:
    from gzip import decompress

    return nib.Nifti1Image.from_bytes(decompress(volume))


def viewed(run: EvaluatedRun, characters: float) -> ViewedCase:
    (found,) = viewed_cases([run], 3, characters, "heads")
    return found


def test_a_small_scan_is_shown_as_it_is(head: PreparedDataset, tmp_path: Path) -> None:
    truth = np.asarray(head.original_label("one").dataobj)
    prediction = np.roll(truth, 2, axis=0)
    case = viewed(run_of(head, tmp_path / "run", prediction), 1e7)
    image = opened(case.image)
    corner = np.rint(np.linalg.inv(head.records["one"].affine) @ image.affine)[:3, 3].astype(int)
    part = tuple(slice(start, start + length) for start, length in zip(corner, image.shape, strict=True))
    scan, _ = head.read_volume("one", label=False)
    low, high = case.window
    grey = 255 / (high - low)
    assert np.abs(image.get_fdata() - np.clip(scan[0][part], low, high)).max() <= 0.51 / grey
    for label, expected in zip(case.labels, (truth, prediction), strict=True):
        shown = opened(label.volume)
        assert np.array_equal(shown.affine, image.affine) and shown.header.get_intent()[0] == "label"
        assert np.array_equal(np.asarray(shown.dataobj), expected[part])
        assert expected.astype(bool).sum() == expected[part].astype(bool).sum()  # all of it lies in the part
    assert [label.title for label in case.labels] == ["Ground truth", "scratch"]
    assert case.labels[1].score == "DSC 50.0 %" and case.title == "one (heads)"


@pytest.mark.parametrize("characters", [100_000, 20_000])
def test_voxels_grow_until_a_case_fits(characters: int, head: PreparedDataset, tmp_path: Path) -> None:
    truth = np.asarray(head.original_label("one").dataobj)
    case = viewed(run_of(head, tmp_path / "run", truth), characters)
    assert 0.7 * characters < case.characters <= characters
    image, label = opened(case.image), opened(case.labels[0].volume)
    assert np.array_equal(image.affine, label.affine) and image.shape == label.shape
    for class_id in (1, 5):  # what is large enough stays where it was
        whole = np.argwhere(truth == class_id).mean(axis=0)
        small = np.argwhere(np.asarray(label.dataobj) == class_id).mean(axis=0)
        apart = nib.affines.apply_affine(head.original_label("one").affine, whole) - nib.affines.apply_affine(
            label.affine, small
        )
        assert np.linalg.norm(apart) < 0.5 * nib.affines.voxel_sizes(label.affine).max()


def test_a_scan_without_labels_is_shown_whole(prepared: Callable[..., PreparedDataset], tmp_path: Path) -> None:
    voxels = np.zeros((20, 22, 24), np.int16)
    label = np.zeros(voxels.shape, np.uint8)
    label[0, 0, 0] = 1
    dataset = prepared(voxels, label=label)
    labels = CaseLabels("one", np.zeros_like(label), [np.zeros_like(label)], np.eye(4))
    assert fitting_grid(labels, 1e6).shape == voxels.shape
    case = viewed(run_of(dataset, tmp_path / "run", label), 1e6)
    assert case.window[0] < case.window[1]


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    voxels=st.floats(1, 50_000),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_the_grid_holds_everything_labelled(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], voxels: float, data: st.DataObject
) -> None:
    place = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    truth, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    prediction[place] = 3
    labels = CaseLabels("one", truth, [prediction], np.diag([*spacing, 1]))
    grid = fitting_grid(labels, voxels)
    assert np.prod(grid.shape) <= max(voxels, 1)
    for axis in range(3):
        first, last = grid.positions()[axis][[0, -1]]
        half, margin = grid.factor[axis] / 2, np.ceil(MARGIN_MM / spacing[axis])
        box = max(place[axis] - margin, 0) - 0.5, min(place[axis] + margin, shape[axis] - 1) + 0.5
        assert np.allclose((first - half, last + half), box) and grid.factor[axis] >= 1
