"""Small prepared data sets whose images tell the label: 100 HU per class id.

They are stored as fractions: a scan of few whole numbers is refused as a label map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations

from anatomask.data.datasets.base import RawCase, nifti_image, nifti_label
from anatomask.data.fingerprint import ChannelFingerprint, Fingerprint
from anatomask.data.index import write_index
from anatomask.data.preprocess import prepare_case
from anatomask.data.records import DatasetInfo
from anatomask.data.shards import PreparedDataset, write_case

CLASSES = {1: "liver", 2: "spleen"}


def _blobs(shape: Sequence[int]) -> np.ndarray:
    """A label map in RAS axes without any symmetry: a big ellipsoid and a small one."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), axis=-1)
    label = np.zeros(shape, np.uint8)
    label[(((grid - [0.3, 0.1, -0.2]) / [0.55, 0.6, 0.5]) ** 2).sum(-1) < 1] = 1
    label[(((grid - [-0.55, -0.5, 0.4]) / [0.3, 0.35, 0.4]) ** 2).sum(-1) < 1] = 2
    return label


def _oriented_image(ras: np.ndarray, spacing: Sequence[float], codes: str) -> nib.Nifti1Image:
    """A volume in RAS axes as a scanner with axes `codes` would store it."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-40, 25, 310)
    to_codes = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes))
    voxels = orientations.apply_orientation(ras, to_codes)
    return nib.Nifti1Image(voxels, affine @ orientations.inv_ornt_aff(to_codes, ras.shape))


@pytest.fixture
def blobs() -> Callable[[Sequence[int]], np.ndarray]:
    return _blobs


@pytest.fixture
def oriented_image() -> Callable[[np.ndarray, Sequence[float], str], nib.Nifti1Image]:
    return _oriented_image


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., PreparedDataset]:
    """Prepares the label maps (RAS) of some cases, stored with the axes `codes`, in the split "test"."""

    def make(
        labels: dict[str, np.ndarray],
        spacing: Sequence[float] = (2.0, 2.0, 2.0),
        codes: str = "RAS",
        target: tuple[float, float, float] | None = None,
        name: str = "data",
    ) -> PreparedDataset:
        target = target or (spacing[0], spacing[1], spacing[2])
        root = str(tmp_path / name)
        records = []
        for case, label in labels.items():
            image_path, label_path = tmp_path / f"{case}.nii.gz", tmp_path / f"{case}-label.nii.gz"
            nib.save(_oriented_image(label.astype(np.float32) * 100, spacing, codes), image_path)
            nib.save(_oriented_image(label, spacing, codes), label_path)
            raw = RawCase(case, case, (nifti_image(image_path),), nifti_label(label_path))
            records.append(write_case(root, prepare_case(raw, ["ct"], list(CLASSES), target), brick=32, codec="none"))
        tolerance = dict.fromkeys(CLASSES, 3.0)
        info = DatasetInfo(name, "folder", ("CT",), ("ct",), CLASSES, tolerance, target, 32, "none")
        identity = Fingerprint((ChannelFingerprint("CT", "ct", -1000.0, 1000.0, 0.0, 1.0),))
        write_index(root, info, records, {"test": sorted(labels)}, identity)
        return PreparedDataset.open(root)

    return make
