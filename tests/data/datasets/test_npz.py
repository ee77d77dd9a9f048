from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.datasets import read_dataset
from anatomask.data.nifti import read_nifti
from anatomask.data.preprocess import grid_of, prepare_case
from anatomask.data.splits import SplitConfig, dataset_splits
from anatomask.errors import UserError

HEADER = {"channel_names": {"0": "CT", "1": "SUV"}, "labels": {"background": 0, "tumour": 1}}


@pytest.fixture
def shards(real_data: Path, tmp_path: Path) -> Path:
    """Two real PET/CTs of one patient as NPZ, with their affines."""
    for study in ("PETCT_sts_002", "PETCT_sts_003"):
        folder = real_data / "autopet2" / "FDG-PET-CT-Lesions" / study / "study_1"
        volumes = [read_nifti(folder / f"{name}.nii.gz")[0] for name in ("CTres", "SUV", "SEG")]
        affine = nib.Nifti1Image.from_filename(folder / "SUV.nii.gz").affine
        (tmp_path / "npz").mkdir(exist_ok=True)
        np.savez(
            tmp_path / "npz" / f"{study}.npz",
            image=np.stack(volumes[:2]).astype(np.float32), label=volumes[2], affine=affine, patient="Ann",
        )  # fmt: skip
    (tmp_path / "npz" / "dataset.json").write_text(json.dumps(HEADER))
    return tmp_path / "npz"


def test_a_shard_is_prepared_as_its_scan_is(shards: Path, real_data: Path) -> None:
    raw, nifti = read_dataset(shards), read_dataset(real_data / "autopet2")
    assert (raw.reader, raw.channel_names, raw.class_names) == ("npz", ("CT", "SUV"), {1: "tumour"})
    assert raw.schemes == ("ct", "zscore")
    assert {case.patient for case in raw.cases} == {"Ann"}
    assert sum(map(bool, dataset_splits(raw, SplitConfig()).values())) == 1
    case = pickle.loads(pickle.dumps(raw)).cases[0]
    one, other = (prepare_case(c, nifti.schemes, {1}, (3.0, 3.0, 3.0)) for c in (case, nifti.cases[0]))
    assert one.label is not None and other.label is not None
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.label, other.label)
    np.testing.assert_allclose(one.affine, other.affine)
    assert grid_of(case.images[0]) == grid_of(nifti.cases[0].images[0])


def test_without_a_header_the_scheme_is_looked_at_and_labels_are_not_read(shards: Path) -> None:
    (shards / "dataset.json").unlink()
    raw = read_dataset(shards)
    assert (raw.channel_names, raw.schemes) == (("channel 0", "channel 1"), ("ct", "zscore"))
    assert all(case.label is None for case in raw.cases)
    assert "no dataset.json" in raw.remarks[0]


def test_one_channel_and_a_spacing_are_enough(tmp_path: Path) -> None:
    voxels = np.arange(24.0).reshape(2, 3, 4)
    (tmp_path / "deep").mkdir()
    np.savez(tmp_path / "deep" / "a.npz", image=voxels, spacing=[1, 2, 3])
    raw = read_dataset(tmp_path)
    assert [(case.case, case.patient) for case in raw.cases] == [("deep_a", "deep_a")]
    prepared = prepare_case(raw.cases[0], raw.schemes, (), (1, 2, 3))
    np.testing.assert_array_equal(prepared.affine, np.diag([1.0, 2.0, 3.0, 1.0]))
    np.testing.assert_allclose(prepared.images[0] / prepared.images[0].max(), voxels / 23, atol=1e-3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"spacing": [1, 1, 1]}, "cannot be read"),
        ({"image": np.ones((2, 2, 2))}, "neither affine nor spacing"),
        ({"image": np.ones((2, 2, 2)), "spacing": [1, 1]}, "spacing must be three positive numbers"),
        ({"image": np.ones((2, 2, 2)), "spacing": [1, 1, -1]}, "spacing must be three positive numbers"),
        ({"image": np.ones((2, 2, 2)), "affine": np.zeros((4, 4))}, r"affine must be a \(4, 4\) matrix"),
        ({"image": np.ones((2, 2)), "spacing": [1, 1, 1]}, r"of shape \(2, 2\); \(C, D, H, W\) or"),
        ({"image": np.ones((3, 2, 2, 2)), "spacing": [1, 1, 1]}, "has 3 channels, the data set 1"),
        ({"image": np.full((2, 2, 2), np.nan), "spacing": [1, 1, 1]}, "8 voxels that are NaN"),
        ({"image": np.ones((2, 2, 2), complex), "spacing": [1, 1, 1]}, "one real number per voxel"),
        ({"image": np.array([[[{}]]], object), "spacing": [1, 1, 1]}, "Object arrays cannot be loaded"),
    ],
)
def test_a_shard_that_lacks_something_is_named(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.arange(64.0).reshape(4, 4, 4), spacing=[1.0, 1.0, 1.0])
    np.savez(tmp_path / "bad.npz", **arrays)
    raw = read_dataset(tmp_path)
    assert [case.case for case in raw.cases] == ["a", "bad"]
    with pytest.raises(UserError, match=rf"bad\.npz.*({message})"):
        prepare_case(raw.cases[1], raw.schemes, (), (1, 1, 1))
    assert prepare_case(raw.cases[0], raw.schemes, (), (1, 1, 1)).images[0].shape == (4, 4, 4)


def test_a_file_that_is_no_archive_is_a_case_that_fails(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"hello")
    with pytest.raises(UserError, match="has an array 'image' that can be read"):
        read_dataset(tmp_path)
    np.savez(tmp_path / "good.npz", image=np.arange(64.0).reshape(4, 4, 4), spacing=[1.0, 1.0, 1.0])
    raw = read_dataset(tmp_path)
    with pytest.raises(UserError, match=r"bad\.npz cannot be read"):
        prepare_case(raw.cases[0], raw.schemes, (), (1, 1, 1))
