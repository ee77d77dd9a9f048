"""nnU-Net's raw layout: `dataset.json`, `imagesTr/<case>_<channel>.nii.gz`, `labelsTr/<case>.nii.gz`.

Images in `imagesUnlabeled/` and `imagesTs/` are cases without labels. `splits_final.json` beside them wins: a fold's
"val" cases are the ones that nnU-Net scores, so they become the test split here, and none is left for val.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anatomask.data.datasets.base import DEFAULT_NSD_TOLERANCE, NIFTI, RawCase, RawDataset, RawLabel, Reader
from anatomask.data.fingerprint import Scheme
from anatomask.data.nifti import read_nifti
from anatomask.errors import UserError

UNLABELLED_FOLDERS = ("imagesUnlabeled", "imagesTs")


def _matches(source: Path) -> bool:
    return (source / "dataset.json").is_file() and (source / "imagesTr").is_dir()


def _read(source: Path, fold: int) -> RawDataset:
    path = source / "dataset.json"
    header = _json(path)
    channels = _entry(header, "channel_names", path)
    ending = header.get("file_ending", ".nii.gz")
    if ending not in NIFTI:
        raise UserError(f"{path}: file_ending {ending} is not read; convert the scans to .nii.gz")
    classes = _classes(_entry(header, "labels", path), path)
    names = tuple(channels[key] for key in sorted(channels, key=int))
    labelled = [
        RawCase(case, case, images, RawLabel(source / "labelsTr" / f"{case}{ending}", read_nifti))
        for case, images in _images(source / "imagesTr", len(names), ending)
    ]
    unlabelled = [
        RawCase(case, case, images)
        for folder in UNLABELLED_FOLDERS
        for case, images in _images(source / folder, len(names), ending)
    ]
    known = [raw.case for raw in labelled + unlabelled]
    if twice := {case for case in known if known.count(case) > 1}:
        raise UserError(f"{source}: case {min(twice)} lies in more than one image folder")
    return RawDataset(
        reader="nnunet",
        cases=tuple(labelled + unlabelled),
        channel_names=names,
        schemes=tuple(_scheme(name) for name in names),
        class_names=classes,
        nsd_tolerance=dict.fromkeys(classes, DEFAULT_NSD_TOLERANCE),
        splits=_given_split(source / "splits_final.json", fold, {raw.case for raw in labelled}),
    )


def _scheme(channel: str) -> Scheme:
    """As nnU-Net decides: a channel that is called CT is in HU, every other is normalised case by case."""
    return "ct" if channel.lower() == "ct" else "zscore"


def _classes(labels: Mapping[str, Any], path: Path) -> dict[int, str]:
    classes: dict[int, str] = {}
    for name, value in labels.items():
        if name == "ignore" or not isinstance(value, int | str):
            raise UserError(f"{path}: label {name!r} (ignore label or region) is not supported; merge it to plain ids")
        try:
            c = int(value)
        except ValueError:
            raise UserError(f"{path}: labels must map names to ids, but {name!r} maps to {value!r}") from None
        if not 0 <= c <= 255 or c in classes:
            raise UserError(f"{path}: label {name!r} has id {c}; ids must be different and lie in 0 … 255")
        classes[c] = name
    classes.pop(0, None)
    return dict(sorted(classes.items()))


def _images(folder: Path, channels: int, ending: str) -> list[tuple[str, tuple[Path, ...]]]:
    """Each case of a folder with a path per channel, there or not: reading a missing one names it."""
    files = folder.glob(f"*_[0-9][0-9][0-9][0-9]{ending}")
    cases = sorted({path.name.removesuffix(ending)[: -len("_0000")] for path in files})
    return [(case, tuple(folder / f"{case}_{c:04d}{ending}" for c in range(channels))) for case in cases]


def _given_split(path: Path, fold: int, labelled: set[str]) -> dict[str, tuple[str, ...]] | None:
    if not path.is_file():
        return None
    folds = _json(path)
    if fold >= len(folds):
        raise UserError(f"{path} has {len(folds)} folds; --split.fold {fold} must be below that")
    splits = {
        "train": tuple(_entry(folds[fold], "train", path)),
        "val": (),
        "test": tuple(_entry(folds[fold], "val", path)),
    }
    for case in (*splits["train"], *splits["test"]):
        if case not in labelled:
            raise UserError(f"{path} names case {case}, which is not in imagesTr")
    if both := set(splits["train"]) & set(splits["test"]):
        raise UserError(f"{path}: case {min(both)} is in train and in val of fold {fold}")
    return splits


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def _entry(data: Any, key: str, path: Path) -> Any:
    try:
        return data[key]
    except (KeyError, TypeError):
        raise UserError(f"{path} lacks {key!r}") from None


READER = Reader(_matches, _read)
