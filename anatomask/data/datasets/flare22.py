"""FLARE22: `FLARE22_Tr_0001_0000.nii.gz` and `FLARE22_Tr_0001.nii.gz`, in whatever folders they were unpacked.

The 2,000 scans without labels (`Case_00001_0000.nii.gz`) are for pretraining; those of the challenge's validation
(`FLARETs_0001_0000.nii.gz`) are held back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from anatomask.data.datasets.base import (
    RawCase,
    RawDataset,
    Reader,
    nifti_files,
    nifti_image,
    nifti_label,
    refused_label,
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
    labels: dict[str, list[Path]] = {}
    for path in files:
        if path.name.startswith(LABELLED) and path not in images:
            labels.setdefault(stem(path), []).append(path)
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


def _case(path: Path, labels: Mapping[str, Sequence[Path]]) -> RawCase:
    """Make a training scan; if it has no label or several, it is a labelled case whose reading reports that."""
    case = stem(path).removesuffix(CHANNEL)
    if not case.startswith(LABELLED):
        return RawCase(case, case, (nifti_image(path),))
    first, *others = labels.get(case, [path.with_name(path.name.replace(CHANNEL, ""))])
    why = f"{first} and {others[0]} may both be the label; take one of them out of the source" if others else ""
    return RawCase(case, case, (nifti_image(path),), refused_label(first, why) if others else nifti_label(first))


READER = Reader(_matches, _read)
