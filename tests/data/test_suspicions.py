"""Real scans as they are raise no suspicion; with one fault each, the fault is named and nobody else is blamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.datasets import RawCase, RawDataset, read_dataset
from anatomask.data.datasets.base import ReadVolume
from anatomask.data.survey import CaseFacts, survey_case
from anatomask.data.suspicions import suspicions
from anatomask.errors import UserError

Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of voxels and affine as stored."""

CASES = 40


def look(raw: RawDataset, case: RawCase) -> CaseFacts:
    return survey_case(case, raw.schemes, raw.class_names)


@pytest.fixture(scope="module")
def openkbp(real_data: Path) -> RawDataset:
    raw = read_dataset(real_data / "openkbp")
    return replace(raw, cases=raw.cases[:CASES])


@pytest.fixture(scope="module")
def facts(openkbp: RawDataset) -> list[CaseFacts]:
    return [look(openkbp, case) for case in openkbp.cases]


def _changed(read: ReadVolume, change: Change, path: Path) -> tuple[np.ndarray, np.ndarray]:
    voxels, affine = read(path)
    return change(voxels.copy(), affine.copy())


def spoilt(case: RawCase, image: Change | None = None, label: Change | None = None) -> RawCase:
    """The case as if its files held something else."""
    if image is not None:
        case = replace(case, images=tuple(_spoilt_file(one, image) for one in case.images))
    if label is not None and case.label is not None:
        case = replace(case, label=_spoilt_file(case.label, label))
    return case


def _spoilt_file(file: Any, change: Change) -> Any:
    read = partial(_changed, file.read, change)
    return replace(file, read=read, grid=lambda path: (read(path)[0].shape, read(path)[1]))


def turn(axis: int) -> Change:
    """Turn the voxels over along an axis of the body, and leave the header as it is."""

    def change(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        stored = nib.io_orientation(affine)[:, 0].tolist().index(axis)
        return np.flip(voxels, stored), affine

    return change


def values(function: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda voxels, affine: (function(voxels), affine)


def header(function: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda voxels, affine: (voxels, function(affine))


def refuse(voxels: np.ndarray, affine: np.ndarray) -> Any:
    raise UserError("scan.nii.gz is damaged; get it again")


def kinds(
    raw: RawDataset, facts: Sequence[CaseFacts], index: int, case: RawCase, *, alone: bool = False
) -> dict[str, set[str]]:
    """What is suspicious, by case, when one case is replaced."""
    found = look(raw, case)
    cases = [found] if alone else [*facts[:index], found, *facts[index + 1 :]]
    result: dict[str, set[str]] = {}
    for suspicion in suspicions(raw, cases):
        assert suspicion.reason and suspicion.remedy
        result.setdefault(suspicion.case, set()).add(suspicion.kind)
    return result


def test_real_scans_raise_no_suspicion(openkbp: RawDataset, facts: list[CaseFacts], real_data: Path) -> None:
    assert suspicions(openkbp, facts) == []
    for folder in ("totalsegmentator", "flare22", "amos22", "autopet2", "scans"):
        raw = read_dataset(real_data / folder)
        assert suspicions(raw, [look(raw, case) for case in raw.cases]) == []


FAULTS: dict[str, tuple[str, Change | None, Change | None]] = {
    "constant": ("constant image", values(np.zeros_like), None),
    "offset": ("not in HU", values(lambda v: v + 1024), None),
    "scaled": ("not in HU", values(lambda v: (np.clip(v, -1000, 1000) + 1000) / 2000), None),
    "normalised": ("not in HU", values(lambda v: (v - v.mean()) / v.std()), None),
    "8 bit": ("not in HU", values(lambda v: np.clip((v + 200) / 2, 0, 255).astype(np.uint8)), None),
    "windowed": ("not in HU", values(lambda v: np.clip(v, -160, 240)), None),
    "times ten": ("not in HU", values(lambda v: 10 * v.astype(np.int32)), None),
    "broken": ("image refused", refuse, None),
    "label broken": ("label refused", None, refuse),
    "metres": ("voxel size", header(lambda a: np.diag([1e-3, 1e-3, 1e-3, 1]) @ a), None),
    "micrometres": ("voxel size", header(lambda a: np.diag([1e3, 1e3, 1e3, 1]) @ a), None),
    "five times": ("unlike the others", header(lambda a: np.diag([5, 5, 5, 1]) @ a), None),
    "label shape": ("label refused", None, values(lambda v: v[:, :, :-2])),
    "label place": ("label refused", None, header(lambda a: a + np.eye(4, k=3) * 40)),
    "label values": ("unknown label values", None, values(lambda v: np.where(v == 2, 9, v))),
    "label in air": ("label in air", None, values(lambda v: np.roll(v, 25, 1))),
    "label empty": ("empty label", None, values(np.zeros_like)),
    "label swapped": (
        "mirrored left to right",
        None,
        values(lambda v: np.array([0, 1, 2, 4, 3, 5], np.uint8)[v]),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, openkbp: RawDataset, facts: list[CaseFacts]) -> None:
    kind, image, label = FAULTS[fault]
    case = openkbp.cases[4]
    if fault in ("metres", "micrometres", "five times"):
        label = image
    found = kinds(openkbp, facts, 4, spoilt(case, image, label))
    assert found == {case.case: {kind}}


@pytest.mark.parametrize(("axis", "kind"), enumerate(["mirrored left to right", "turned front to back", "upside down"]))
def test_turned_scans_with_labels_are_found(
    axis: int, kind: str, openkbp: RawDataset, facts: list[CaseFacts], real_data: Path
) -> None:
    for index in (4, 5, 30):
        case = openkbp.cases[index]
        assert kinds(openkbp, facts, index, spoilt(case, turn(axis), turn(axis)), alone=True) == {case.case: {kind}}
    for folder in ("totalsegmentator", "flare22", "amos22"):
        raw = read_dataset(real_data / folder)
        for case in raw.cases:
            assert kinds(raw, [], 0, spoilt(case, turn(axis), turn(axis)), alone=True) == {case.case: {kind}}


@pytest.mark.parametrize("axis", [1, 2])
def test_turned_scans_without_labels_are_found_among_others(
    axis: int, openkbp: RawDataset, facts: list[CaseFacts]
) -> None:
    found = 0
    for index in range(0, CASES, 4):
        case = replace(openkbp.cases[index], label=None)
        result = kinds(openkbp, facts, index, spoilt(case, turn(axis)))
        assert set(result) <= {case.case}
        found += result == {case.case: {("turned front to back", "upside down")[axis - 1]}}
    assert found >= 5


def test_what_cannot_be_told_is_left_unsaid(openkbp: RawDataset, facts: list[CaseFacts]) -> None:
    """The sides of a head."""
    case = replace(openkbp.cases[4], label=None)
    assert kinds(openkbp, facts, 4, spoilt(case, turn(0))) == {}


def test_a_trunk_alone_shows_its_orientation(real_data: Path) -> None:
    raw = read_dataset(real_data / "scans")
    cases = {case.case: case for case in raw.cases}
    for name in ("acrin_042_petct", "crlm_1004_abdomen", "nlst_101287_chest"):
        back_to_front = kinds(raw, [], 0, spoilt(cases[name], turn(1)), alone=True)
        assert back_to_front == {name: {"turned front to back"}}
    abdomen = "crlm_1004_abdomen"
    assert kinds(raw, [], 0, spoilt(cases[abdomen], turn(2)), alone=True) == {abdomen: {"upside down"}}


def test_a_copy_is_found_in_any_orientation(openkbp: RawDataset, facts: list[CaseFacts]) -> None:
    first, other = openkbp.cases[1], openkbp.cases[8]
    copy = replace(spoilt(first, turn(0), turn(0)), case=other.case)
    found = kinds(openkbp, facts, 8, copy)
    assert set(found) == {other.case} and "duplicate" in found[other.case]


def test_a_label_of_another_scan_does_not_fit(openkbp: RawDataset, facts: list[CaseFacts]) -> None:
    case = openkbp.cases[4]
    shifted = spoilt(case, None, values(lambda v: np.roll(v, 12, 2)))
    found = kinds(openkbp, facts, 4, shifted)
    assert set(found) == {case.case} and found[case.case] & {"label does not fit", "label in air"}


def test_a_label_map_among_scans_and_one_that_is_not_in_hu(real_data: Path) -> None:
    """A plain folder: what its reader cannot know, the others tell."""
    kbp = read_dataset(real_data / "openkbp")
    cases = tuple(replace(case, label=None) for case in kbp.cases[:8])
    raw = RawDataset("folder", cases, ("MR",), ("zscore",), {}, {})
    facts = [look(raw, case) for case in raw.cases]
    assert suspicions(raw, facts) == []
    offset = spoilt(cases[3], values(lambda v: v + 1024))
    assert kinds(raw, facts, 3, offset) == {cases[3].case: {"not in HU"}}
    label = kbp.cases[3].label
    assert label is not None
    as_image = replace(cases[3], images=(replace(cases[3].images[0], path=label.path),))
    assert kinds(raw, facts, 3, as_image) == {cases[3].case: {"label as image"}}


def test_values_that_half_floats_cannot_hold(real_data: Path) -> None:
    raw = read_dataset(real_data / "autopet2")
    case = raw.cases[0]
    suv = replace(case.images[1], read=partial(_changed, case.images[1].read, values(lambda v: v * 1e5)))
    found = kinds(raw, [], 0, replace(case, images=(case.images[0], suv)), alone=True)
    assert found == {case.case: {"values too large"}}
