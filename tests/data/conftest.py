"""Small raw scans and prepared cases, made by functions that the tests get as fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.datasets.base import RawCase, nifti_image, nifti_label


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine), path)
    return path


def body(shape: tuple[int, int, int] = (16, 14, 12), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A CT of a box of tissue in air, int16 HU, and a label of two organs in it."""
    rng = np.random.default_rng(seed)
    image = np.full(shape, -1000, np.int16)
    inside = tuple(slice(n // 4, -(n // 4)) for n in shape)
    image[inside] = rng.integers(-50, 200, image[inside].shape)
    label = np.zeros(shape, np.uint8)
    label[inside] = np.where(rng.random(image[inside].shape) < 0.5, 1, 2)
    return image, label


@pytest.fixture
def raw_case(tmp_path: Path) -> Callable[..., RawCase]:
    """Write an image and a label as NIfTI and return the case."""

    def make(
        image: np.ndarray,
        label: np.ndarray | None = None,
        affine: np.ndarray | None = None,
        label_affine: np.ndarray | None = None,
        name: str = "case",
    ) -> RawCase:
        source = save(tmp_path / "raw" / f"{name}_0000.nii.gz", image, affine)
        target = None
        if label is not None:
            own = affine if label_affine is None else label_affine
            target = nifti_label(save(tmp_path / "raw" / f"{name}.nii.gz", label, own))
        return RawCase(name, name, (nifti_image(source),), target)

    return make


@pytest.fixture
def nnunet_source(tmp_path: Path) -> Path:
    """An nnU-Net raw folder: labelled a to d, unlabelled u; no given split."""
    source = tmp_path / "Dataset001_Boxes"
    for seed, case in enumerate("abcd"):
        image, label = body(seed=seed)
        save(source / "imagesTr" / f"{case}_0000.nii.gz", image)
        save(source / "labelsTr" / f"{case}.nii.gz", label)
    save(source / "imagesUnlabeled" / "u_0000.nii.gz", body(seed=9)[0])
    header = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "left": 1, "right": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (source / "dataset.json").write_text(json.dumps(header))
    return source


@pytest.fixture
def ct() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return body
