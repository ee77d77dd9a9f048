from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anatomask.data.datasets import RawDataset, read_dataset
from anatomask.data.preprocess import prepare_case
from anatomask.data.settings import ReaderConfig
from anatomask.data.splits import SplitConfig, dataset_splits
from anatomask.errors import UserError


@pytest.fixture
def whole(real_data: Path, tmp_path: Path) -> Path:
    """The layout of the whole download, with one CT and one MR in each part."""
    stand_in = real_data / "amos22" / "amos22"
    for part, ct, mr in (("Tr", "0001", "0507"), ("Va", "0008", "0578"), ("Ts", "0500", "0501")):
        for kind in ("images", "labels") if part != "Ts" else ("images",):
            folder = tmp_path / "amos22" / f"{kind}{part}"
            folder.mkdir(parents=True)
            (folder / f"amos_{ct}.nii.gz").symlink_to(stand_in / f"{kind}Tr" / "amos_0001.nii.gz")
            (folder / f"amos_{mr}.nii.gz").symlink_to(stand_in / f"{kind}Tr" / "amos_0507.nii.gz")
    shutil.copy(stand_in / "dataset.json", tmp_path / "amos22")
    return tmp_path


def test_every_organ_lies_where_totalsegmentators_does(real_data: Path, organs_agree: Callable[..., set[str]]) -> None:
    raw = read_dataset(real_data / "amos22")
    assert raw.cases[0].case == "amos_0001"
    assert organs_agree(raw, raw.cases[0]) == {"esophagus", "prostate/uterus"}


def test_the_mr_has_a_liver_that_is_one(real_data: Path) -> None:
    raw = read_dataset(real_data / "amos22" / "amos22")
    prepared = prepare_case(raw.cases[1], raw.schemes, raw.class_names, (3, 3, 3))
    assert prepared.label is not None
    counts = {name: int((prepared.label == c).sum()) for c, name in raw.class_names.items()}
    assert max(counts, key=counts.__getitem__) == "liver"
    right, left = (np.argwhere(prepared.label == c)[:, 0].mean() for c in (2, 3))
    assert right > left  # RAS: the first axis runs to the right


@pytest.mark.parametrize(
    ("modality", "train", "test", "held_back"),
    [
        ("all", ("amos_0001", "amos_0507"), ("amos_0008", "amos_0578"), {"amos_0500", "amos_0501"}),
        ("ct", ("amos_0001",), ("amos_0008",), {"amos_0500"}),
        ("mr", ("amos_0507",), ("amos_0578",), {"amos_0501"}),
    ],
)
def test_the_tasks_and_their_splits(
    modality: str, train: tuple[str, ...], test: tuple[str, ...], held_back: set[str], whole: Path
) -> None:
    raw = read_dataset(whole, options=ReaderConfig(modality=modality))  # type: ignore[arg-type]
    assert raw.reader == "amos22"
    assert raw.schemes == ("zscore",)
    splits = dataset_splits(raw, SplitConfig())
    assert splits == {
        "train": train, "val": (), "test": test, "unlabeled": (), "unlabeled_test": tuple(sorted(held_back))
    }  # fmt: skip


def test_without_the_validation_part_the_split_is_drawn(real_data: Path) -> None:
    raw: RawDataset = read_dataset(real_data / "amos22")
    assert raw.splits is None
    with pytest.raises(UserError, match=r"--reader\.modality pet: amos22 has none"):
        read_dataset(real_data / "amos22", options=ReaderConfig(modality="pet"))


def test_a_missing_label_is_named(whole: Path) -> None:
    (whole / "amos22" / "labelsVa" / "amos_0008.nii.gz").unlink()
    raw = read_dataset(whole)
    case = next(case for case in raw.cases if case.case == "amos_0008")
    with pytest.raises(UserError, match=r"labelsVa/amos_0008\.nii\.gz is missing"):
        prepare_case(case, raw.schemes, raw.class_names, (6, 6, 6))
