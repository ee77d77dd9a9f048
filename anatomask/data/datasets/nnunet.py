"""nnU-Net's raw layout: `dataset.json`, `imagesTr/<case>_<channel>.nii.gz`, `labelsTr/<case>.nii.gz`.

Images in `imagesUnlabeled/` and `imagesTs/` are cases without labels; those of `imagesTs/` are held back: they go to
the split "unlabeled_test", which nobody trains on unless told to. `splits_final.json` beside them wins: a fold's
"val" cases are the ones that nnU-Net scores, so they become the test split here, and none is left for val.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anatomask.data.datasets.base import (
    DEFAULT_NSD_TOLERANCE,
    NIFTI,
    RawCase,
    RawDataset,
    RawLabel,
    Reader,
    is_nifti,
)
from anatomask.data.fingerprint import Scheme
from anatomask.data.nifti import read_nifti
from anatomask.errors import UserError

TRAINING, UNLABELLED, TEST = "imagesTr", "imagesUnlabeled", "imagesTs"
LABELS = "labelsTr"


def _matches(source: Path) -> bool:
    return (source / "dataset.json").is_file() and (source / TRAINING).is_dir()


def _read(source: Path, fold: int) -> RawDataset:
    path = source / "dataset.json"
    header = _json(path)
    if not isinstance(header, Mapping):
        raise UserError(f"{path} must hold a JSON object with channel_names and labels")
    names = _channels(_entry(header, "channel_names", path), path)
    ending = header.get("file_ending", ".nii.gz")
    if ending not in NIFTI:
        raise UserError(f"{path}: file_ending {ending} is not read; convert the scans to .nii.gz")
    classes = _classes(_entry(header, "labels", path), path)
    labelled = [
        RawCase(case, case, _files(source / TRAINING, case, names, ending), RawLabel(label, read_nifti))
        for case in sorted(_cases(source / TRAINING, ending) | _labels(source / LABELS, ending))
        for label in [source / LABELS / f"{case}{ending}"]
    ]
    unlabelled = [
        RawCase(case, case, _files(source / folder, case, names, ending))
        for folder in (UNLABELLED, TEST)
        for case in sorted(_cases(source / folder, ending))
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
        held_back=frozenset(_cases(source / TEST, ending)),
    )


def _channels(channels: Any, path: Path) -> tuple[str, ...]:
    """The names in order of their numbers, which are those in the files' names."""
    if not isinstance(channels, Mapping) or {str(key) for key in channels} != set(map(str, range(len(channels)))):
        raise UserError(f'{path}: channel_names must map "0", "1", … to names, as in {{"0": "CT"}}, not {channels!r}')
    if not channels:
        raise UserError(f'{path}: channel_names is empty; name one channel at least, as in {{"0": "CT"}}')
    return tuple(str(channels[str(c)]) for c in range(len(channels)))


def _scheme(channel: str) -> Scheme:
    """As nnU-Net decides: a channel that is called CT is in HU, every other is normalised case by case."""
    return "ct" if channel.lower() == "ct" else "zscore"


def _classes(labels: Any, path: Path) -> dict[int, str]:
    if not isinstance(labels, Mapping):
        raise UserError(f'{path}: labels must map names to ids, as in {{"background": 0, "liver": 1}}, not {labels!r}')
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


def _cases(folder: Path, ending: str) -> set[str]:
    """The cases of which a folder has an image."""
    files = folder.glob(f"*_[0-9][0-9][0-9][0-9]{ending}")
    return {path.name.removesuffix(ending)[: -len("_0000")] for path in files if is_nifti(path)}


def _labels(folder: Path, ending: str) -> set[str]:
    """The cases of which a folder has a label."""
    return {path.name.removesuffix(ending) for path in folder.glob(f"*{ending}") if is_nifti(path)}


def _files(folder: Path, case: str, channels: Sequence[str], ending: str) -> tuple[Path, ...]:
    """A path per channel, there or not: reading a missing one names it."""
    return tuple(folder / f"{case}_{c:04d}{ending}" for c in range(len(channels)))


def _given_split(path: Path, fold: int, labelled: set[str]) -> dict[str, tuple[str, ...]] | None:
    if not path.is_file():
        return None
    folds = _json(path)
    if not isinstance(folds, list) or not folds:
        raise UserError(f'{path} must hold a list of folds, {{"train": [cases], "val": [cases]}} each; or remove it')
    if fold >= len(folds):
        raise UserError(f"{path} has {len(folds)} folds; --split.fold {fold} must be below that")
    splits = {
        "train": _members(folds[fold], "train", path),
        "val": (),
        "test": _members(folds[fold], "val", path),
    }
    for case in (*splits["train"], *splits["test"]):
        if case not in labelled:
            raise UserError(f"{path} names case {case}, which is not in {TRAINING}")
    if both := set(splits["train"]) & set(splits["test"]):
        raise UserError(f"{path}: case {min(both)} is in train and in val of fold {fold}")
    return splits


def _members(fold: Any, name: str, path: Path) -> tuple[str, ...]:
    cases = _entry(fold, name, path)
    if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
        raise UserError(f"{path}: {name!r} must be a list of cases, not {cases!r}")
    return tuple(cases)


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
