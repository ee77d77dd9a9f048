"""Any folder of NIfTI scans, nested or not, without labels: what pretraining needs.

A few scans (at most 8, spread over the folder) are inspected. If all look like HU, all scans are taken as CT, else as
"MR", which is normalised scan by scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anatomask.data.datasets.base import RawCase, RawDataset, RawImage, Reader, is_nifti, is_visible, nifti_image, stem
from anatomask.data.settings import ReaderConfig

LOOKED_AT = 8
AIR_HU = -500
"""HU below which only air (-1000 HU) lies: no other kind of scan has a thousandth of its voxels below this."""


def looks_like_ct(voxels: np.ndarray) -> bool:
    """Return whether at least a thousandth of the voxels lie below `AIR_HU`."""
    return bool(np.mean(voxels < AIR_HU) >= 1e-3)


def all_ct(images: Sequence[RawImage]) -> bool:
    """Return whether all inspected scans that can be read look like CT; False if none can be read."""
    verdicts = []
    for i in np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).round().astype(int)):
        try:
            verdicts.append(looks_like_ct(images[i].read(images[i].path)[0]))
        except Exception:  # whatever a broken file makes its library do
            continue  # it will be listed with its reason when its turn comes
    return bool(verdicts) and all(verdicts)


def _matches(source: Path) -> bool:
    return any(is_nifti(path) and is_visible(path, source) for path in source.rglob("*.nii*"))


def _read(source: Path, fold: int, options: ReaderConfig) -> RawDataset:
    scans = sorted(path for path in source.rglob("*.nii*") if is_nifti(path) and is_visible(path, source))
    cases = tuple(_case(path.relative_to(source), path) for path in scans)
    ct = all_ct([raw.images[0] for raw in cases])
    return RawDataset(
        reader="folder",
        cases=cases,
        channel_names=("CT",) if ct else ("MR",),
        schemes=("ct",) if ct else ("zscore",),
        class_names={},
        nsd_tolerance={},
    )


def _case(relative: Path, path: Path) -> RawCase:
    """Make a case; a scan in a subfolder belongs to the patient that the topmost subfolder is named after."""
    case = "_".join((*relative.parent.parts, stem(relative)))
    return RawCase(case, relative.parts[0] if len(relative.parts) > 1 else case, (nifti_image(path),))


READER = Reader(_matches, _read)
