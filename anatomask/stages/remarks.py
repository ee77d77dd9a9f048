"""Remarks before a training on settings that are allowed and may surprise."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from anatomask.data.addresses import public_address
from anatomask.data.folds import fold_numbers
from anatomask.data.shards import PreparedDataset
from anatomask.names import some
from anatomask.training.fixed_scans import FixedCases

SPACING_TOLERANCE = 0.05
"""Relative difference of two voxel sizes up to which they count as the same."""


def large_crops(dataset: PreparedDataset, cases: Sequence[str], patch_size: Sequence[int]) -> list[str]:
    """Remark on crops that are larger, along some axis, than most of the scans, which are then padded."""
    shapes = [dataset.records[case].shape for case in cases]
    smaller = sum(any(extent < edge for extent, edge in zip(shape, patch_size, strict=True)) for shape in shapes)
    if 2 * smaller <= len(shapes):
        return []
    typical = " x ".join(str(round(statistics.median(extents))) for extents in zip(*shapes, strict=True))
    return [
        f"crops of {' x '.join(map(str, patch_size))} voxels are larger than {smaller} of the {len(shapes)} scans, "
        f"which are padded (the median scan has {typical}); --loader.patch-size sets the size"
    ]


def little_context(shapes: Mapping[str, Sequence[int]], window: Sequence[int]) -> list[str]:
    """Remark on scans that fill less than half of a window along some axis, so that a network sees mostly padding.

    Args:
        shapes: voxels of each scan in RAS axes, at the network's spacing, by case.
        window: voxels of a window.
    """
    thin = [
        f"{case} {shape[axis]} of {window[axis]} voxels along {'RAS'[axis]}"
        for case, shape in shapes.items()
        for axis in [min(range(3), key=lambda axis: shape[axis] / window[axis])]
        if 2 * shape[axis] < window[axis]
    ]
    if not thin:
        return []
    return [
        f"the network sees more padding than scan in {len(thin)} of the {len(shapes)} scans, which fill less than half "
        f"of a window ({some(thin)}): look at their label maps before you use them"
    ]


def trained_on(header: Mapping[str, Any], dataset: PreparedDataset, split: str) -> list[str]:
    """Remark where the cases to be scored are those that a network was trained on."""
    if split != "train" or header.get("data") != public_address(dataset.path):
        return []
    return [f"the network was trained on the cases of {split}: their scores say nothing of new scans"]


def watched_test_cases(dataset: PreparedDataset, fixed: FixedCases) -> list[str]:
    """Remark on test cases by which a pretraining is watched, because there are no others that it does not train on."""
    tested = set(dataset.splits.get("test", ()))
    labelled = [case for case in fixed.cases if case in tested and dataset.records[case].labelled]
    if not (fixed.held_out and labelled):
        return []
    return [f"the training is watched on test cases, which it does not train on: {some(labelled)}"]


def other_data(header: Mapping[str, Any], dataset: PreparedDataset) -> list[str]:
    """Remark where initial weights were trained at another voxel size, or on channels of other names or schemes."""
    found = []
    spacing = header.get("spacing")
    if spacing and any(abs(a / b - 1) > SPACING_TOLERANCE for a, b in zip(spacing, dataset.spacing, strict=True)):
        flag = f"--preprocess.spacing {' '.join(f'{mm:g}' for mm in spacing)}"
        found.append(
            f"the weights were trained at {_mm(spacing)}, {dataset.name} has {_mm(dataset.spacing)}: what they know "
            f"has another size; `prepare {flag}` makes it the same"
        )
    theirs = [f"{one['name']} as {one['scheme']}" for one in (header.get("fingerprint") or {}).get("channels", ())]
    mine = [f"{one.name} as {one.scheme}" for one in dataset.fingerprint.channels]
    if theirs and theirs != mine:
        found.append(f"the weights were trained on {', '.join(theirs)}, {dataset.name} has {', '.join(mine)}")
    return found


def labels_besides(train: Sequence[str], val: Sequence[str], fraction: float) -> list[str]:
    """Remark where few labels are trained on, and further ones choose the checkpoint."""
    if fraction >= 1 or not val:
        return []
    return [
        f"besides the {len(train)} labelled cases of --train-fraction {fraction:g}, {len(val)} more choose the best "
        "checkpoint; to use their labels for nothing, `evaluate --checkpoint last`"
    ]


def sides_unknown(class_names: Iterable[str], mirrored: Sequence[int]) -> list[str]:
    """Remark where crops are mirrored from left to right, though classes without names may have sides."""
    if 0 not in mirrored or not any(re.fullmatch(r"class \d+", name) for name in class_names):
        return []
    return [
        "classes are named after their values, so crops are mirrored from left to right, too; where one has a side, as "
        "a left kidney has, name them (prepare --reader.label-names), or --loader.mirror-axes 1 2"
    ]


def unused_folds(dataset: PreparedDataset, fold: int | None) -> list[str]:
    """Remark where the data are divided into folds, and the training leaves none out."""
    folds = fold_numbers(dataset.splits)
    if fold is not None or not folds:
        return []
    return [f"the cases of all {len(folds)} folds are trained on; to leave one out, --fold 0 to {max(folds)}"]


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{mm:g}" for mm in spacing) + " mm"
