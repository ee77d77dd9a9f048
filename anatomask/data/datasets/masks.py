"""Label maps that lie beside scans, known by their names and by their values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anatomask.data.datasets.base import stem, tell_reading
from anatomask.data.nifti import on_one_grid, read_nifti
from anatomask.errors import UserError

WORD = re.compile(r"(d?segs?|segmentations?|masks?|labels?|labelmaps?|annotations?|gt)\d*")
FOLDER = re.compile(r"(segs?|segmentations?|masks?|labels?|annotations?|gt)(tr|ts|va)?")
ONE_PER_ORGAN = "a mask per organ belongs into a folder `segmentations` beside its scan"
LARGEST = 255
"""Largest number of a class."""
READ_AT_ONCE = 4
"""Number of label maps read at once; each takes the memory of a scan."""


@dataclass(frozen=True)
class Found:
    """Scans, label maps and other files of a folder."""

    scans: tuple[Path, ...]
    labels: Mapping[Path, Path] = field(default_factory=dict)
    """Scan -> label map."""
    organs: Mapping[Path, Mapping[str, Path]] = field(default_factory=dict)
    """Scan -> class -> binary mask."""
    left_out: Mapping[Path, str] = field(default_factory=dict)
    """File -> reason why it is neither."""


def words(text: str) -> list[str]:
    """Split a name into its words of letters and digits, in lower case."""
    return re.findall(r"[a-z0-9]+", text.lower())


def in_folder_of_masks(relative: Path) -> bool:
    """Return whether the file's own folder is named like one of label maps."""
    return FOLDER.fullmatch(relative.parent.name.lower()) is not None


def is_named_like_mask(relative: Path) -> bool:
    """Return whether the file's name has a word such as seg or mask, or its folder is named like one of label maps."""
    return in_folder_of_masks(relative) or any(WORD.fullmatch(word) for word in words(stem(relative)))


def find_masks(files: Sequence[Path], source: Path) -> Found:
    """Tell scans from the label maps beside them.

    A file that is named like a label map is the label of the one scan beside it that has the same grid, and whose name
    begins as its own does; the scans of files in a folder such as `labels` may lie in another folder beside that one.
    Other files in such a folder are masks of one organ each, if the folder above holds one scan, and no scan of the
    source has a label map. Where no such scan is there, or several, a label map is left out. A file with a word such as
    seg in its name that is no label map is a scan.
    """
    masks = {path: None for path in files if is_named_like_mask(path.relative_to(source))}
    scans = [path for path in files if path not in masks]
    above = _only_scans(scans)
    spoken = {scan: words(stem(scan)) for scan in scans}
    left_out: dict[Path, str] = {}
    named: dict[Path, list[Path]] = {}
    organs: dict[Path, dict[str, Path]] = {}
    twice: dict[Path, str] = {}
    for mask in masks:
        apart = in_folder_of_masks(mask.relative_to(source))
        near = _beside(mask, apart, spoken)
        candidates = [scan for scan in near if on_one_grid(mask, scan)]
        if len(candidates) == 1:
            named.setdefault(candidates[0], []).append(mask)
        elif apart and not near and (owner := above.get(mask.parent.parent)):
            first = organs.setdefault(owner, {}).setdefault(stem(mask), mask)
            if first != mask:
                both = f"{first.relative_to(source)} and {mask.relative_to(source)}"
                left_out[mask] = twice[owner] = f"{both} may be of one organ (take one out of the source)"
        elif not apart and class_values(mask) == set():
            scans.append(mask)
        else:
            left_out[mask] = (
                "several scans are beside it" if candidates else "no scan of its grid and name is beside it"
            )
    for scan, paths in named.items():
        if len(paths) > 1:
            why = f"{len(paths)} label maps are beside the scan {scan.relative_to(source)} ({ONE_PER_ORGAN})"
            left_out |= dict.fromkeys(paths, why)
    for scan, why in twice.items():
        left_out |= dict.fromkeys(organs.pop(scan).values(), why)
    labels = {scan: paths[0] for scan, paths in named.items() if len(paths) == 1}
    if labels:
        why = "some scans have label maps, so it is not read as the mask of an organ"
        left_out |= {path: why for one in organs.values() for path in one.values()}
    return Found(tuple(sorted(scans)), labels, {} if labels else organs, left_out)


def _only_scans(scans: Sequence[Path]) -> dict[Path, Path]:
    """Map each folder that holds a single scan to this scan."""
    held: dict[Path, list[Path]] = {}
    for scan in scans:
        held.setdefault(scan.parent, []).append(scan)
    return {folder: paths[0] for folder, paths in held.items() if len(paths) == 1}


def _beside(mask: Path, apart: bool, scans: Mapping[Path, list[str]]) -> list[Path]:
    """List the scans of which a file may be the label: by their places and names.

    Args:
        mask: a file that is named like a label map.
        apart: True if it is in a folder of such files, so that the scans may be in a folder beside that one.
        scans: scan -> words of its name.
    """
    own = [word for word in words(stem(mask)) if not WORD.fullmatch(word)]
    near = []
    for scan, name in scans.items():
        beside = scan.parent == mask.parent or (apart and mask.parent.parent in (scan.parent, scan.parent.parent))
        if beside and own[: len(name)] == name[: len(own)]:
            near.append(scan)
    exact = [scan for scan in near if scans[scan] == own]
    return exact or near


def class_values(path: Path) -> set[int] | None:
    """List the values of a label map; none if the file is not one (see `LARGEST`), None if it cannot be read."""
    try:
        voxels, _ = read_nifti(path)
    except UserError:
        return None
    if voxels.dtype.kind == "f" and not np.array_equal(voxels, np.round(voxels)):
        return set()
    if voxels.min() < 0 or voxels.max() > LARGEST:
        return set()
    return set(np.unique(voxels.astype(np.uint8)).tolist())


def values_of(paths: Sequence[Path]) -> dict[Path, set[int] | None]:
    """Return `class_values` of every file; each is read once. Where that takes long, it is told."""
    tell_reading(len(paths), "to see which classes they hold; --reader.label-names FILE names these instead")
    with ThreadPoolExecutor(READ_AT_ONCE) as readers:
        return dict(zip(paths, readers.map(class_values, paths), strict=True))
