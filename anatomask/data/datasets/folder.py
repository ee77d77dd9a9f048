"""Any folder of NIfTI scans, nested or not, without labels: what pretraining needs.

The scans are taken as CT if those that are looked at (at most 8, spread over the folder) all look like HU, else
as "MR", which is normalised scan by scan.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from anatomask.data.datasets.base import RawCase, RawDataset, Reader, is_nifti, stem
from anatomask.data.nifti import read_nifti
from anatomask.errors import UserError

LOOKED_AT = 8
AIR_HU = -500
"""HU is calibrated so that air is -1000; no other kind of scan has a thousandth of its voxels below this."""


def looks_like_ct(voxels: np.ndarray) -> bool:
    """Whether at least a thousandth of the voxels are as dark as only air in HU is."""
    return bool(np.mean(voxels < AIR_HU) >= 1e-3)


def _matches(source: Path) -> bool:
    return any(_visible(path, source) for path in source.rglob("*.nii*"))


def _visible(path: Path, source: Path) -> bool:
    return is_nifti(path) and not any(part.startswith(".") for part in path.relative_to(source).parts)


def _read(source: Path, fold: int) -> RawDataset:
    scans = sorted(path for path in source.rglob("*.nii*") if _visible(path, source))
    cases = tuple(_case(path.relative_to(source), path) for path in scans)
    twice = [case for case, count in Counter(raw.case for raw in cases).items() if count > 1]
    if twice:
        raise UserError(f"{source}: two scans would both be case {twice[0]!r}; rename one of them")
    ct = _all_ct([scans[i] for i in np.unique(np.linspace(0, len(scans) - 1, LOOKED_AT).round().astype(int))])
    return RawDataset(
        reader="folder",
        cases=cases,
        channel_names=("CT",) if ct else ("MR",),
        schemes=("ct",) if ct else ("zscore",),
        class_names={},
        nsd_tolerance={},
    )


def _case(relative: Path, path: Path) -> RawCase:
    """A scan in a subfolder belongs to the patient that the topmost subfolder is named after."""
    case = "_".join((*relative.parent.parts, stem(relative)))
    return RawCase(case, relative.parts[0] if len(relative.parts) > 1 else case, (path,))


def _all_ct(scans: list[Path]) -> bool:
    verdicts = []
    for path in scans:
        try:
            verdicts.append(looks_like_ct(read_nifti(path)[0]))
        except UserError:
            continue  # it will be listed with its reason when its turn comes
    return bool(verdicts) and all(verdicts)


READER = Reader(_matches, _read)
