from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anatomask.data.datasets.base import RawCase, RawDataset, nifti_image, nifti_label
from anatomask.data.splits import (
    SplitConfig,
    dataset_splits,
    keep,
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


def test_cases_without_labels_stand_apart_unless_there_are_no_others() -> None:
    mixed = dataset_splits(dataset("abcdefghij", "xyz"), SplitConfig())
    assert mixed["unlabeled"] == ("x", "y", "z")
    assert [len(mixed[name]) for name in ("train", "val", "test")] == [7, 1, 2]
    bare = dataset_splits(dataset("", "abcdefghij"), SplitConfig())
    assert [len(bare[name]) for name in ("train", "val", "test", "unlabeled")] == [7, 1, 2, 0]


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
    bare = dataset_splits(replace(dataset("", "abcdz"), held_back=frozenset("z")), SplitConfig())
    assert bare["unlabeled_test"] == ("z",)
    assert "z" not in bare["train"] + bare["val"] + bare["test"]


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
