"""Files that are the channels of one case, known by their names and their grids."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from anatomask.data.datasets.base import stem
from anatomask.data.nifti import on_one_grid

CHANNEL = re.compile(r"(.+)_(\d{4})")
"""Pattern of the name of a channel's file, as nnU-Net's: case and number."""


def group_channels(files: Iterable[Path]) -> list[tuple[str, tuple[Path, ...]]]:
    """Group files by case: those that are the channels of one case, and each other file alone.

    Channels are files of one folder that are named as in nnU-Net, `<case>_0000.nii.gz`, `<case>_0001.nii.gz` and so on
    without a gap, and lie on one grid. Other files with such numbers are scans of their own.

    Returns:
        Name of each case, without its folder, and its files; a channel's number is not part of the name.
    """
    every = sorted(files)
    names = {(path.parent, stem(path)) for path in every}
    groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in every:
        match = CHANNEL.fullmatch(stem(path))
        case = match[1] if match and (path.parent, match[1]) not in names else stem(path)
        groups[path.parent, case].append(path)
    found: list[tuple[str, tuple[Path, ...]]] = []
    for (_, case), paths in groups.items():
        alone = [(stem(path), (path,)) for path in paths]
        found += [(case, tuple(paths))] if _are_channels(case, paths) else alone
    return found


def _are_channels(case: str, paths: Sequence[Path]) -> bool:
    numbered = [stem(path) for path in paths] == [f"{case}_{number:04d}" for number in range(len(paths))]
    return numbered and all(on_one_grid(path, paths[0]) for path in paths[1:])
