"""The classes of a label map: which values it may hold, and keeping some of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anatomask.errors import UserError

if TYPE_CHECKING:  # a reader imports this
    from anatomask.data.datasets.base import RawDataset

ReadLabel = Callable[[Path], tuple[np.ndarray, np.ndarray]]


def refuse_unknown(path: Path, voxels: np.ndarray, classes: Collection[int]) -> None:
    """Check that a label map holds no value other than 0 and the ids in `classes`.

    Raises:
        UserError: the map holds another value; the message names `path`.
    """
    unknown = [value for value in np.unique(voxels).tolist() if value != 0 and value not in classes]
    if unknown:
        values = ", ".join(f"{value:g}" for value in unknown[:5])
        raise UserError(f"{path} holds {values}, which the data set does not list; correct the label or the list")


@dataclass(frozen=True)
class SelectedLabels:
    """Reader of a label map that renumbers the kept classes 1 … K in their order; the others become background."""

    read: ReadLabel
    known: tuple[int, ...]
    """Ids that the file may hold."""
    kept: tuple[int, ...]

    def __call__(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Read the renumbered map (D, H, W) and its affine.

        Raises:
            UserError: the file holds a value that is not known.
        """
        voxels, affine = self.read(path)
        refuse_unknown(path, voxels, self.known)
        table = np.zeros(max(self.known) + 1, np.uint8)
        table[list(self.kept)] = np.arange(1, len(self.kept) + 1)
        return table[voxels.astype(np.int64)], affine


def select_classes(raw: RawDataset, names: Sequence[str]) -> RawDataset:
    """Keep only the classes in `names`, renumbered 1 … K in this order; keep all if `names` is empty.

    Raises:
        UserError: a name is none of the data set's classes.
    """
    if not names:
        return raw
    ids = {name: number for number, name in raw.class_names.items()}
    missing = [name for name in names if name not in ids]
    if missing:
        raise UserError(f"--preprocess.classes {missing[0]}: no such class; there are {', '.join(ids) or 'none'}")
    kept = tuple(ids[name] for name in names)
    cases = tuple(
        case
        if case.label is None
        else replace(
            case, label=replace(case.label, read=SelectedLabels(case.label.read, tuple(raw.class_names), kept))
        )
        for case in raw.cases
    )
    return replace(
        raw,
        cases=cases,
        class_names=dict(enumerate(names, start=1)),
        nsd_tolerance={new: raw.nsd_tolerance[old] for new, old in enumerate(kept, start=1)},
    )
