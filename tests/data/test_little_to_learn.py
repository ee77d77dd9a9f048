"""Cases from which little can be learnt: said when they are prepared and surveyed, refused where nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.config import FinetuneConfig
from anatomask.data.datasets import RawCase, read_dataset
from anatomask.data.preparation import dataset_info, doubts, prepare_and_write, records_of
from anatomask.data.shards import PreparedDataset
from anatomask.data.survey import survey_case
from anatomask.data.suspicions import suspicions
from anatomask.errors import UserError
from anatomask.stages.finetune import select_labelled


@pytest.fixture
def nothing_labelled(nnunet_source: Path) -> Path:
    """A source all of whose labels are empty."""
    for path in (nnunet_source / "labelsTr").iterdir():
        label = nib.Nifti1Image.from_filename(path)
        nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    return nnunet_source


def test_a_scan_that_is_one_value_everywhere_is_skipped_by_name(
    raw_case: Callable[..., RawCase], nnunet_source: Path, tmp_path: Path
) -> None:
    raw = read_dataset(nnunet_source)
    info = dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none")
    outcome = prepare_and_write(str(tmp_path / "out"), info, raw_case(np.full((8, 8, 8), -1000, np.int16)))
    assert "case_0000.nii.gz is -1000 in every voxel: no scan; convert it again or leave it out" in outcome.reason


def test_a_channel_without_contrast_beside_one_with_it_is_said(nnunet_source: Path, tmp_path: Path) -> None:
    header = json.loads((nnunet_source / "dataset.json").read_text())
    header["channel_names"] = {"0": "CT", "1": "T2"}
    (nnunet_source / "dataset.json").write_text(json.dumps(header))
    for path in list(nnunet_source.glob("images*/*_0000.nii.gz")):
        image = nib.Nifti1Image.from_filename(path)
        other = np.asanyarray(image.dataobj) * (path.name[0] not in "ac")
        nib.save(nib.Nifti1Image(other, image.affine), path.with_name(path.name.replace("_0000", "_0001")))
    raw = read_dataset(nnunet_source)
    info = dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none")
    assert [prepare_and_write(str(tmp_path), info, one).reason for one in raw.cases] == [""] * 5
    records = records_of(str(tmp_path), raw)
    assert doubts(info, records.values()) == ["2 cases (a, c) in which channel T2 has no contrast"]


def test_labels_that_hold_no_class_are_said(nothing_labelled: Path, tmp_path: Path) -> None:
    raw = read_dataset(nothing_labelled)
    info = dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none")
    for one in raw.cases:
        assert prepare_and_write(str(tmp_path), info, one).reason == ""
    records = records_of(str(tmp_path), raw)
    assert doubts(info, records.values()) == ["4 cases (a, b, c, …) without any labelled class"]
    assert doubts(info, [records["u"]]) == []
    facts = [survey_case(one, raw.schemes, raw.class_names) for one in raw.cases]
    assert {one.case for one in suspicions(raw, facts) if one.kind == "empty label"} == set("abcd")


def test_finetuning_on_labels_that_hold_no_class_is_refused(prepared: Callable[..., PreparedDataset]) -> None:
    image = np.random.default_rng(0).integers(-1000, 1000, (32, 32, 32)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    with pytest.raises(UserError, match="the labels of its 1 training cases, such as one, hold no class"):
        select_labelled(prepared(image, label=label), FinetuneConfig(data="x"))
    label[4, 4, 4] = 1
    assert select_labelled(prepared(image, label=label, root="other"), FinetuneConfig(data="x"))[0] == ("one",)


def test_a_fold_is_neither_trained_on_nor_watched_unless_asked(
    prepared: Callable[..., PreparedDataset],
) -> None:
    one = prepared(np.ones((16, 16, 16), np.int16), label=np.ones((16, 16, 16), np.uint8))
    records = {case: replace(one.records["one"], case=case) for case in "abcdef"}
    folds = {"fold_0": ("a", "b"), "fold_1": ("c", "d"), "fold_2": ("e", "f")}
    dataset = PreparedDataset(
        one.path, one.info, records, {"train": tuple("abcdef"), "val": (), "test": (), **folds}, one.fingerprint
    )
    config = FinetuneConfig(data="x", fold=1)
    train, watched = select_labelled(dataset, config)
    assert not {"c", "d"} & {*train, *watched} and {*train, *watched} == set("abef") and watched
    assert select_labelled(dataset, replace(config, val_split="fold_1")) == (tuple("abef"), tuple("cd"))
    assert select_labelled(dataset, replace(config, val_split="fold_2")) == (tuple("ab"), tuple("ef"))
    assert sum(map(len, select_labelled(dataset, replace(config, fold=None)))) == 6
    with pytest.raises(UserError, match=r"--fold 3: .* has no such fold; there are 0, 1, 2"):
        select_labelled(dataset, replace(config, fold=3))
    with pytest.raises(UserError, match=r"has no folds; make them with .*--split\.folds 5"):
        select_labelled(one, config)
