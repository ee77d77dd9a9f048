"""Any folder of NIfTI scans, nested or not, with label maps beside them or without.

A file that is named like a label map (`_seg`, `-mask`, `labels/…`) is the label of the scan beside it, or is left out
with a remark; a folder such as `segmentations` beside a scan may hold a mask per organ. `--reader.image` and
`--reader.label` name both by patterns instead. The classes are the values of the label maps, which are read once to
list them, or those of `--reader.label-names`; or the names of the masks.

A few scans (at most 8, spread over the folder) are inspected. If all look like HU, all scans are taken as CT, else as
"MR", or "CT or MR" where both are found, which is normalised scan by scan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from anatomask.data.classes import select_classes
from anatomask.data.datasets.base import (
    DEFAULT_NSD_TOLERANCE,
    RawCase,
    RawDataset,
    RawImage,
    Reader,
    nifti_files,
    nifti_image,
    nifti_label,
    stem,
)
from anatomask.data.datasets.channels import group_channels
from anatomask.data.datasets.masks import LARGEST, Found, find_masks, values_of
from anatomask.data.datasets.nnunet import classes_of
from anatomask.data.datasets.organ_masks import organ_label
from anatomask.data.datasets.patterns import matched
from anatomask.data.listing import files_below, is_file
from anatomask.data.settings import ReaderConfig
from anatomask.errors import UserError
from anatomask.names import some
from anatomask.parsing import read_json

LOOKED_AT = 8
AIR_HU = -500
"""HU below which only air (-1000 HU) lies: no other kind of scan has a thousandth of its voxels below this."""
SUBJECT = re.compile(r"(?<![0-9A-Za-z])sub-[0-9A-Za-z]+")
"""Patient as BIDS names it."""
NO_PATIENT = re.compile(
    r"(images?|imgs?|scans?|volumes?|data|raw|nifti|train(ing)?|val(idation)?|test(ing)?)(tr|ts|va)?"
)
"""Folders that are named after what is in them, not after a patient."""


def looks_like_ct(voxels: np.ndarray) -> bool:
    """Return whether at least a thousandth of the voxels lie below `AIR_HU`."""
    return bool(np.mean(voxels < AIR_HU) >= 1e-3)


def all_ct(images: Sequence[RawImage]) -> bool:
    """Return whether all inspected scans that can be read look like CT; False if none can be read."""
    verdicts = _like_ct(images)
    return bool(verdicts) and all(verdicts)


def _like_ct(images: Sequence[RawImage]) -> list[bool]:
    """Inspect a few scans: whether each of those that can be read looks like CT."""
    verdicts = []
    for i in np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).round().astype(int)):
        try:
            verdicts.append(looks_like_ct(images[i].read(images[i].path)[0]))
        except Exception:  # whatever a broken file makes its library do
            continue  # it will be listed with its reason when its turn comes
    return verdicts


def _matches(source: Path) -> bool:
    return any(True for _ in nifti_files(source))


def _read(source: Path, fold: int, options: ReaderConfig) -> RawDataset:
    files = sorted(nifti_files(source))
    if options.image:
        found, names = _by_patterns(files, source, options)
    elif options.label:
        raise UserError(f"--reader.label {options.label} needs --reader.image: give the pattern of the scans, too")
    else:
        found = find_masks(files, source)
        names = _by_numbers(found.scans, source)
    found, classes = _with_classes(found, options)
    cases = tuple(_case(path, source, found, classes, names[path], options) for path in found.scans)
    like_ct = _like_ct([raw.images[0] for raw in cases])
    ct = bool(like_ct) and all(like_ct)
    raw = RawDataset(
        reader="folder",
        cases=cases,
        channel_names=("CT",) if ct else ("CT or MR",) if any(like_ct) else ("MR",),
        schemes=("ct",) if ct else ("zscore",),
        class_names=classes,
        nsd_tolerance=dict.fromkeys(classes, DEFAULT_NSD_TOLERANCE),
        remarks=tuple(_remarks(source, found, cases, like_ct, options)),
    )
    return select_classes(raw, tuple(classes.values())) if [*classes] != [*range(1, len(classes) + 1)] else raw


def _by_patterns(files: Sequence[Path], source: Path, options: ReaderConfig) -> tuple[Found, dict[Path, str]]:
    """Find scans and labels by the patterns; a file that matches both is a label.

    Returns:
        what was found, and scan -> name of its case.

    Raises:
        UserError: a pattern matches no file, or no label belongs to a scan.
    """
    labels = matched(files, source, options.label, "--reader.label") if options.label else {}
    scans = matched([path for path in files if path not in labels], source, options.image, "--reader.image")
    by_name: dict[tuple[str, ...], Path] = {}
    for path, name in labels.items():
        if (first := by_name.setdefault(name, path)) != path:
            raise UserError(
                f"{first} and {path} may both be the label of a scan by --reader.label {options.label}; correct it"
            )
    paired = {path: by_name[name] for path, name in scans.items() if name in by_name}
    if labels and not paired:
        one, other = next(iter(scans.values())), next(iter(labels.values()))
        raise UserError(
            f"no label of --reader.label {options.label} belongs to a scan of --reader.image {options.image}: what "
            f"their wildcards stand for must be the same in both, but it is like {'/'.join(one) or 'nothing'!r} in "
            f"scans and like {'/'.join(other) or 'nothing'!r} in labels"
        )
    alone = set(labels) - set(paired.values())
    left_out = dict.fromkeys(sorted(alone), "no scan belongs to it")
    names = {path: "_".join(name) or stem(path) for path, name in scans.items()}
    return Found(tuple(sorted(scans)), paired, left_out=left_out), names


def _by_numbers(scans: Sequence[Path], source: Path) -> dict[Path, str]:
    """Name the case of each scan, without the number of its channel.

    Raises:
        UserError: a case has several channels, which this layout cannot name.
    """
    groups = group_channels(scans)
    several = next((paths for _, paths in groups if len(paths) > 1), ())
    if several:
        raise UserError(
            f"{some([str(path.relative_to(source)) for path in several])} of {source} are the channels of one case by "
            "their numbers and their grid; lay them out as nnU-Net's raw data, whose dataset.json names channels, or "
            "choose one, or all as scans of their own, by --reader.image PATTERN"
        )
    return {paths[0]: "_".join((*paths[0].parent.relative_to(source).parts, case)) for case, paths in groups}


def _with_classes(found: Found, options: ReaderConfig) -> tuple[Found, dict[int, str]]:
    """Settle the classes, and leave out labels that are no label maps.

    Raises:
        UserError: the file of names cannot be read, or nothing needs names; or there are too many classes.
    """
    if found.organs:
        return found, _classes_of_organs(found, options)
    if options.label_names:
        path = Path(options.label_names)
        if not is_file(path):
            raise UserError(f'--reader.label-names {path} is no file; give a JSON file such as {{"liver": 1}}')
        content = read_json(path)
        return found, classes_of(content.get("labels", content) if isinstance(content, Mapping) else content, path)
    values = values_of(list(found.labels.values()))
    no_maps = {path: "it holds values other than 0 … 255" for path, held in values.items() if held == set()}
    labels = {scan: path for scan, path in found.labels.items() if path not in no_maps}
    numbers = sorted({value for held in values.values() for value in held or ()} - {0})
    classes = {number: f"class {number}" for number in numbers}
    return replace(found, labels=labels, left_out={**found.left_out, **no_maps}), classes


def _classes_of_organs(found: Found, options: ReaderConfig) -> dict[int, str]:
    """Number the names of the masks, in alphabetical order.

    Raises:
        UserError: names of labels are given, too, or there are too many classes.
    """
    if options.label_names:
        raise UserError(
            f"--reader.label-names {options.label_names} names the values of label maps, but here is a mask per organ, "
            "named by its file; leave it out"
        )
    names = sorted({name for masks in found.organs.values() for name in masks})
    if len(names) > LARGEST:
        raise UserError(
            f"the masks beside scans have {len(names)} names, and a label map holds {LARGEST} classes; leave some out"
        )
    return dict(enumerate(names, start=1))


def _case(
    path: Path, source: Path, found: Found, classes: Mapping[int, str], name: str, options: ReaderConfig
) -> RawCase:
    relative = path.relative_to(source)
    label = nifti_label(found.labels[path]) if path in found.labels else None
    if organs := found.organs.get(path):
        masks = {c: organs[organ] for c, organ in classes.items() if organ in organs}
        label = organ_label(masks[min(masks)].parent, masks)
    return RawCase(name, _patient(relative, name, options.patient), (nifti_image(path),), label)


def _patient(relative: Path, case: str, expression: str) -> str:
    """Name the patient of a scan: by the expression, else as BIDS does, else by the topmost folder, else by the case.

    Raises:
        UserError: the expression is not valid, or is not found in the scan's path.
    """
    if expression:
        try:
            found = re.search(expression, relative.as_posix())
        except re.error as error:
            raise UserError(f"--reader.patient {expression} is no regular expression ({error}); correct it") from error
        if found is None or not (patient := found[1] if found.re.groups else found[0]):
            raise UserError(f"--reader.patient {expression} finds no patient in {relative.as_posix()}; correct it")
        return patient
    if subject := SUBJECT.search(relative.as_posix()):
        return subject[0]
    return next(iter(_own_folders(relative)), case)


def _own_folders(relative: Path) -> list[str]:
    """List the folders around a file that are not named after what is in them, the topmost first."""
    return [part for part in relative.parent.parts if not NO_PATIENT.fullmatch(part.lower())]


def _crowded(scans: Iterable[Path]) -> dict[str, list[str]]:
    """Map each folder that is taken for a patient and in which several folders hold scans to these."""
    inside: dict[str, set[str]] = {}
    for relative in scans:
        if len(folders := _own_folders(relative)) > 1 and not SUBJECT.search(relative.as_posix()):
            inside.setdefault(folders[0], set()).add(folders[1])
    return {patient: sorted(folders) for patient, folders in inside.items() if len(folders) > 1}


def _remarks(
    source: Path, found: Found, cases: Sequence[RawCase], like_ct: Sequence[bool], options: ReaderConfig
) -> Iterable[str]:
    if any(like_ct) and not all(like_ct):
        yield (
            f"{sum(like_ct)} of {len(like_ct)} inspected scans look like CT and the others do not, so every scan is "
            "normalised by itself; --reader.image chooses some"
        )
    if found.labels and not options.image:
        scan, label = next(iter(found.labels.items()))
        yield (
            f"{len(found.labels)} files are named like label maps and are taken as the labels of the scans beside them,"
            f" as {label.relative_to(source)} of {scan.relative_to(source)}; --reader.image and --reader.label choose"
        )
    if found.organs:
        scan, organs = next(iter(found.organs.items()))
        masks = min(organs.values()).parent.relative_to(source)
        yield (
            f"the labels of {len(found.organs)} scans are a mask per organ, as in {masks}/ for "
            f"{scan.relative_to(source)}; classes are named after the files, and where masks overlap the last by "
            "alphabet wins"
        )
    if series := sum(path.suffix.lower() == ".dcm" for path in files_below(source)):
        yield f"{series} DICOM files left out, as there are NIfTI files; --dataset dicom reads them and no NIfTI"
    reasons: dict[str, list[str]] = {}
    for path, why in found.left_out.items():
        reasons.setdefault(why, []).append(str(path.relative_to(source)))
    for why, paths in reasons.items():
        yield f"{some(paths)} left out: named like a label map, but {why}; --reader.image and --reader.label choose"
    if found.labels and not options.label_names:
        yield "classes are named after their values, as class 1; --reader.label-names names them"
    if not options.patient and (crowded := _crowded(path.relative_to(source) for path in found.scans)):
        patient, folders = next(iter(crowded.items()))
        yield (
            f"{some(sorted(crowded))} taken as one patient each, though several folders there hold scans, as "
            f"{some(folders)} of {patient}; if these are the patients, --reader.patient names them"
        )
    labelled = [case.patient for case in cases if case.label is not None]
    if 0 < len(patients := set(labelled)) < 3:
        yield (
            f"all {len(labelled)} labelled scans are taken as those of {some(sorted(patients))}, and fewer than 3 "
            "patients cannot be divided into train, val and test; --reader.patient names the patients"
        )
    elif len(cases) > 1 and len(patients := {case.patient for case in cases}) == 1:
        yield f"all scans are taken as those of one patient, {min(patients)}; --reader.patient names the patients"


READER = Reader(_matches, _read, frozenset({"image", "label", "label_names", "patient"}))
