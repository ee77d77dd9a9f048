from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.datasets import read_dataset
from anatomask.data.datasets.totalsegmentator import class_names, merge_masks
from anatomask.data.preprocess import prepare_case
from anatomask.errors import UserError

AFFINE = np.diag([1.5, 1.5, 1.5, 1.0])


def save(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A case whose spleen (1) and stomach (6) overlap."""
    folder = tmp_path / "Totalsegmentator_dataset" / "s0001"
    save(folder / "ct.nii.gz", np.zeros((4, 4, 4), np.int16))
    for name in class_names().values():
        mask = np.zeros((4, 4, 4), np.uint8)
        mask[0] = name == "spleen"
        mask[:, 0] = name == "stomach"
        save(folder / "segmentations" / f"{name}.nii.gz", mask)
    return folder


def test_the_list_of_classes() -> None:
    names = class_names()
    assert list(names) == list(range(1, 105))
    assert (names[1], names[5], names[6], len(set(names.values()))) == ("spleen", "liver", "stomach", 104)


def test_masks_are_merged_and_the_later_wins(case: Path) -> None:
    label, affine = merge_masks(case / "segmentations")
    expected = np.zeros((4, 4, 4), np.uint8)
    expected[0] = 1
    expected[:, 0] = 6
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(affine, AFFINE)


def test_the_folder_itself_or_the_one_above(case: Path, tmp_path: Path) -> None:
    save(case.parent / "s0002" / "ct.nii.gz", np.zeros((4, 4, 4), np.int16))
    for source in (tmp_path, case.parent):
        raw = read_dataset(source)
        assert raw.reader == "totalsegmentator"
        assert [(one.case, one.label is not None) for one in raw.cases] == [("s0001", True), ("s0002", False)]
        assert raw.spacing == (1.5, 1.5, 1.5)
        assert set(raw.nsd_tolerance.values()) == {3.0}


def test_masks_that_are_missing_unknown_or_not_binary(case: Path) -> None:
    masks = case / "segmentations"
    save(masks / "unicorn.nii.gz", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(UserError, match=r"unicorn\.nii\.gz is not a class"):
        merge_masks(masks)
    (masks / "unicorn.nii.gz").unlink()
    save(masks / "liver.nii.gz", np.full((4, 4, 4), 2, np.uint8))
    with pytest.raises(UserError, match=r"liver\.nii\.gz is not a binary mask"):
        merge_masks(masks)
    save(masks / "liver.nii.gz", np.zeros((4, 4, 5), np.uint8))
    with pytest.raises(UserError, match=r"liver\.nii\.gz has shape"):
        merge_masks(masks)
    (masks / "liver.nii.gz").unlink()
    with pytest.raises(UserError, match=r"liver\.nii\.gz is missing \(1 of 104"):
        merge_masks(masks)


def test_masks_without_a_scan_are_a_case_that_fails(case: Path) -> None:
    (case.parent / "s0003" / "segmentations").mkdir(parents=True)
    save(case.parent / ".s0004" / "ct.nii.gz", np.zeros((4, 4, 4), np.int16))
    (case / "segmentations" / "._liver.nii.gz").write_bytes(b"of macOS")
    raw = read_dataset(case.parent)
    assert [one.case for one in raw.cases] == ["s0001", "s0003"]
    assert merge_masks(case / "segmentations")[0].any()
    with pytest.raises(UserError, match=r"s0003/ct\.nii\.gz is missing"):
        prepare_case(raw.cases[1], ("ct",), class_names(), raw.spacing)


def test_scans_without_any_masks_are_a_plain_folder(tmp_path: Path) -> None:
    save(tmp_path / "patient1" / "ct.nii.gz", np.zeros((4, 4, 4), np.int16))
    raw = read_dataset(tmp_path)
    assert (raw.reader, raw.spacing, raw.class_names) == ("folder", None, {})
