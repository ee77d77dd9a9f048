from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from anatomask.config import PretrainConfig
from anatomask.data.datasets import read_dataset
from anatomask.data.preprocess import prepare_case
from anatomask.data.settings import ReaderConfig
from anatomask.data.splits import SplitConfig, dataset_splits
from anatomask.errors import UserError


def rewrite(source: Path, **entries: Any) -> None:
    path = source / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_cases_channels_and_classes(nnunet_source: Path) -> None:
    raw = read_dataset(nnunet_source)
    assert [(case.case, case.label is not None) for case in raw.cases] == [
        *((case, True) for case in "abcd"),
        ("u", False),
    ]
    assert raw.channel_names == ("CT",)
    assert raw.schemes == ("ct",)
    assert raw.class_names == {1: "left", 2: "right"}
    assert raw.nsd_tolerance == {1: 3.0, 2: 3.0}
    assert raw.spacing is None
    assert raw.splits is None


def test_classes_whose_ids_have_gaps_are_numbered_anew(nnunet_source: Path) -> None:
    rewrite(nnunet_source, labels={"background": 0, "right": 2, "tumour": 7, "left": 1, "ring": 4})
    raw = read_dataset(nnunet_source)
    assert raw.class_names == {1: "left", 2: "right", 3: "ring", 4: "tumour"} and list(raw.nsd_tolerance) == [
        1,
        2,
        3,
        4,
    ]
    label = raw.cases[0].label
    assert label is not None and set(np.unique(label.read(label.path)[0])) == {0, 1, 2}


def plans_file(source: Path, **entries: Any) -> Path:
    """nnU-Net's plans: arrays whose axes are (y, z, x) of the files."""
    plans = {
        "image_reader_writer": "SimpleITKIO",
        "transpose_backward": [1, 0, 2],
        "configurations": {
            "3d_fullres": {"spacing": [0.8, 2.5, 0.7]},
            "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [1.6, 5, 1.4]},
            "2d": {"spacing": [0.8, 0.7]},
        },
    }
    path = source.parent / "nnUNetPlans.json"
    path.write_text(json.dumps(plans | entries))
    return path


def test_the_voxel_size_is_that_of_plans(nnunet_source: Path) -> None:
    path = str(plans_file(nnunet_source))
    raw = read_dataset(nnunet_source, options=ReaderConfig(plans=path))
    affine = raw.cases[0].images[0].grid(raw.cases[0].images[0].path)[1]
    ras = [(0.7, 0.8, 2.5)[axis] for axis in np.argsort(nib.io_orientation(affine)[:, 0])]
    assert raw.spacing == tuple(ras) and raw.remarks == (f"voxel size of 3d_fullres in {path}",)
    low = read_dataset(nnunet_source, options=ReaderConfig(plans=path, configuration="3d_lowres"))
    assert low.spacing == tuple(2 * edge for edge in ras)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"configuration": "3d_lowres"}, "--reader.configuration is one of --reader.plans here"),
        ({"plans": "nowhere.json"}, "--reader.plans nowhere.json: there is no such file"),
        ({"plans": "plans", "configuration": "4d"}, "lacks '4d'"),
        ({"plans": "plans", "configuration": "2d"}, r"spacing of configuration 2d is \[0.8, 0.7\]; three sizes"),
    ],
)
def test_plans_that_do_not_fit_are_refused(nnunet_source: Path, options: dict[str, Any], message: str) -> None:
    if options.get("plans") == "plans":
        options = {**options, "plans": str(plans_file(nnunet_source))}
    with pytest.raises(UserError, match=message):
        read_dataset(nnunet_source, options=ReaderConfig(**options))


def test_a_given_fold_is_train_and_test(nnunet_source: Path) -> None:
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
    (nnunet_source / "splits_final.json").write_text(json.dumps(folds))
    assert read_dataset(nnunet_source).splits == {"train": ("a", "b"), "val": (), "test": ("c",)}
    assert read_dataset(nnunet_source, fold=1).splits == {"train": ("c",), "val": (), "test": ("a", "b")}
    with pytest.raises(UserError, match=r"has 2 folds; --split\.fold 2"):
        read_dataset(nnunet_source, fold=2)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ('[{"train": ["zz"], "val": []}]', "names case zz, which is not among"),
        ('[{"train": ["a"], "val": ["a"]}]', "case a is in train and in val"),
        ('[{"train": ["a", "b", "a"], "val": []}]', "case a stands twice in 'train'"),
        ('[{"train": ["a"], "train": ["b"], "val": []}]', "'train' stands in it twice"),
        ('[{"train": ["a"]}]', "lacks 'val'"),
        ("[{", "not valid JSON"),
        ("[]", "must hold a list of folds"),
        ('{"train": [], "val": []}', "must hold a list of folds"),
        ('[{"train": "a", "val": []}]', "'train' must be a list of cases"),
        ('[{"train": [1], "val": []}]', "'train' must be a list of cases"),
    ],
)
def test_a_broken_split_is_refused(nnunet_source: Path, folds: str, message: str) -> None:
    (nnunet_source / "splits_final.json").write_text(folds)
    with pytest.raises(UserError, match=rf"splits_final\.json.*{message}"):
        read_dataset(nnunet_source)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"labels": {"background": 0, "both": [1, 2]}}, "'both'"),
        ({"labels": {"background": 0, "a": 1, "ignore": 2}}, "'ignore'"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "'b' has id 1"),
        ({"labels": {"background": 0, "a": True}}, "'a'"),
        ({"labels": {"background": 0, "a": "one"}}, "'a' maps to 'one'"),
        ({"file_ending": ".mha"}, r"file_ending \.mha"),
        ({"labels": ["background", "left"]}, "labels must map names to ids"),
        ({"channel_names": ["CT"]}, "channel_names must map"),
        ({"channel_names": {"CT": "0"}}, "channel_names must map"),
        ({"channel_names": {"1": "CT"}}, "channel_names must map"),
        ({"channel_names": {}}, "channel_names is empty"),
    ],
)
def test_a_header_that_is_not_understood_is_refused(nnunet_source: Path, entries: dict[str, Any], message: str) -> None:
    rewrite(nnunet_source, **entries)
    with pytest.raises(UserError, match=rf"dataset\.json.*{message}"):
        read_dataset(nnunet_source)


def test_a_missing_channel_or_label_is_found_when_the_case_is_read(nnunet_source: Path) -> None:
    (nnunet_source / "labelsTr" / "a.nii.gz").unlink()
    with pytest.raises(UserError, match=r"labelsTr/a\.nii\.gz is missing"):
        prepare_case(read_dataset(nnunet_source).cases[0], ("ct",), {1, 2}, (2, 2, 2))
    rewrite(nnunet_source, channel_names={"0": "CT", "1": "T2"})
    raw = read_dataset(nnunet_source)
    assert raw.schemes == ("ct", "zscore")
    with pytest.raises(UserError, match=r"imagesTr/b_0001\.nii\.gz is missing"):
        prepare_case(raw.cases[1], raw.schemes, {1, 2}, (2, 2, 2))


def test_a_channel_that_the_header_does_not_name_is_said(nnunet_source: Path) -> None:
    for name in ("a_0001.nii.gz", "b_0001.nii.gz", "._c_0001.nii.gz"):
        shutil.copy(nnunet_source / "imagesTr" / "a_0000.nii.gz", nnunet_source / "imagesTr" / name)
    raw = read_dataset(nnunet_source)
    assert raw.remarks == (
        "2 images are of channels that dataset.json does not name, as imagesTr/a_0001.nii.gz: not read",
    )
    assert [case.case for case in raw.cases] == list("abcdu")


def test_a_name_that_stands_twice_in_the_header_is_refused(nnunet_source: Path) -> None:
    path = nnunet_source / "dataset.json"
    path.write_text(path.read_text().replace('"left": 1', '"left": 1, "left": 2'))
    with pytest.raises(UserError, match=r"dataset\.json is not valid JSON: 'left' stands in it twice"):
        read_dataset(nnunet_source)


def test_a_case_in_two_folders_is_refused(nnunet_source: Path) -> None:
    folder = nnunet_source / "imagesTs"
    folder.mkdir()
    (nnunet_source / "imagesTr" / "a_0000.nii.gz").rename(folder / "b_0000.nii.gz")
    with pytest.raises(UserError, match="case b lies in more than one"):
        read_dataset(nnunet_source)


def test_labelled_cases_that_are_in_no_split_are_said(nnunet_source: Path) -> None:
    (nnunet_source / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    assert read_dataset(nnunet_source).remarks == (
        "2 labelled cases are in no split of splits_final.json, as c: not used",
    )


def test_a_header_that_is_a_list_is_refused(nnunet_source: Path) -> None:
    (nnunet_source / "dataset.json").write_text("[]")
    with pytest.raises(UserError, match=r"dataset\.json must hold a JSON object"):
        read_dataset(nnunet_source)


def test_images_for_testing_are_held_back(nnunet_source: Path) -> None:
    (nnunet_source / "imagesTs").mkdir()
    shutil.copy(nnunet_source / "imagesTr" / "a_0000.nii.gz", nnunet_source / "imagesTs" / "t_0000.nii.gz")
    raw = read_dataset(nnunet_source)
    assert raw.held_back == {"t"}
    splits = dataset_splits(raw, SplitConfig())
    assert (splits["unlabeled"], splits["unlabeled_test"]) == (("u",), ("t",))
    assert not set(PretrainConfig(data="x").splits) & {"unlabeled_test", "test"}


def test_a_label_without_image_is_a_case_that_fails_and_hidden_files_are_none(nnunet_source: Path) -> None:
    (nnunet_source / "imagesTr" / "b_0000.nii.gz").unlink()
    for folder in ("imagesTr", "labelsTr"):
        (nnunet_source / folder / "._a_0000.nii.gz").write_bytes(b"of macOS")
    raw = read_dataset(nnunet_source)
    assert [case.case for case in raw.cases] == list("abcdu")
    with pytest.raises(UserError, match=r"imagesTr/b_0000\.nii\.gz is missing"):
        prepare_case(raw.cases[1], ("ct",), {1, 2}, (2, 2, 2))
