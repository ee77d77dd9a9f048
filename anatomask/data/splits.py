"""Splits: which cases train, validate and test; seeded, by patient, written to a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anatomask.errors import UserError, reason
from anatomask.files import refuse_pipe
from anatomask.parsing import from_json
from anatomask.settings import Settings

if TYPE_CHECKING:  # the readers are many, and who reads what is prepared needs none
    from anatomask.data.datasets.base import RawDataset

Splits = dict[str, tuple[str, ...]]
APART = ("train", "val", "test", "unlabeled", "unlabeled_test")
"""Splits that must not share a case. A split of another name, added by hand, may hold any cases."""


@dataclass(frozen=True)
class SplitConfig(Settings):
    """Settings of splitting a data set that brings no split of its own."""

    seed: int = 0
    """Seed of the patient-level split."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, val and test patients."""
    fold: int = 0
    """Fold of a given `splits_final.json`."""
    file: str = ""
    """JSON file that names the cases or patients of each split: {"train": […], "val": […], "test": […]}; other names
    are further splits, and cases that are not listed are in no split. It takes precedence over a split that comes with
    the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(0, math.inf, "seed")
        self.require_range(0, 1000, "fold")
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must be three shares that add up to 1, not {self.fractions}")


def dataset_splits(raw: RawDataset, config: SplitConfig) -> Splits:
    """Assign every case to a split: the given one where the data brings it, else one drawn by patient.

    Cases without labels are "unlabeled" beside labelled ones, for pretraining. Those that the publisher holds back for
    testing, and those of val and test patients, are "unlabeled_test", on which nothing is trained. A data set without
    any labels is drawn as if it had some.

    Raises:
        UserError: the given split has a case in two of train, val and test.
    """
    labelled = {raw_case.case: raw_case.patient for raw_case in raw.cases if raw_case.label is not None}
    unlabelled = {raw_case.case: raw_case.patient for raw_case in raw.cases if raw_case.label is None}
    if not labelled:
        free = {case: patient for case, patient in unlabelled.items() if case not in raw.held_back}
        return {**split_patients(free, config), "unlabeled": (), "unlabeled_test": tuple(sorted(raw.held_back))}
    splits = dict(raw.splits) if raw.splits is not None else split_patients(labelled, config)
    if found := shared_case(splits):
        case, one, other = found
        raise UserError(f"the split that comes with the data has case {case} in {one} and in {other}; leave it in one")
    tested = {labelled[case] for split in ("val", "test") for case in splits[split] if case in labelled}
    apart = {case for case, patient in unlabelled.items() if case in raw.held_back or patient in tested}
    placed = {case for cases in splits.values() for case in cases}
    return {
        **splits,
        "unlabeled": tuple(sorted(unlabelled.keys() - apart - placed)),
        "unlabeled_test": tuple(sorted(apart)),
    }


def read_split_file(path: str, raw: RawDataset) -> Splits:
    """Read the splits that `path` gives by case or by patient; train, val and test exist, even if empty.

    Raises:
        UserError: the file cannot be read, is no mapping of names to lists, names a case that the data set lacks,
            or puts a case into two splits.
    """
    refuse_pipe(Path(path), "--split.file")
    try:
        given = from_json(Path(path).read_bytes(), by_hand=True)
    except (OSError, ValueError) as error:
        raise UserError(f"--split.file {path} cannot be read: {reason(error)}") from error
    lists = [names for names in given.values() if isinstance(names, list)] if isinstance(given, dict) else []
    if not lists or len(lists) < len(given) or not all(isinstance(name, str) for names in lists for name in names):
        raise UserError(f'--split.file {path} must be a mapping such as {{"train": ["case1"], "val": [], "test": []}}')
    cases: dict[str, list[str]] = {}
    for raw_case in raw.cases:
        cases.setdefault(raw_case.patient, []).append(raw_case.case)
    cases |= {raw_case.case: [raw_case.case] for raw_case in raw.cases}  # a name that is both means the case
    splits: Splits = {"train": (), "val": (), "test": ()}
    owner: dict[str, str] = {}
    for split, names in given.items():
        if unknown := [name for name in names if name not in cases]:
            raise UserError(f"--split.file {path}: {unknown[0]!r} of {split} is no case or patient of the source")
        members = [case for name in names for case in cases[name]]
        for case in members:
            if case in owner:
                raise UserError(f"--split.file {path}: case {case} stands in {owner[case]} and in {split}")
            owner[case] = split
        splits[split] = tuple(sorted(members))
    return splits


def split_patients(patients: Mapping[str, str], config: SplitConfig) -> Splits:
    """Draw train, val and test so that no patient is in two of them.

    The draw depends on the set of patients and the seed, not on the order in which the cases come.

    Args:
        patients: case -> patient.
        config: seed and shares.

    Returns:
        "train", "val" and "test", each with its cases in order.
    """
    names = np.array(sorted(set(patients.values())))
    shuffled = np.random.default_rng(config.seed).permutation(names)
    train, val, _ = patient_counts(len(names), config.fractions)
    groups = {"train": shuffled[:train], "val": shuffled[train : train + val], "test": shuffled[train + val :]}
    return {
        split: tuple(sorted(case for case, patient in patients.items() if patient in chosen))
        for split, chosen in ((split, set(group.tolist())) for split, group in groups.items())
    }


def patient_counts(n: int, fractions: tuple[float, float, float]) -> tuple[int, int, int]:
    """Divide n patients between train, val and test.

    Train and val are rounded, and test is the rest. A split with a share above 0 gets at least one patient, taken from
    the largest split, while there are enough (train goes first, then test).
    """
    train, val = round(fractions[0] * n), round(fractions[1] * n)
    val = min(val, n - train)
    counts = [train, val, n - train - val]
    for split in (0, 2, 1):
        largest = max(range(3), key=counts.__getitem__)
        if fractions[split] > 0 and counts[split] == 0 and counts[largest] > 1:
            counts[split] += 1
            counts[largest] -= 1
    return counts[0], counts[1], counts[2]


def keep(splits: Mapping[str, Iterable[str]], cases: set[str]) -> Splits:
    """Remove the cases that are not among `cases` from the splits."""
    return {split: tuple(case for case in members if case in cases) for split, members in splits.items()}


def shared_case(splits: Mapping[str, Iterable[str]]) -> tuple[str, str, str] | None:
    """Return the first case that is in two of the splits `APART`, with their names; None if there is no such case."""
    for one, other in combinations(APART, 2):
        if both := set(splits.get(one, ())) & set(splits.get(other, ())):
            return min(both), one, other
    return None


def shared_patients(splits: Mapping[str, Iterable[str]], patients: Mapping[str, str]) -> set[str]:
    """Return the patients with cases both for training and for validation or testing.

    Unlike a shared case this is no error. A split that is published with a data set may be by scan, and scores are
    compared on it as published.
    """
    trained = {patients[case] for split in ("train", "unlabeled") for case in splits.get(split, ())}
    return trained & {patients[case] for split in ("val", "test") for case in splits.get(split, ())}
