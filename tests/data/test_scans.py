"""A scan prepared in memory is the scan that `prepare` writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from anatomask.data.datasets.base import RawCase, nifti_image
from anatomask.data.fingerprint import ChannelFingerprint, Fingerprint, Scheme
from anatomask.data.index import write_index
from anatomask.data.memory import TooLarge
from anatomask.data.preprocess import prepare_case
from anatomask.data.records import DatasetInfo
from anatomask.data.scans import prepare, prepared_scan, read_files
from anatomask.data.shards import PreparedDataset, write_case
from anatomask.errors import UserError

SPACING = (4.0, 4.0, 5.0)


def header_of(schemes: Sequence[Scheme]) -> dict[str, Any]:
    """The fields of a weights' header that preparing reads."""
    channels = [ChannelFingerprint(f"channel{c}", scheme, -400, 900, 40, 200) for c, scheme in enumerate(schemes)]
    return {"spacing": list(SPACING), "fingerprint": Fingerprint(tuple(channels)).to_dict()}


def written(root: Path, files: Sequence[Path], header: dict[str, Any]) -> PreparedDataset:
    """Write what `prepare` writes of one case, "one"."""
    fingerprint = Fingerprint.from_dict(header["fingerprint"])
    schemes = tuple(channel.scheme for channel in fingerprint.channels)
    raw = RawCase("one", "one", tuple(map(nifti_image, files)))
    record = write_case(str(root), prepare_case(raw, schemes, (), SPACING), 32, "none")
    names = tuple(channel.name for channel in fingerprint.channels)
    info = DatasetInfo("data", "folder", names, schemes, {}, {}, SPACING, 32, "none")
    write_index(str(root), info, [record], {"train": ["one"]}, fingerprint)
    return PreparedDataset.open(str(root))


@pytest.fixture
def head_files(real_data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A real CT of the head and neck, and beside it a second channel of the same grid: its gradient, in halves."""
    ct = real_data / "openkbp" / "imagesTr" / "kbp_001_0000.nii.gz"
    scan = nib.Nifti1Image.from_filename(ct)
    other = np.abs(np.diff(np.asarray(scan.dataobj, np.float32), axis=0, append=0)) / 2
    nib.save(nib.Nifti1Image(other, scan.affine), tmp_path / "other.nii.gz")
    return ct, tmp_path / "other.nii.gz"


@pytest.mark.parametrize("schemes", [("ct",), ("zscore",), ("ct", "zscore"), ("quantitative", "none")])
def test_preparing_in_memory_is_preparing_on_disk(
    schemes: Sequence[Scheme], head_files: tuple[Path, Path], tmp_path: Path
) -> None:
    files, header = head_files[: len(schemes)], header_of(schemes)
    stored = prepared_scan(written(tmp_path / "data", files, header), "one")
    made = prepare(read_files(files), header)
    np.testing.assert_array_equal(made.stored, stored.stored)
    assert made.stored.dtype == stored.stored.dtype
    np.testing.assert_array_equal(made.normalisation, stored.normalisation)
    np.testing.assert_allclose(made.affine, stored.affine, rtol=0, atol=0)
    assert made.original_shape == stored.original_shape and made.schemes == stored.schemes
    assert torch.equal(made.volume, stored.volume)
    assert made.volume.dtype == torch.float32
    assert made.spacing == pytest.approx(SPACING, rel=0.05)


def test_a_scan_knows_its_voxel_size(head_files: tuple[Path, Path]) -> None:
    scan = read_files(head_files)
    assert scan.voxels.shape == (2, *nib.Nifti1Image.from_filename(head_files[0]).shape)
    assert scan.spacing == pytest.approx(nib.Nifti1Image.from_filename(head_files[0]).header.get_zooms())


def test_what_cannot_be_prepared_is_named(head_files: tuple[Path, Path], tmp_path: Path) -> None:
    scan = read_files(head_files[:1])
    with pytest.raises(UserError, match=r"kbp_001_0000\.nii\.gz has 1 channels, the network reads 2"):
        prepare(scan, header_of(("ct", "zscore")))
    with pytest.raises(TooLarge, match=r"kbp_001_0000\.nii\.gz has 55"):
        prepare(scan, header_of(("ct",)), memory=1000)
    flat = tmp_path / "flat.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), flat)
    with pytest.raises(UserError, match=r"flat\.nii\.gz is 0 in every voxel"):
        prepare(read_files([flat]), header_of(("ct",)))


def test_a_scan_that_is_smaller_than_a_voxel_is_refused(head_files: tuple[Path, Path]) -> None:
    scan = read_files(head_files[:1])
    with pytest.raises(UserError, match=r"kbp_001_0000\.nii\.gz has .* less than a voxel of 4 × 4 × 5 mm; correct the"):
        prepare(replace(scan, affine=scan.affine @ np.diag([1, 1, 1e-3, 1])), header_of(["ct"]))
