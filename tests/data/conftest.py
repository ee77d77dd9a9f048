"""Small raw scans and prepared cases, made by functions that the tests get as fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.datasets.base import RawCase, RawLabel
from anatomask.data.fingerprint import Fingerprint, case_histograms
from anatomask.data.nifti import read_nifti
from anatomask.data.records import DatasetInfo, PreparedCase
from anatomask.data.shards import PreparedDataset, write_case, write_index


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
            target = RawLabel(save(tmp_path / "raw" / f"{name}.nii.gz", label, own), read_nifti)
        return RawCase(name, name, (source,), target)

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


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., PreparedDataset]:
    """Write volumes that are prepared already as a data set of one case, "one", and open it."""

    def make(
        *images: np.ndarray,
        label: np.ndarray | None = None,
        schemes: tuple[str, ...] = (),
        brick: int = 16,
        root: str = "prepared",
    ) -> PreparedDataset:
        path = str(tmp_path / root)
        schemes = schemes or tuple("ct" if image.dtype == np.int16 else "zscore" for image in images)
        names = tuple(f"channel{c}" for c in range(len(images)))
        shape = images[0].shape
        affine = np.diag([2.0, 2.0, 3.0, 1.0])
        case = PreparedCase("one", "patient", images, schemes, label, affine, shape, affine, label)
        record = write_case(path, case, brick)
        classes = {} if label is None else {int(c): f"class{c}" for c in np.unique(label) if c}
        info = DatasetInfo(
            "test", "folder", names, schemes, classes, dict.fromkeys(classes, 3.0), (2.0, 2.0, 3.0), brick
        )
        histograms = [case_histograms(image[None], label, (s,))[0] for image, s in zip(images, schemes, strict=True)]
        fingerprint = Fingerprint.from_histograms(names, schemes, histograms)
        write_index(path, info, [record], {"train": ["one"]}, fingerprint)
        return PreparedDataset.open(path)

    return make
