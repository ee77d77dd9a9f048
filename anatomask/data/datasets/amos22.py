"""AMOS22: `imagesTr`, `labelsTr`, `imagesVa`, `labelsVa`, `imagesTs` with `amos_XXXX.nii.gz`; ids up to 500 are CT.

`--reader.modality ct` is the challenge's task 1, `all` its task 2. The validation scans become the test split, as their
labels are public. The scans of `imagesTs` have no labels and are held back. Every scan, CT included, is normalised by
its own statistics.
"""

from __future__ import annotations

import re
from pathlib import Path

from anatomask.data.datasets.base import (
    DEFAULT_NSD_TOLERANCE,
    RawCase,
    RawDataset,
    Reader,
    inner_folder,
    is_nifti,
    nifti_image,
    nifti_label,
    stem,
)
from anatomask.data.settings import ReaderConfig
from anatomask.errors import UserError

LAST_CT = 500
NAME = re.compile(r"amos_(\d+)\.nii(\.gz)?")
CLASSES = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "postcava",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate/uterus",
)


def _matches(source: Path) -> bool:
    return bool(_scans(inner_folder(source, "amos22") / "imagesTr"))


def _scans(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("amos_*.nii*") if is_nifti(path) and NAME.fullmatch(path.name))


def _read(source: Path, fold: int, options: ReaderConfig) -> RawDataset:
    if options.modality == "pet":
        raise UserError("--reader.modality pet: amos22 has none; choose ct, mr or all")
    root = inner_folder(source, "amos22")
    scans = {
        part: [path for path in _scans(root / f"images{part}") if options.modality in ("all", _modality(path))]
        for part in ("Tr", "Va", "Ts")
    }
    labelled = [
        RawCase(stem(path), stem(path), (nifti_image(path),), nifti_label(root / f"labels{part}" / path.name))
        for part in ("Tr", "Va")
        for path in scans[part]
    ]
    unlabelled = [RawCase(stem(path), stem(path), (nifti_image(path),)) for path in scans["Ts"]]
    names = dict(enumerate(CLASSES, start=1))
    train, validation, test = (tuple(map(stem, paths)) for paths in scans.values())
    return RawDataset(
        reader="amos22",
        cases=tuple(labelled + unlabelled),
        channel_names=("CT or MR" if options.modality == "all" else options.modality.upper(),),
        schemes=("zscore",),
        class_names=names,
        nsd_tolerance=dict.fromkeys(names, DEFAULT_NSD_TOLERANCE),
        splits={"train": train, "val": (), "test": validation} if validation else None,
        held_back=frozenset(test),
    )


def _modality(path: Path) -> str:
    found = NAME.fullmatch(path.name)
    return "ct" if found and int(found[1]) <= LAST_CT else "mr"


READER = Reader(_matches, _read, frozenset({"modality"}))
