"""nnU-Net's raw layout: `dataset.json`, `imagesTr/<case>_<channel>.nii.gz`, `labelsTr/<case>.nii.gz`.

Images in `imagesUnlabeled/` and `imagesTs/` are cases without labels. Those of `imagesTs/` are held back: they go to
the split "unlabeled_test", on which no training runs unless it is named. `splits_final.json` beside them takes
precedence: a fold's "val" cases are those that nnU-Net scores, so they become the test split here, and val is empty;
`--split.val-as val` leaves them there. `--reader.plans` names the plans whose voxel size is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from anatomask.data.datasets.base import (
    DEFAULT_NSD_TOLERANCE,
    NIFTI,
    RawCase,
    RawDataset,
    RawImage,
    Reader,
    is_nifti,
    nifti_image,
    nifti_label,
)
from anatomask.data.fingerprint import Scheme
from anatomask.data.listing import is_file, is_folder
from anatomask.data.plans import PlannedGrid, planned_grid
from anatomask.data.settings import ReaderConfig
from anatomask.errors import UserError
from anatomask.files import refuse_pipe
from anatomask.parsing import entry_of, read_json

TRAINING, UNLABELLED, TEST = "imagesTr", "imagesUnlabeled", "imagesTs"
LABELS = "labelsTr"
SPLITS = "splits_final.json"
IMAGE = "*_[0-9][0-9][0-9][0-9]"


def _matches(source: Path) -> bool:
    return is_file(source / "dataset.json") and is_folder(source / TRAINING)


def read_header(path: Path) -> tuple[Mapping[str, Any], tuple[str, ...], dict[int, str]]:
    """Read a `dataset.json`: all its entries, the names of the channels, and the classes 1 … K.

    Raises:
        UserError: the file is not JSON, or lacks or misstates the channels or the labels.
    """
    header = read_json(path)
    if not isinstance(header, Mapping):
        raise UserError(f"{path} must hold a JSON object with channel_names and labels")
    if "modality" in header and "channel_names" not in header:
        raise UserError(
            f"{path} is of the Medical Segmentation Decathlon (it has modality in place of channel_names), whose files "
            "nnU-Net converts; set --dataset folder, which pairs scans of one channel with their labels"
        )
    channels = _channels(entry_of(header, "channel_names", path), path)
    return header, channels, classes_of(entry_of(header, "labels", path), path)


def _read(source: Path, fold: int, options: ReaderConfig) -> RawDataset:
    path = source / "dataset.json"
    header, names, classes = read_header(path)
    ending = header.get("file_ending", ".nii.gz")
    if ending not in NIFTI:
        raise UserError(f"{path}: file_ending {ending} is not read; convert the scans to .nii.gz")
    labelled = [
        RawCase(
            case,
            case,
            _images(source / TRAINING, case, names, ending),
            nifti_label(source / LABELS / f"{case}{ending}"),
        )
        for case in sorted(_cases(source / TRAINING, ending) | _labels(source / LABELS, ending))
    ]
    unlabelled = [
        RawCase(case, case, _images(source / folder, case, names, ending))
        for folder in (UNLABELLED, TEST)
        for case in sorted(_cases(source / folder, ending))
    ]
    known = Counter(raw.case for raw in labelled + unlabelled)
    if twice := {case for case, count in known.items() if count > 1}:
        raise UserError(f"{source}: case {min(twice)} lies in more than one image folder; rename or delete one of them")
    folds = given_folds(source / SPLITS, {raw.case for raw in labelled})
    splits = chosen_fold(folds, fold, source / SPLITS)
    if not options.plans and options.configuration != ReaderConfig().configuration:
        raise UserError(
            "--reader.configuration is one of --reader.plans here; name plans of nnU-Net, too, or leave it out"
        )
    spacing = _planned_spacing(labelled, options) if options.plans else None
    idle = [] if splits is None else sorted({raw.case for raw in labelled} - set().union(*splits.values()))
    return RawDataset(
        reader="nnunet",
        cases=tuple(labelled + unlabelled),
        channel_names=names,
        schemes=tuple(map(scheme_of, names)),
        class_names=classes,
        nsd_tolerance=dict.fromkeys(classes, DEFAULT_NSD_TOLERANCE),
        spacing=spacing,
        splits=splits,
        folds=folds,
        remarks=(
            *((f"voxel size of {options.configuration} in {options.plans}",) if spacing else ()),
            *((f"{len(idle)} labelled cases are in no split of {SPLITS}, as {idle[0]}: not used",) if idle else ()),
            *_unnamed_channels(source, names, ending),
        ),
        held_back=frozenset(_cases(source / TEST, ending)),
    )


def _planned_spacing(cases: Sequence[RawCase], options: ReaderConfig) -> tuple[float, float, float]:
    path = Path(options.plans)
    refuse_pipe(path, "--reader.plans")
    if not path.is_file():
        raise UserError(f"--reader.plans {path}: there is no such file; name plans of nnU-Net, as nnUNetPlans.json")
    return ras_spacing(cases, planned_grid(read_json(path), options.configuration, path))


def ras_spacing(cases: Sequence[RawCase], planned: PlannedGrid) -> tuple[float, float, float]:
    """Return the planned spacing in the order R, A, S, given by the first case whose grid can be read.

    Raises:
        UserError: none can be read.
    """
    z, y, x = (planned.spacing[axis] for axis in planned.backward)
    if planned.reoriented:
        return x, y, z
    for raw in cases:
        image = raw.images[0]
        try:
            _, affine = image.grid(image.path)
        except Exception:  # whatever a broken file makes its library do
            continue  # it will be listed with its reason when its turn comes
        a, b, c = ((x, y, z)[axis] for axis in np.argsort(nib.io_orientation(affine)[:, 0]))
        return a, b, c
    raise UserError(f"none of the scans for {planned.name} of {planned.plans} can be read")


def _channels(channels: Any, path: Path) -> tuple[str, ...]:
    """List the names in the order of their numbers, which are those in the files' names."""
    if not isinstance(channels, Mapping) or {str(key) for key in channels} != set(map(str, range(len(channels)))):
        raise UserError(f'{path}: channel_names must map "0", "1", … to names, as in {{"0": "CT"}}, not {channels!r}')
    if not channels:
        raise UserError(f'{path}: channel_names is empty; name one channel at least, as in {{"0": "CT"}}')
    return tuple(str(channels[str(c)]) for c in range(len(channels)))


def scheme_of(channel: str) -> Scheme:
    """Choose a scheme as nnU-Net does: "CT" is in HU, "noNorm" is unchanged, all others are normalised by case."""
    schemes: dict[str, Scheme] = {"ct": "ct", "nonorm": "none"}
    return schemes.get(channel.lower(), "zscore")


def classes_of(labels: Any, path: Path) -> dict[int, str]:
    """Read the mapping of class names to ids that `path` holds; return id -> name, without background.

    Raises:
        UserError: it is no such mapping, or an id is not in 0 … 255 or stands twice.
    """
    if not isinstance(labels, Mapping):
        raise UserError(f'{path}: labels must map names to ids, as in {{"background": 0, "liver": 1}}, not {labels!r}')
    classes: dict[int, str] = {}
    for name, value in labels.items():
        if name == "ignore" or isinstance(value, bool) or not isinstance(value, int | str):
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
    """List the cases of which a folder has an image."""
    files = folder.glob(IMAGE + ending)
    return {path.name.removesuffix(ending)[: -len("_0000")] for path in files if is_nifti(path)}


def _unnamed_channels(source: Path, channels: Sequence[str], ending: str) -> tuple[str, ...]:
    """Make a remark where there are images of channels that the header does not name, which are not read."""
    found = (path for folder in (TRAINING, UNLABELLED, TEST) for path in (source / folder).glob(IMAGE + ending))
    numbered = [(int(path.name.removesuffix(ending)[-4:]), path) for path in sorted(found) if is_nifti(path)]
    others = [path for number, path in numbered if number >= len(channels)]
    if not others:
        return ()
    file = others[0].relative_to(source)
    return (f"{len(others)} images are of channels that dataset.json does not name, as {file}: not read",)


def _labels(folder: Path, ending: str) -> set[str]:
    """List the cases of which a folder has a label."""
    return {path.name.removesuffix(ending) for path in folder.glob(f"*{ending}") if is_nifti(path)}


def _images(folder: Path, case: str, channels: Sequence[str], ending: str) -> tuple[RawImage, ...]:
    """Make an image per channel, whether its file exists or not; reading a missing one names it."""
    return tuple(nifti_image(folder / f"{case}_{c:04d}{ending}") for c in range(len(channels)))


def given_folds(path: Path, labelled: set[str]) -> tuple[dict[str, tuple[str, ...]], ...]:
    """Read the folds of a `splits_final.json`, each with its "train" and "val"; none if there is no such file.

    Raises:
        UserError: the file is broken, or names a case that is not labelled, or a fold has a case in both.
    """
    if not is_file(path):
        return ()
    folds = read_json(path)
    if not isinstance(folds, list) or not folds:
        raise UserError(f'{path} must hold a list of folds, {{"train": [cases], "val": [cases]}} each; or remove it')
    read = tuple({name: _members(fold, name, path) for name in ("train", "val")} for fold in folds)
    for number, fold in enumerate(read):
        for case in (*fold["train"], *fold["val"]):
            if case not in labelled:
                raise UserError(
                    f"{path} names case {case}, which is not among the labelled cases of the source; "
                    "correct it, or remove the file to have the split drawn"
                )
        if both := set(fold["train"]) & set(fold["val"]):
            raise UserError(f"{path}: case {min(both)} is in train and in val of fold {number}; leave it in one")
    return read


def chosen_fold(
    folds: Sequence[Mapping[str, tuple[str, ...]]], fold: int, path: Path
) -> dict[str, tuple[str, ...]] | None:
    """Make a split of one fold of `given_folds`, its "val" as test; None if there are no folds.

    Raises:
        UserError: there is no such fold.
    """
    if not folds:
        return None
    if fold >= len(folds):
        raise UserError(f"{path} has {len(folds)} folds; --split.fold {fold} must be below that")
    return {"train": folds[fold]["train"], "val": (), "test": folds[fold]["val"]}


def _members(fold: Any, name: str, path: Path) -> tuple[str, ...]:
    cases = entry_of(fold, name, path)
    if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
        raise UserError(f"{path}: {name!r} must be a list of cases, not {cases!r}")
    if twice := [case for case, count in Counter(cases).items() if count > 1]:
        raise UserError(f"{path}: case {twice[0]} stands twice in {name!r}; write it once")
    return tuple(cases)


READER = Reader(_matches, _read, frozenset({"plans", "configuration"}))
