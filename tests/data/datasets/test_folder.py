from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.datasets import read_dataset
from anatomask.errors import UserError


def save(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


CT = np.linspace(-1000, 500, 1000).reshape(10, 10, 10).astype(np.int16)
MR = np.linspace(0, 1500, 1000).reshape(10, 10, 10).astype(np.int16)


def test_nested_scans_are_cases_of_their_patients(tmp_path: Path) -> None:
    save(tmp_path / "b.nii", CT)
    save(tmp_path / "p1" / "early" / "ct.nii.gz", CT)
    save(tmp_path / "p1" / "late" / "ct.nii.gz", CT)
    save(tmp_path / ".trash" / "old.nii.gz", CT)
    (tmp_path / "p1" / "late" / "._ct.nii.gz").write_bytes(b"of macOS")
    (tmp_path / "notes.txt").write_text("x")
    raw = read_dataset(tmp_path)
    assert [(case.case, case.patient) for case in raw.cases] == [
        ("b", "b"),
        ("p1_early_ct", "p1"),
        ("p1_late_ct", "p1"),
    ]
    assert all(case.label is None for case in raw.cases)
    assert (raw.channel_names, raw.schemes, raw.class_names) == (("CT",), ("ct",), {})


def test_one_scan_that_is_not_in_hu_makes_it_no_ct(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", CT)
    save(tmp_path / "b.nii", MR)
    (tmp_path / "c.nii.gz").write_bytes(b"broken")
    raw = read_dataset(tmp_path)
    assert raw.schemes == ("zscore",)
    assert len(raw.cases) == 3


def test_two_scans_of_one_name_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", CT)
    save(tmp_path / "a.nii.gz", CT)
    with pytest.raises(UserError, match="both be case 'a'"):
        read_dataset(tmp_path)
