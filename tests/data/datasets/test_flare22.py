from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from anatomask.data.datasets import read_dataset
from anatomask.data.datasets.scans import read_scans
from anatomask.data.preprocess import prepare_case
from anatomask.data.splits import SplitConfig, dataset_splits
from anatomask.errors import UserError


def test_every_organ_lies_where_totalsegmentators_does(real_data: Path, organs_agree: Callable[..., set[str]]) -> None:
    raw = read_dataset(real_data / "flare22")
    assert (raw.reader, raw.channel_names, raw.schemes) == ("flare22", ("CT",), ("ct",))
    assert organs_agree(raw, raw.cases[0]) == {"esophagus"}  # the scan begins below it


def test_tolerances_are_the_challenges(real_data: Path) -> None:
    raw = read_dataset(real_data / "flare22")
    assert list(raw.nsd_tolerance.values()) == [5, 3, 3, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3]
    assert {raw.class_names[c]: mm for c, mm in raw.nsd_tolerance.items() if mm > 3} == {
        "liver": 5, "pancreas": 5, "stomach": 5, "duodenum": 7
    }  # fmt: skip


@pytest.mark.parametrize("folders", [(".", "."), ("Training/FLARE22_LabeledCase50/images", "Training/x/labels")])
def test_scans_wherever_they_were_unpacked(folders: tuple[str, str], real_data: Path, tmp_path: Path) -> None:
    for folder, file in zip(folders, ("images/FLARE22_Tr_0001_0000", "labels/FLARE22_Tr_0001"), strict=True):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(real_data / "flare22" / f"{file}.nii.gz", tmp_path / folder)
    image = real_data / "flare22" / "images" / "FLARE22_Tr_0001_0000.nii.gz"
    for name in ("FLARE22_UnlabeledCase1-1000/Case_00001", "Validation/FLARETs_0001"):
        target = tmp_path / f"{name}_0000.nii.gz"
        target.parent.mkdir()
        target.symlink_to(image)
    raw = read_dataset(tmp_path)
    assert raw.reader == "flare22"
    assert {case.case: case.label is not None for case in raw.cases} == {
        "FLARE22_Tr_0001": True, "Case_00001": False, "FLARETs_0001": False
    }  # fmt: skip
    splits = dataset_splits(raw, SplitConfig())
    assert (splits["unlabeled"], splits["unlabeled_test"]) == (("Case_00001",), ("FLARETs_0001",))
    labelled = next(case for case in raw.cases if case.label is not None)
    label = prepare_case(labelled, raw.schemes, raw.class_names, (6, 6, 6)).label
    assert label is not None and label.any()


def test_a_missing_label_is_named(real_data: Path, tmp_path: Path) -> None:
    shutil.copy(real_data / "flare22" / "images" / "FLARE22_Tr_0001_0000.nii.gz", tmp_path)
    raw = read_dataset(tmp_path)
    with pytest.raises(UserError, match=r"FLARE22_Tr_0001\.nii\.gz is missing"):
        prepare_case(raw.cases[0], raw.schemes, raw.class_names, (6, 6, 6))


def test_two_labels_of_one_name_are_both_named(real_data: Path, tmp_path: Path) -> None:
    for folder, name in (("images", "_0000"), ("labels", ""), ("predictions", "")):
        (tmp_path / folder).mkdir()
        file = real_data / "flare22" / ("labels" if name == "" else folder) / f"FLARE22_Tr_0001{name}.nii.gz"
        (tmp_path / folder / file.name).symlink_to(file)
    raw = read_dataset(tmp_path)
    both = r"labels/FLARE22_Tr_0001\.nii\.gz and .*predictions/FLARE22_Tr_0001\.nii\.gz may both be the label; take one"
    with pytest.raises(UserError, match=both):
        prepare_case(raw.cases[0], raw.schemes, raw.class_names, (6, 6, 6))
    assert read_scans(tmp_path).cases[0].label is None  # which does not matter to a prediction


def test_a_label_of_another_data_set_is_refused(real_data: Path, tmp_path: Path) -> None:
    shutil.copy(real_data / "flare22" / "images" / "FLARE22_Tr_0001_0000.nii.gz", tmp_path)
    amos = real_data / "amos22" / "amos22" / "labelsTr" / "amos_0001.nii.gz"  # with the bladder, 14
    shutil.copy(amos, tmp_path / "FLARE22_Tr_0001.nii.gz")
    raw = read_dataset(tmp_path)
    with pytest.raises(UserError, match=r"FLARE22_Tr_0001\.nii\.gz holds 14, which the data set does not list"):
        prepare_case(raw.cases[0], raw.schemes, raw.class_names, (6, 6, 6))
