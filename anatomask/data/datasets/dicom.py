"""DICOM: any folders of CT, MR and PET slices; a series is a case, without label.

A series may be spread over folders, as PACS export it by the hundred files. Where its folders hold slices at the same
places, as phases or echoes that somebody sorted, each of them is a case.

HU come from each slice's RescaleSlope and RescaleIntercept. Slices are sorted by their position along the normal of the
image plane, whatever their names and numbers are. A series is refused by name if slices are missing, duplicated,
unevenly spaced, sheared (gantry tilt) or of different kinds. PET is in the unit that the scanner wrote (mostly Bq/ml),
not SUV. Localizers, and files that hold no scan (structures, reports, dose), are left out, and a remark says so.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_rescale

from anatomask.data.datasets.base import RawCase, RawDataset, RawImage, Reader, case_name, refused_case
from anatomask.data.fingerprint import Scheme
from anatomask.data.listing import files_below, is_file, require_file
from anatomask.data.memory import require_room
from anatomask.data.settings import ReaderConfig
from anatomask.errors import UserError, reason

MODALITIES = {"CT": "ct", "MR": "mr", "PT": "pet"}
"""Modality in DICOM that is a scan -> its name in `ReaderConfig.modality`."""
PREAMBLE, MAGIC = 128, b"DICM"
UNREADABLE = (
    InvalidDicomError, BytesLengthException, AttributeError, KeyError, NotImplementedError, RuntimeError, OSError,
    ValueError, TypeError, EOFError, OverflowError, IndexError, struct.error,
)  # fmt: skip
"""Errors that pydicom raises for files that are cut off, damaged, or compressed in a way that needs another package."""
HEADER = [
    "SeriesInstanceUID", "SeriesNumber", "SOPInstanceUID", "Modality", "ImageType", "PatientID", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient",
]  # fmt: skip
GAP_TOLERANCE = 0.1
"""Share of the distance between slices by which one distance may differ; headers hold rounded positions."""


@dataclass(frozen=True)
class Slice:
    """Header of one file."""

    path: Path
    modality: str
    number: int | None
    patient: str
    localizer: bool
    instance: str
    place: str
    """Position as the header writes it; empty where it has none."""


@dataclass(frozen=True)
class Stack:
    """Slices in order, and the grid that they make."""

    names: tuple[str, ...]
    shape: tuple[int, int, int]
    """Shape as (columns, rows, slices)."""
    affine: np.ndarray


@contextmanager
def without_warnings() -> Iterator[None]:
    """Hide pydicom's warnings of strange values from the user; values that matter are refused by name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pydicom\b")
        yield


def is_dicom(path: Path) -> bool:
    """Return whether the path is a file with DICOM's magic word."""
    try:
        with path.open("rb") as stream:
            stream.seek(PREAMBLE)
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _matches(source: Path) -> bool:
    return any(is_file(path) and is_dicom(path) for path in files_below(source))


@without_warnings()
def _read(source: Path, fold: int, options: ReaderConfig) -> RawDataset:
    series: dict[tuple[str, str], dict[Path, list[Slice]]] = defaultdict(lambda: defaultdict(list))
    cases: list[RawCase] = []
    others: Counter[str] = Counter()
    paths = sorted(filter(is_file, files_below(source)))
    scans = {path for path in paths if is_dicom(path)}
    patterns = {_pattern(path) for path in scans}
    for path in paths:
        if path not in scans:
            if path.suffix.lower() in (".dcm", ".ima") or _pattern(path) in patterns:
                cases.append(_broken(path, source))
            continue
        try:
            uid, found = _header(path)
        except UNREADABLE:
            cases.append(_broken(path, source))
            continue
        if found is None:
            others[uid] += 1
        elif found.localizer:
            others["localizer"] += 1
        elif options.modality not in ("all", MODALITIES[found.modality]):
            others[found.modality] += 1
        else:
            series[uid, found.patient][path.parent].append(found)
    modalities = {one.modality for folders in series.values() for slices in folders.values() for one in slices}
    volumes: dict[Path, dict[tuple[str, str], list[Slice]]] = defaultdict(dict)
    spread: list[Path] = []
    for key, folders in series.items():
        parts = _volumes(folders)
        spread += [folder for folder in parts if len(parts) < len(folders)]
        for folder, slices in parts.items():
            volumes[folder][key] = slices
    for folder, there in volumes.items():
        cases += _cases(folder, there, source)
    name = modalities.pop() if len(modalities) == 1 else "CT, MR or PT"
    scheme: Scheme = "ct" if name == "CT" else "zscore"
    return RawDataset(
        reader="dicom",
        cases=tuple(sorted(cases, key=lambda raw: raw.case)),
        channel_names=(name,),
        schemes=(scheme,),
        class_names={},
        nsd_tolerance={},
        remarks=tuple(_remarks(others, len(modalities), spread)),
    )


def _remarks(others: Counter[str], mixed: int, spread: Sequence[Path]) -> Iterator[str]:
    for kind, count in sorted(others.items()):
        yield f"{count} files left out: {kind}"
    if mixed:
        yield "modalities are mixed, so each scan is normalised by itself; --reader.modality takes one of them"
    if spread:
        yield f"{len(spread)} series are spread over several folders and read as one scan each, as in {spread[0]}"


def _header(path: Path) -> tuple[str, Slice | None]:
    """Read a slice and its series; for a file that is no scan, return its modality and None.

    Raises:
        Exception: one of `UNREADABLE`, where the file is damaged.
    """
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=HEADER)
    modality = str(header.get("Modality") or "no modality")
    if modality not in MODALITIES or "Rows" not in header:
        return modality, None
    number = header.get("SeriesNumber")
    localizer = "LOCALIZER" in [str(value).upper() for value in (header.get("ImageType") or [])]
    patient = str(header.get("PatientID") or "").strip()
    instance = str(header.get("SOPInstanceUID") or "")
    one = Slice(path, modality, None if number is None else int(number), patient, localizer, instance, _place(header))
    return str(header.SeriesInstanceUID), one


def _place(header: Any) -> str:
    try:
        return str(header.get("ImagePositionPatient") or "")
    except UNREADABLE:  # reading the series will say so
        return ""


def _volumes(folders: Mapping[Path, list[Slice]]) -> Mapping[Path, list[Slice]]:
    """Join the slices of a series under the folder around them, or leave them in folders that hold the same places.

    Where only some of the places are the same, or slices are, they are joined, too: reading refuses them by name.
    """
    slices = [one for there in folders.values() for one in there]
    places = {tuple(sorted(one.place for one in there)) for there in folders.values()}
    if len(places) == 1 and len({one.instance for one in slices}) == len(slices):
        return folders
    return {Path(os.path.commonpath(folders)): slices}


def _cases(folder: Path, series: Mapping[tuple[str, str], list[Slice]], source: Path) -> list[RawCase]:
    """Make a case per series, named after the folder and, where it holds several series, after their numbers too."""
    relative = folder.relative_to(source).parts
    numbers = [slices[0].number for slices in series.values()]
    distinct = None not in numbers and len(set(numbers)) == len(numbers)
    cases = []
    for position, (_, slices) in enumerate(sorted(series.items()), start=1):
        suffix = () if len(series) == 1 else (f"series{slices[0].number if distinct else position}",)
        case = case_name(*(relative or (source.name,)), *suffix)
        patient = slices[0].patient or (relative[0] if relative else case)
        names = tuple(sorted(one.path.relative_to(folder).as_posix() for one in slices))
        image = RawImage(folder, partial(read_series, names=names), partial(read_grid, names=names))
        cases.append(RawCase(case, patient, (image,)))
    return cases


def _pattern(path: Path) -> tuple[Path, str]:
    """Return folder and name without its numbers, which is the same for all slices of a series."""
    return path.parent, re.sub(r"\d+", "#", path.name)


def _broken(path: Path, source: Path) -> RawCase:
    """Make a case that fails from a file that cannot be read, so that no slice is lost unnoticed."""
    case = case_name(*path.relative_to(source).parts)
    remedy = "get it again, or delete it if it is no slice of a scan"
    return refused_case(case, path, f"{path} is no DICOM file or is damaged; {remedy}")


@without_warnings()
def read_grid(folder: Path, names: Sequence[str]) -> tuple[tuple[int, int, int], np.ndarray]:
    """Read shape and affine of a series from the headers of its slices.

    Raises:
        UserError: as `read_series`.
    """
    stack = _stack(folder, names)
    return stack.shape, stack.affine


@without_warnings()
def read_series(folder: Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read the voxels (columns, rows, slices) float32 of a series, and the affine (4, 4) to RAS mm.

    Args:
        folder: folder of the files, or around their folders.
        names: paths of the files in it, in any order.

    Raises:
        UserError: a slice is missing, duplicated, damaged or of another kind than the others, the slices are
            unevenly spaced or sheared, a CT has no HU, or the voxels exceed the available memory.
    """
    stack = _stack(folder, names)
    require_room(folder, stack.shape, np.dtype(np.float32).itemsize)
    voxels = np.empty(stack.shape, np.float32)
    for k, name in enumerate(stack.names):
        voxels[:, :, k] = _pixels(folder / name).T
    if not np.isfinite(voxels).all():
        raise UserError(f"{folder} ({_named(names)}) has voxels that are NaN or infinite; leave it out")
    return voxels, stack.affine


def _pixels(path: Path) -> np.ndarray:
    """Read the pixels (rows, columns) in the unit of the modality: HU for CT."""
    try:
        file = pydicom.dcmread(path)
        if file.Modality == "CT" and not {"RescaleSlope", "RescaleIntercept"} <= set(file.dir()):
            raise UserError(f"{path} lacks RescaleSlope or RescaleIntercept: its HU are unknown; leave the series out")
        return apply_rescale(file.pixel_array, file)
    except UNREADABLE as error:
        raise UserError(
            f"{path}: its pixels cannot be read ({reason(error)}); get it again, or decompress it first "
            "(gdcmconv --raw), or install python-gdcm"
        ) from error


def _stack(folder: Path, names: Sequence[str]) -> Stack:
    headers = {name: _geometry(folder / name) for name in names}
    first = headers[names[0]]
    for name, header in headers.items():
        _same_kind(folder / name, header, folder / names[0], first)
    twice = [
        uid for uid, count in Counter(str(header.SOPInstanceUID) for header in headers.values()).items() if count > 1
    ]
    if twice:
        same = [name for name in names if str(headers[name].SOPInstanceUID) == twice[0]]
        raise UserError(f"{folder}: {same[0]} and {same[1]} are the same slice; delete one of them")
    across, down = (np.array(first.ImageOrientationPatient[part], float) for part in (slice(0, 3), slice(3, 6)))
    normal = np.cross(across, down)
    positions = {name: np.array(header.ImagePositionPatient, float) for name, header in headers.items()}
    ordered = sorted(names, key=lambda name: float(positions[name] @ normal))
    if len(ordered) < 2:
        raise UserError(f"{folder / names[0]} is the only slice of its series; a volume has two at least")
    _evenly_spaced(folder, ordered, [float(positions[name] @ normal) for name in ordered])
    step = (positions[ordered[-1]] - positions[ordered[0]]) / (len(ordered) - 1)
    rows_apart, columns_apart = map(float, first.PixelSpacing)
    drift = np.linalg.norm(step - (step @ normal) * normal) * (len(ordered) - 1)
    if drift > min(rows_apart, columns_apart):
        raise UserError(
            f"{folder} ({_named(names)}) is sheared by {drift:.1f} mm (gantry tilt); convert it to NIfTI first"
        )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = across * columns_apart, down * rows_apart, step
    affine[:3, 3] = positions[ordered[0]]
    affine[:2] *= -1  # DICOM's axes point to the left and back
    return Stack(tuple(ordered), (int(first.Columns), int(first.Rows), len(ordered)), affine)


def _geometry(path: Path) -> Any:
    """Read a slice's geometry from its header.

    Raises:
        UserError: the header does not say where the slice lies.
    """
    require_file(path)
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=HEADER)
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise UserError(f"{path} holds many frames (enhanced DICOM), which is not read; convert it to NIfTI first")
        if int(header.get("SamplesPerPixel") or 1) > 1:
            raise UserError(f"{path} is a colour picture, no scan; leave it out")
        numbers = [*header.ImagePositionPatient, *header.ImageOrientationPatient, *header.PixelSpacing]
        good = len(numbers) == 11 and np.isfinite(np.array(numbers, float)).all() and min(header.PixelSpacing) > 0
        axes = np.array(header.ImageOrientationPatient, float).reshape(2, 3) if good else np.zeros((2, 3))
        good = good and min(int(header.Rows), int(header.Columns)) > 0 and bool(header.SOPInstanceUID)
    except UNREADABLE as error:
        raise UserError(f"{path} does not say where its slice lies ({reason(error)}); leave the series out") from error
    if not good or not np.allclose(axes @ axes.T, np.eye(2), atol=1e-2):
        raise UserError(f"{path} does not say where its slice lies (position, orientation, spacing); leave it out")
    return header


def _same_kind(path: Path, header: Any, first_path: Path, first: Any) -> None:
    """Refuse slices of one series that do not lie in parallel on one grid."""
    for name, tolerance in (("Rows", 0.0), ("Columns", 0.0), ("PixelSpacing", 1e-3), ("ImageOrientationPatient", 1e-2)):
        if not np.allclose(np.array(header[name].value, float), np.array(first[name].value, float), atol=tolerance):
            raise UserError(
                f"{path} has {name} {header[name].value}, but {first_path} of the same series {first[name].value}; "
                "split the series"
            )


def _evenly_spaced(folder: Path, names: Sequence[str], depths: Sequence[float]) -> None:
    """Refuse a series that is unevenly spaced, or in which a slice is duplicated or missing."""
    gaps = np.diff(depths)
    usual = float(np.median(gaps))
    same = [k for k, gap in enumerate(gaps) if gap < 1e-3]
    if same:
        raise UserError(
            f"{folder}: {len(same) + 1} slices or more lie where another does, as {names[same[0]]} and "
            f"{names[same[0] + 1]} (several times, echoes or reconstructions?); split the series"
        )
    for k, gap in enumerate(gaps):
        if abs(gap - usual) > GAP_TOLERANCE * usual:
            lost = "a slice is missing" if abs(gap / usual - round(gap / usual)) < GAP_TOLERANCE else "uneven spacing"
            raise UserError(
                f"{folder}: {lost} between {names[k]} and {names[k + 1]}: {gap:.2f} mm, elsewhere {usual:.2f} mm; "
                "get the series again or leave it out"
            )


def _named(names: Sequence[str]) -> str:
    return f"{names[0]} … {names[-1]}"


READER = Reader(_matches, _read, frozenset({"modality"}))
