from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.datasets import RawCase
from anatomask.data.datasets.base import RawDataset
from anatomask.data.nifti import header_doubt
from anatomask.data.overview import class_rows, intensities
from anatomask.data.survey import survey_case

OBLIQUE = np.array([[0, -2, 0, 10], [-2, 0, 0, 20], [0, 0, 3, -5], [0, 0, 0, 1.0]])


def data_set(case: RawCase) -> RawDataset:
    return RawDataset("nnunet", (case,), ("CT",), ("ct",), {1: "one", 2: "two"}, {1: 3.0, 2: 3.0})


def test_the_facts_are_those_of_the_arrays(
    ct: Callable[..., tuple[np.ndarray, np.ndarray]], raw_case: Callable[..., RawCase]
) -> None:
    image, label = ct((64, 56, 48))
    label[0, 0, 0] = 7
    facts = survey_case(raw_case(image, label, OBLIQUE), ("ct",), {1: "one", 2: "two"})
    assert facts.images is not None and facts.label is not None
    channel = facts.images.channels[0]
    assert facts.images.orientation == "PLS"
    assert facts.images.shape == (image.shape[1], image.shape[0], image.shape[2])
    assert facts.images.spacing == (2.0, 2.0, 3.0)
    assert (channel.minimum, channel.maximum) == (image.min(), image.max())
    assert channel.air == np.mean(image < -500)
    assert channel.at_minimum == np.mean(image == -1000)
    assert channel.distinct == len(np.unique(image))
    assert sum(channel.histogram) == image.size
    assert facts.label.unknown == (7.0,)
    for c, found in facts.label.classes.items():
        assert found.organ.ml == pytest.approx((label == c).sum() * 12 / 1000)
        centre = nib.affines.apply_affine(OBLIQUE, np.argwhere(label == c).mean(axis=0))
        np.testing.assert_allclose(found.organ.centre, centre)
        assert found.mean == pytest.approx(image[label == c].mean())
        assert found.outside < 0.01  # the box's corners, which no body has


def test_the_voxels_of_all_cases_are_in_the_histogram_and_in_the_volumes(
    ct: Callable[..., tuple[np.ndarray, np.ndarray]], raw_case: Callable[..., RawCase]
) -> None:
    cases = [raw_case(*ct(seed=seed), name=f"c{seed}") for seed in range(3)]
    facts = [survey_case(case, ("ct",), {1: "one", 2: "two"}) for case in cases]
    merged = intensities(facts, 0)
    assert sum(merged.voxels) == pytest.approx(3 * 16 * 14 * 12)
    assert merged.voxels[0] == max(merged.voxels)  # the air
    volumes = [facts.label.classes[1].organ.ml for facts in facts if facts.label is not None]
    row = class_rows(data_set(cases[0]), facts)[0]
    assert (row.cases, row.minimum_ml, row.maximum_ml) == (3, min(volumes), max(volumes))
    assert row.median_ml == sorted(volumes)[1]


def test_a_scan_that_cannot_be_read_is_a_fact(raw_case: Callable[..., RawCase], tmp_path: Path) -> None:
    case = raw_case(np.zeros((4, 4, 4), np.int16))
    path = case.images[0].path
    path.write_bytes(path.read_bytes()[:60])
    facts = survey_case(case, ("ct",), {})
    assert facts.images is None and str(path) in facts.image_error


@pytest.mark.parametrize("kind", ["good", "sform alone", "unset", "apart", "identity"])
def test_a_header_that_contradicts_itself(kind: str, tmp_path: Path) -> None:
    affine = np.eye(4) if kind == "identity" else np.diag([-2.0, -2, 3, 1])
    image = nib.Nifti1Image(np.zeros((9, 8, 7), np.int16), affine)
    image.set_sform(affine, 0 if kind == "unset" else 1)
    image.set_qform(affine, 0 if kind in ("sform alone", "unset") else 1)
    if kind == "apart":
        image.set_qform(np.diag([2.0, -2, 3, 1]), 1)
    nib.save(image, tmp_path / "scan.nii.gz")
    words = {"good": "", "sform alone": "", "unset": "neither sform", "apart": "36 mm apart", "identity": "identity"}
    doubt = header_doubt(tmp_path / "scan.nii.gz")
    assert words[kind] in doubt and bool(doubt) == bool(words[kind])
