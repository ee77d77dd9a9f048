from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anatomask.data.datasets.base import RawCase, RawDataset, nifti_image, nifti_label
from anatomask.data.folds import divide, fold_name
from anatomask.data.splits import (
    SplitConfig,
    choose_split,
    continued,
    dataset_splits,
    keep,
    moved_cases,
    patient_counts,
    read_split_file,
    split_patients,
)
from anatomask.errors import UserError

cohorts = st.dictionaries(
    st.text("abcdef0123456789", min_size=1, max_size=5), st.sampled_from("pqrstuvwxyz"), min_size=1
)


@given(cohorts, st.integers(0, 99))
def test_every_case_once_and_no_patient_twice(patients: dict[str, str], seed: int) -> None:
    config = SplitConfig(seed=seed)
    splits = split_patients(patients, config)
    assert sorted(case for cases in splits.values() for case in cases) == sorted(patients)
    owners = [{patients[case] for case in cases} for cases in splits.values()]
    assert sum(map(len, owners)) == len(set(patients.values()))
    shuffled = list(patients.items())
    random.Random(seed).shuffle(shuffled)
    assert split_patients(dict(shuffled), config) == splits


def test_the_seed_decides() -> None:
    patients = {f"c{i}": f"p{i}" for i in range(50)}
    assert split_patients(patients, SplitConfig(seed=1)) != split_patients(patients, SplitConfig(seed=2))


@pytest.mark.parametrize(
    ("patients", "expected"),
    [(1204, (843, 120, 241)), (50, (35, 5, 10)), (12, (8, 1, 3)), (3, (1, 1, 1)), (2, (1, 0, 1)), (1, (1, 0, 0))],
)
def test_counts_of_the_paper_and_of_few_patients(patients: int, expected: tuple[int, int, int]) -> None:
    assert patient_counts(patients, (0.7, 0.1, 0.2)) == expected


def test_a_share_of_nothing_gets_nothing() -> None:
    assert patient_counts(10, (0.8, 0.0, 0.2)) == (8, 0, 2)
    assert patient_counts(3, (1.0, 0.0, 0.0)) == (3, 0, 0)


def dataset(labelled: str, unlabelled: str, splits: dict[str, tuple[str, ...]] | None = None) -> RawDataset:
    label = nifti_label(Path("label.nii"))
    cases = [RawCase(c, c, (nifti_image(Path("x.nii")),), label) for c in labelled]
    cases += [RawCase(c, c, (nifti_image(Path("x.nii")),)) for c in unlabelled]
    return RawDataset("test", tuple(cases), ("CT",), ("ct",), {1: "one"}, {1: 3.0}, splits=splits)


def test_cases_without_labels_stand_apart() -> None:
    mixed = dataset_splits(dataset("abcdefghij", "xyz"), SplitConfig())
    assert mixed["unlabeled"] == ("x", "y", "z")
    assert [len(mixed[name]) for name in ("train", "val", "test")] == [7, 1, 2]


def test_a_data_set_without_labels_is_for_pretraining_whole() -> None:
    raw = replace(dataset("", "abcdefghij"), held_back=frozenset("j"))
    expected = {"train": (), "val": (), "test": (), "unlabeled": tuple("abcdefghi"), "unlabeled_test": ("j",)}
    assert dataset_splits(choose_split(raw, SplitConfig()), SplitConfig()) == expected


def test_a_split_file_holds_for_cases_without_labels_too(tmp_path: Path) -> None:
    raw = replace(dataset("", "abcd"), held_back=frozenset("ad"))
    config = SplitConfig(file=str(tmp_path / "splits.json"))
    Path(config.file).write_text('{"train": ["a"], "val": ["b"]}')
    splits = dataset_splits(choose_split(raw, config), config)
    assert splits == {"train": ("a",), "val": ("b",), "test": (), "unlabeled": ("c",), "unlabeled_test": ("d",)}


def test_a_given_split_wins() -> None:
    given_split = {"train": ("a",), "val": (), "test": ("b",)}
    expected = {**given_split, "unlabeled": ("x",), "unlabeled_test": ()}
    assert dataset_splits(dataset("abc", "x", given_split), SplitConfig()) == expected


def test_a_given_split_that_shares_a_case_is_refused_before_anything_is_prepared() -> None:
    for shared in ({"train": ("a", "b"), "val": ("b",), "test": ()}, {"train": (), "val": ("b",), "test": ("b",)}):
        with pytest.raises(UserError, match=r"has case b in .*; leave it in one"):
            dataset_splits(dataset("ab", "", shared), SplitConfig())


def test_nobody_trains_on_held_back_cases_nor_on_other_scans_of_tested_patients() -> None:
    splits: dict[str, tuple[str, ...]] = {"train": ("a",), "val": ("b",), "test": ("c",)}
    raw = dataset("abc", "vwxyz", splits)
    patients = {"v": "a", "w": "b", "x": "c"}  # y and z have no labelled scan
    cases = tuple(replace(case, patient=patients.get(case.case, case.patient)) for case in raw.cases)
    result = dataset_splits(replace(raw, cases=cases, held_back=frozenset("z")), SplitConfig())
    assert result == {**splits, "unlabeled": ("v", "y"), "unlabeled_test": ("w", "x", "z")}


def test_keep_drops_what_was_skipped() -> None:
    assert keep({"train": ("a", "b"), "test": ("c",)}, {"b", "c"}) == {"train": ("b",), "test": ("c",)}


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.2, 0.0)])
def test_shares_must_add_up(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="fractions"):
        SplitConfig(fractions=fractions)


def test_a_split_file_names_cases_or_patients(tmp_path: Path) -> None:
    raw = dataset("abcd", "xyz")
    cases = tuple(replace(case, patient="p" if case.case in "cx" else case.patient) for case in raw.cases)
    raw = replace(raw, cases=cases)
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"train": ["b", "p"], "tune": ["a"]}))
    given = read_split_file(str(file), raw)
    assert given == {"train": ("b", "c", "x"), "val": (), "test": (), "tune": ("a",)}
    splits = dataset_splits(replace(raw, splits=given), SplitConfig())
    assert splits == {**given, "unlabeled": ("y", "z"), "unlabeled_test": ()}  # d stands nowhere


def test_further_splits_of_a_split_file_may_overlap(tmp_path: Path) -> None:
    """As folds do, which `train` holds all of."""
    file = tmp_path / "splits.json"
    file.write_text(
        json.dumps({"train": ["a", "b"], "fold_0": ["a"], "fold_1": ["b"], "small": ["a", "c"], "test": ["c"]})
    )
    raw = dataset("abc", "")
    splits = dataset_splits(replace(raw, splits=read_split_file(str(file), raw)), SplitConfig())
    assert (splits["train"], splits["fold_1"], splits["small"]) == (("a", "b"), ("b",), ("a", "c"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "must be a mapping"),
        ('{"train": "a"}', "must be a mapping"),
        ('{"train": [["a"]]}', "must be a mapping"),
        ('{"train": [true]}', "must be a mapping"),
        ("{}", "must be a mapping"),
        ('{"train": ["a"], "train": ["b"]}', "'train' stands in it twice"),
        ('{"train": ["q"]}', "'q' of train is no case or patient"),
        ('{"train": ["a", "b"], "val": ["a"]}', "case a stands in train and in val"),
        ('{"train": ["a", "a"]}', "case a stands in train and in train"),
        ('{"fold_0": ["a", "a"]}', "case a stands in fold_0 and in fold_0"),
        ('{"train": ["a"], "unlabeled": ["a"]}', "case a stands in train and in unlabeled"),
    ],
)
def test_a_split_file_that_is_wrong_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "splits.json"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        read_split_file(str(file), dataset("ab", ""))


def test_a_split_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_split_file(str(tmp_path / "none.json"), dataset("ab", ""))


FOLDS = (
    {"train": ("a", "b"), "val": ("c",)},
    {"train": ("b", "c"), "val": ("a",)},
    {"train": ("a", "c"), "val": ("b",)},
)
OWN: dict[str, tuple[str, ...]] = {"train": ("a", "b"), "val": (), "test": ("c",)}


@pytest.mark.parametrize(
    ("raw", "config", "message"),
    [
        (replace(dataset("abc", "", OWN), folds=FOLDS), {"fractions": (0.5, 0.0, 0.5)}, r"fractions.*splits_final"),
        (replace(dataset("abc", "", OWN), folds=FOLDS), {"seed": 0}, r"--split\.seed.*splits_final"),
        (replace(dataset("abc", "", OWN), folds=FOLDS), {"folds": 2}, r"--split\.folds.*--split\.fold all"),
        (replace(dataset("abc", "", OWN), folds=FOLDS), {"fold": "all", "val_as": "test"}, r"--split\.val-as"),
        (dataset("abc", "", OWN), {"fold": 0}, r"--split\.fold has no meaning here.*a split of their own"),
        (dataset("abc", "", OWN), {"seed": 1}, r"--split\.seed.*a split of their own"),
        (dataset("abc", ""), {"fold": 0}, r"--split\.fold .*no splits_final.*leave it out, or give .* --split\.file"),
        (dataset("abc", ""), {"fold": "all"}, r"--split\.fold .*no splits_final"),
        (dataset("abc", ""), {"val_as": "val"}, r"--split\.val-as .*no splits_final"),
        (dataset("", "abc"), {"fractions": (0.5, 0.0, 0.5)}, "no case has a label, so all are for pretraining"),
        (dataset("", "abc"), {"folds": 2}, "no case has a label"),
        (dataset("abc", ""), {"file": "x.json", "fractions": (0.5, 0.0, 0.5)}, r"fractions .*--split\.file x\.json"),
        (dataset("abc", ""), {"file": "x.json", "seed": 3}, r"--split\.seed .*--split\.file x\.json"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(raw: RawDataset, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_split(raw, SplitConfig(**config))


def test_the_val_cases_of_a_fold_stay_val_where_asked() -> None:
    raw = replace(dataset("abc", "", OWN), folds=FOLDS)
    assert choose_split(raw, SplitConfig(fold=0, val_as="test")).splits == OWN
    assert choose_split(raw, SplitConfig(val_as="val")).splits == {"train": ("a", "b"), "val": ("c",), "test": ()}


def test_the_folds_of_a_file_are_taken_over_whole() -> None:
    raw = replace(dataset("abc", "u", OWN), folds=FOLDS)
    config = SplitConfig(fold="all")
    folds = {"fold_0": ("c",), "fold_1": ("a",), "fold_2": ("b",)}
    splits = dataset_splits(choose_split(raw, config), config)
    assert splits == {
        "train": ("a", "b", "c"),
        "val": (),
        "test": (),
        **folds,
        "unlabeled": ("u",),
        "unlabeled_test": (),
    }
    uneven = replace(raw, folds=(*FOLDS[:2], {"train": ("a",), "val": ("b",)}))
    with pytest.raises(UserError, match=r"fold 2 of splits_final\.json leaves out case c.*--split\.fold 2"):
        choose_split(uneven, config)


@given(cohorts, st.integers(0, 9), st.integers(2, 6))
def test_folds_hold_every_case_once_no_patient_twice_and_almost_as_many(
    patients: dict[str, str], seed: int, count: int
) -> None:
    sizes = Counter(patients.values())
    if len(sizes) < count:
        with pytest.raises(UserError, match="choose fewer folds"):
            divide(patients, count, seed)
        return
    folds = divide(patients, count, seed)
    assert list(folds) == [fold_name(k) for k in range(count)]
    assert sorted(case for cases in folds.values() for case in cases) == sorted(patients)
    assert sum(len({patients[case] for case in cases}) for cases in folds.values()) == len(sizes)
    lengths = [len(cases) for cases in folds.values()]
    assert max(lengths) - min(lengths) <= max(sizes.values())
    shuffled = list(patients.items())
    random.Random(seed).shuffle(shuffled)
    assert divide(dict(shuffled), count, seed) == folds


def test_folds_leave_out_what_is_held_back() -> None:
    config = SplitConfig(folds=4, fractions=(0.8, 0.0, 0.2))
    splits = dataset_splits(dataset("abcdefghij", "x"), config)
    folds = [splits[fold_name(k)] for k in range(4)]
    assert (len(splits["test"]), splits["val"], splits["unlabeled"]) == (2, (), ("x",))
    assert sorted(case for fold in folds for case in fold) == list(splits["train"])
    assert [len(fold) for fold in folds] == [2, 2, 2, 2]
    whole = dataset_splits(dataset("abcdefghij", ""), SplitConfig(folds=5))
    assert (whole["train"], whole["test"]) == (tuple("abcdefghij"), ())
    given_split = {"train": ("a", "b"), "val": ("c",), "test": ("d",)}
    own = dataset_splits(choose_split(dataset("abcd", "", given_split), SplitConfig(folds=3)), SplitConfig(folds=3))
    assert (own["train"], own["val"], own["test"]) == (("a", "b", "c"), (), ("d",))
    with pytest.raises(ValueError, match=r"must leave no val beside folds.*set 0\.8 0 0\.2"):
        SplitConfig(folds=5, fractions=(0.7, 0.1, 0.2))


def test_a_written_split_stays_and_new_cases_join_it() -> None:
    before = {"train": ("a", "b"), "tune": ("c",)}
    planned = {"train": ("a", "c", "e"), "val": ("b", "d"), "test": ("f",)}
    kept = continued(before, "abcf", planned, set("abcdef"))
    assert kept == {"train": ("a", "b", "e"), "val": ("d",), "test": (), "tune": ("c",)}  # f was taken out by hand
    assert moved_cases(kept, planned) == ["b", "c", "f"]
    assert continued(planned, "abcdef", planned, set("abcdef")) == planned
    assert moved_cases(planned, planned) == []
