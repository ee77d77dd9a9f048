"""FLARE22: `FLARE22_Tr_0001_0000.nii.gz` and `FLARE22_Tr_0001.nii.gz`, in whatever folders they were unpacked.

The 2,000 scans without labels (`Case_00001_0000.nii.gz`) are for pretraining; those of the challenge's validation
(`FLARETs_0001_0000.nii.gz`) are held back.
"""

from __future__ import annotations

from pathlib import Path

from anatomask.data.datasets.base import (
    RawCase,
    RawDataset,
    Reader,
    nifti_files,
    nifti_image,
    nifti_label,
    stem,
)
from anatomask.data.settings import ReaderConfig

LABELLED, UNLABELLED, VALIDATION = "FLARE22_Tr_", "Case_", "FLARETs_"
CHANNEL = "_0000"

CLASSES = {
    1: ("liver", 5.0),
    2: ("right kidney", 3.0),
    3: ("spleen", 3.0),
    4: ("pancreas", 5.0),
    5: ("aorta", 2.0),
    6: ("inferior vena cava", 2.0),
    7: ("right adrenal gland", 2.0),
    8: ("left adrenal gland", 2.0),
    9: ("gallbladder", 2.0),
    10: ("esophagus", 3.0),
    11: ("stomach", 5.0),
    12: ("duodenum", 7.0),
    13: ("left kidney", 3.0),
}
"""Name and the challenge's own NSD tolerance in mm, per class."""


def _matches(source: Path) -> bool:
    return any(path.name.startswith(LABELLED) for path in nifti_files(source))


def _read(source: Path, fold: int, options: ReaderConfig) -> RawDataset:
    files = sorted(nifti_files(source))
    images = [path for path in files if stem(path).endswith(CHANNEL)]
    labels = {stem(path): path for path in files if stem(path).startswith(LABELLED) and path not in images}
    cases = [_case(path, labels) for path in images if path.name.startswith((LABELLED, UNLABELLED, VALIDATION))]
    return RawDataset(
        reader="flare22",
        cases=tuple(cases),
        channel_names=("CT",),
        schemes=("ct",),
        class_names={c: name for c, (name, _) in CLASSES.items()},
        nsd_tolerance={c: tolerance for c, (_, tolerance) in CLASSES.items()},
        held_back=frozenset(raw.case for raw in cases if raw.case.startswith(VALIDATION)),
    )


def _case(path: Path, labels: dict[str, Path]) -> RawCase:
    """Make a training scan; if its label is missing, it is a labelled case whose reading reports that."""
    case = stem(path).removesuffix(CHANNEL)
    if not case.startswith(LABELLED):
        return RawCase(case, case, (nifti_image(path),))
    missing = path.with_name(path.name.replace(CHANNEL, ""))
    return RawCase(case, case, (nifti_image(path),), nifti_label(labels.get(case, missing)))


READER = Reader(_matches, _read)
