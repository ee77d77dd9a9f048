"""What is found in a folder whose parts are links."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.datasets import read_dataset
from anatomask.data.datasets.scans import read_scans
from anatomask.data.listing import faults, files_below
from tests.data.datasets.series import write_series

CT = np.linspace(-1000, 500, 1000).reshape(10, 10, 10).astype(np.int16)


def nifti(path: Path, voxels: np.ndarray = CT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


def plain(folder: Path) -> None:
    nifti(folder / "ct.nii.gz")
    nifti(folder / "ct_seg.nii.gz", (CT > 0).astype(np.uint8))


def flare22(folder: Path) -> None:
    nifti(folder / f"FLARE22_Tr_{folder.name}_0000.nii.gz")
    nifti(folder / f"FLARE22_Tr_{folder.name}.nii.gz", (CT > 0).astype(np.uint8))


def npz(folder: Path) -> None:
    folder.mkdir(parents=True)
    np.savez(folder / "scan.npz", image=CT, label=(CT > 0).astype(np.uint8), spacing=np.ones(3))


def dicom(folder: Path) -> None:
    write_series(folder, CT, np.eye(4))


@pytest.mark.parametrize(("write", "labels"), [(plain, 2), (flare22, 2), (npz, 2), (dicom, 0)])
def test_every_reader_follows_links_to_folders(write: Callable[[Path], None], labels: int, tmp_path: Path) -> None:
    write(tmp_path / "source" / "p1")
    write(tmp_path / "elsewhere" / "p2")
    (tmp_path / "source" / "p2").symlink_to(tmp_path / "elsewhere" / "p2")
    if write is npz:
        header = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}}
        (tmp_path / "source" / "dataset.json").write_text(json.dumps(header))
    raw = read_dataset(tmp_path / "source")
    assert len(raw.cases) == 2 and sum(case.label is not None for case in raw.cases) == labels
    assert len(read_scans(tmp_path / "source").cases) == 2


def test_labels_that_are_linked_belong_to_their_scans(tmp_path: Path) -> None:
    nifti(tmp_path / "source" / "images" / "p1.nii.gz")
    nifti(tmp_path / "elsewhere" / "p1.nii.gz", (CT > 0).astype(np.uint8))
    (tmp_path / "source" / "labels").symlink_to("../elsewhere")
    (case,) = read_dataset(tmp_path / "source").cases
    assert case.label is not None and case.label.path == tmp_path / "source" / "labels" / "p1.nii.gz"


def test_no_folder_is_listed_twice_and_faults_behind_links_are_found(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    for path in (source / "b" / "x", source / ".hidden" / "x", elsewhere / "deep" / "x"):
        path.parent.mkdir(parents=True)
        path.touch()
    os.mkfifo(elsewhere / "pipe")
    (source / "a").symlink_to("b")  # the folder itself comes first, whatever their names are
    (source / "b" / "around").symlink_to(source)
    (source / "kept").symlink_to(".hidden")
    (source / "self").symlink_to("self")
    (source / "t").symlink_to(elsewhere)
    (source / "u").symlink_to(elsewhere / "deep")
    found = sorted(str(path.relative_to(source)) for path in files_below(source))
    assert found == ["b/x", "kept/x", "self", "t/deep/x", "t/pipe"]
    assert sorted(faults(source)) == [(source / "self", "a link to nothing"), (source / "t" / "pipe", "a FIFO")]
