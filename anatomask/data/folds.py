"""Folds of a prepared data set: further splits, fold_0, fold_1, …, each of which one training leaves out and scores."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from anatomask.errors import UserError

NAME = re.compile(r"fold_(0|[1-9]\d*)")


def fold_name(fold: int) -> str:
    """Return the name of a fold's split."""
    return f"fold_{fold}"


def fold_numbers(splits: Iterable[str]) -> list[int]:
    """List the numbers of the folds among the names of splits, in order."""
    return sorted(int(found[1]) for name in splits if (found := NAME.fullmatch(name)))


def divide(patients: Mapping[str, str], count: int, seed: int) -> dict[str, tuple[str, ...]]:
    """Divide cases into folds of almost equal size so that no patient is in two of them.

    Patients come in a seeded order, those with most cases first, and each goes to the fold with the fewest cases.

    Args:
        patients: case -> patient.
        count: number of folds.
        seed: seed of the order.

    Returns:
        "fold_0", "fold_1", …, each with its cases in order.

    Raises:
        UserError: there are fewer patients than folds.
    """
    sizes = Counter(patients.values())
    if len(sizes) < count:
        raise UserError(f"--split.folds {count}: there are only {len(sizes)} patients with labels; choose fewer folds")
    shuffled = np.random.default_rng(seed).permutation(np.array(sorted(sizes))).tolist()
    filled = [0] * count
    fold_of = {}
    for patient in sorted(shuffled, key=lambda patient: -sizes[patient]):
        fold_of[patient] = fold = filled.index(min(filled))
        filled[fold] += sizes[patient]
    return {
        fold_name(fold): tuple(sorted(case for case, patient in patients.items() if fold_of[patient] == fold))
        for fold in range(count)
    }


def own_folds(folds: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    """Turn the folds of a `splits_final.json` into splits: all cases are in train, and each fold's val is a fold.

    Raises:
        UserError: a fold does not train on all cases but its own.
    """
    every = {case for fold in folds for cases in fold.values() for case in cases}
    for number, fold in enumerate(folds):
        if others := every - {*fold["train"], *fold["val"]}:
            raise UserError(
                f"--split.fold all: fold {number} of splits_final.json leaves out case {min(others)}, so it is not "
                f"trained on all the others; prepare it alone by --split.fold {number}"
            )
    parts = {fold_name(number): tuple(sorted(fold["val"])) for number, fold in enumerate(folds)}
    return {"train": tuple(sorted(every)), "val": (), "test": (), **parts}


def fold_cases(splits: Mapping[str, Sequence[str]], fold: int, shown: str) -> tuple[str, ...]:
    """Return the cases of a fold of a prepared data set, which messages call `shown`.

    Raises:
        UserError: it has no such fold, or no folds at all.
    """
    if fold_name(fold) in splits:
        return tuple(splits[fold_name(fold)])
    if numbers := fold_numbers(splits):
        raise UserError(f"--fold {fold}: {shown} has no such fold; there are {', '.join(map(str, numbers))}")
    raise UserError(f"--fold {fold}: {shown} has no folds; make them with `anatomask prepare --split.folds 5`")


def cases_digest(cases: Iterable[str]) -> str:
    """Hash the names of a fold's cases, in any order."""
    return hashlib.sha256(json.dumps(sorted(cases)).encode()).hexdigest()
