"""Splits: which cases train, validate and test; seeded, by patient, written to a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from anatomask.data.folds import divide, own_folds
from anatomask.errors import UserError, reason
from anatomask.files import refuse_pipe
from anatomask.parsing import from_json
from anatomask.settings import Settings

if TYPE_CHECKING:  # the readers are many, and who reads what is prepared needs none
    from anatomask.data.datasets.base import RawDataset

Splits = dict[str, tuple[str, ...]]
APART = ("train", "val", "test", "unlabeled", "unlabeled_test")
"""Splits that must not share a case. A split of another name, such as a fold, may hold any cases."""


@dataclass(frozen=True)
class SplitConfig(Settings):
    """Settings of splitting a data set. A field that means nothing for the source's split is refused."""

    seed: int | None = None
    """Seed of the patient-level split, and of the folds. Default: 0."""
    fractions: tuple[float, float, float] | None = None
    """Shares of train, val and test patients. Default: 0.7 0.1 0.2; with folds, 1 0 0."""
    fold: int | Literal["all"] | None = None
    """Fold of a given `splits_final.json` that is prepared; all: its folds become the splits fold_0, fold_1, … for
    `finetune --fold`. Default: 0."""
    val_as: Literal["test", "val"] | None = None
    """Split that the val cases of a fold of `splits_final.json` become. Default: test, because nnU-Net scores them."""
    folds: int | None = None
    """Number of folds, for `finetune --fold`, into which the labelled cases that are not in test are divided by
    patient. Default: no folds."""
    file: str = ""
    """JSON file that names the cases or patients of each split: {"train": […], "val": […], "test": […]}; other names
    are further splits, and cases that are not listed are in no split. It takes precedence over a split that comes with
    the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(0, math.inf, "seed")
        self.require_range(2, 1000, "folds")
        if isinstance(self.fold, int):
            self.require_range(0, 1000, "fold")
        if self.fractions is None:
            return
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must be three shares that add up to 1, not {self.fractions}")
        if self.folds and self.fractions[1]:
            train, val, test = self.fractions
            raise ValueError(
                f"fractions must leave no val beside folds, which take its place: set {train + val:g} 0 {test:g}"
            )

    def resolved(self) -> SplitConfig:
        """Return the settings with every default in place."""
        return replace(
            self,
            seed=self.seed or 0,
            fractions=self.fractions or ((1.0, 0.0, 0.0) if self.folds else (0.7, 0.1, 0.2)),
            fold=self.fold or 0,
            val_as=self.val_as or "test",
        )


def choose_split(raw: RawDataset, config: SplitConfig) -> RawDataset:
    """Replace the split that comes with the data by the one that the settings choose: of a file, or other folds.

    Raises:
        UserError: a setting means nothing for this data set, or the file is wrong (see `read_split_file`), or the
            data set's folds cannot be taken over whole.
    """
    _refuse_idle(raw, config)
    if config.file:
        return replace(raw, splits=read_split_file(config.file, raw), folds=())
    if config.fold == "all":
        return replace(raw, splits=own_folds(raw.folds))
    if config.val_as == "val" and raw.splits is not None:
        return replace(raw, splits={**raw.splits, "val": raw.splits["test"], "test": ()})
    return raw


def meaningful(raw: RawDataset, config: SplitConfig) -> set[str]:
    """Return the fields of the settings that have a meaning for this data set's split."""
    return _split_of(raw, config)[1]


def _split_of(raw: RawDataset, config: SplitConfig) -> tuple[str, set[str], str]:
    """Tell where the split comes from: a clause, the fields that have a meaning for it, and what else a user can do."""
    own = "give a split of your own by --split.file"
    folds = {"folds", "seed"} if config.folds else {"folds"}
    if config.file:
        return f"the split is that of --split.file {config.file}", folds, "leave out one of both"
    if raw.folds:
        whole = " (its folds are taken over by --split.fold all)" if config.folds else ""
        meant = {"fold"} if config.fold == "all" else {"fold", "val_as"}
        return f"the data bring their split in splits_final.json{whole}", meant, own
    if raw.splits is not None:
        return "the data bring a split of their own, without folds", folds, own
    if any(raw_case.label is not None for raw_case in raw.cases):
        return "no splits_final.json lies beside the scans", {"fractions", "seed", "folds"}, own
    return "no case has a label, so all are for pretraining", set(), own


def _refuse_idle(raw: RawDataset, config: SplitConfig) -> None:
    """Check that every setting that is given has a meaning for this data set's split.

    Raises:
        UserError: one has none; the message says which split there is, and what to do instead.
    """
    split, meant, remedy = _split_of(raw, config)
    given = [field.name for field in fields(config) if getattr(config, field.name) not in (None, "")]
    if idle := [name for name in given if name not in meant | {"file"}]:
        flag = f"--split.{idle[0].replace('_', '-')}"
        raise UserError(f"{flag} has no meaning here: {split}; leave it out, or {remedy}")


def dataset_splits(raw: RawDataset, config: SplitConfig) -> Splits:
    """Assign every case to a split: the given one where the data brings it, else one drawn by patient.

    Cases without labels are "unlabeled", for pretraining. Those that the publisher holds back for testing, and those
    of val and test patients, are "unlabeled_test", on which nothing is trained.

    Raises:
        UserError: the given split has a case in two of train, val and test, or there are fewer patients than folds.
    """
    labelled = {raw_case.case: raw_case.patient for raw_case in raw.cases if raw_case.label is not None}
    unlabelled = {raw_case.case: raw_case.patient for raw_case in raw.cases if raw_case.label is None}
    splits = dict(raw.splits) if raw.splits is not None else split_patients(labelled, config)
    if found := shared_case(splits):
        case, one, other = found
        raise UserError(f"the split that comes with the data has case {case} in {one} and in {other}; leave it in one")
    if config.folds:
        train = tuple(sorted((*splits["train"], *splits["val"])))
        folds = divide({case: labelled[case] for case in train if case in labelled}, config.folds, config.seed or 0)
        splits |= {"train": train, "val": (), **folds}
    patients = labelled | unlabelled
    tested = {patients[case] for split in ("val", "test") for case in splits[split] if case in patients}
    placed = {case for cases in splits.values() for case in cases}
    free = {case: patient for case, patient in unlabelled.items() if case not in placed}
    apart = {case for case, patient in free.items() if case in raw.held_back or patient in tested}
    return {
        **splits,
        "unlabeled": tuple(sorted({*splits.get("unlabeled", ()), *(free.keys() - apart)})),
        "unlabeled_test": tuple(sorted({*splits.get("unlabeled_test", ()), *apart})),
    }


def read_split_file(path: str, raw: RawDataset) -> Splits:
    """Read the splits that `path` gives by case or by patient; train, val and test exist, even if empty.

    Raises:
        UserError: the file cannot be read, is no mapping of names to lists, names a case that the data set lacks,
            or puts a case twice into a split, or into two of the splits `APART`.
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
        others = owner if split in APART else {}
        for case in members:
            if case in others:
                raise UserError(f"--split.file {path}: case {case} stands in {others[case]} and in {split}")
            others[case] = split
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
    settings = config.resolved()
    assert settings.fractions is not None
    shuffled = np.random.default_rng(settings.seed).permutation(names)
    train, val, _ = patient_counts(len(names), settings.fractions)
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


def continued(before: Mapping[str, Iterable[str]], known: Iterable[str], now: Splits, cases: set[str]) -> Splits:
    """Continue splits that were written before: every case stays where it was, and cases that are new go as planned.

    Args:
        before: the splits as written, perhaps edited since.
        known: cases that were prepared when they were written; one that is in no split stays so.
        now: the splits as the settings give them.
        cases: cases that are prepared now.
    """
    placed = {name: tuple(members) for name, members in before.items()}
    old = {*known, *(case for members in placed.values() for case in members)}
    return {
        name: tuple(
            case
            for case in (*placed.get(name, ()), *(case for case in now.get(name, ()) if case not in old))
            if case in cases
        )
        for name in {**now, **placed}
    }


def moved_cases(one: Mapping[str, Iterable[str]], other: Mapping[str, Iterable[str]]) -> list[str]:
    """List the cases that are not in the same splits in both, in order."""
    places: tuple[dict[str, set[str]], dict[str, set[str]]] = ({}, {})
    for found, splits in zip(places, (one, other), strict=True):
        for name, members in splits.items():
            for case in members:
                found.setdefault(case, set()).add(name)
    here, there = places
    return sorted(case for case in here.keys() | there.keys() if here.get(case) != there.get(case))


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
