from __future__ import annotations

from pathlib import Path

import pytest

from anatomask.data.datasets import detect, read_dataset
from anatomask.data.datasets.base import case_name
from anatomask.data.settings import ReaderConfig
from anatomask.errors import UserError


def test_the_layout_is_found_by_looking(nnunet_source: Path, tmp_path: Path) -> None:
    assert detect(nnunet_source) == "nnunet"
    assert detect(nnunet_source / "imagesTr") == "folder"
    assert read_dataset(nnunet_source, "folder").reader == "folder"


def test_missing_empty_and_unknown_folders(tmp_path: Path, nnunet_source: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read_dataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no scans"):
        read_dataset(tmp_path / "empty")
    with pytest.raises(UserError, match=r"may be auto, totalsegmentator, .*, folder, npz, dicom"):
        read_dataset(nnunet_source, "nifti")
    with pytest.raises(UserError, match="does not have the layout totalsegmentator; it looks like nnunet"):
        read_dataset(nnunet_source, "totalsegmentator")


@pytest.mark.parametrize(
    ("folder", "reader", "labelled", "unlabelled"),
    [
        ("openkbp", "nnunet", 115, 88),
        ("totalsegmentator", "totalsegmentator", 1, 0),
        ("flare22", "flare22", 1, 0),
        ("amos22", "amos22", 2, 0),
        ("autopet2", "autopet2", 4, 0),
        ("scans", "folder", 0, None),
    ],
)
def test_real_layouts(real_data: Path, folder: str, reader: str, labelled: int, unlabelled: int | None) -> None:
    raw = read_dataset(real_data / folder)
    assert raw.reader == reader
    assert sum(case.label is not None for case in raw.cases) == labelled
    if unlabelled is not None:
        assert sum(case.label is None for case in raw.cases) == unlabelled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ReaderConfig(modality="ct"), r"--reader\.modality does not apply to nnunet, only to amos22, dicom"),
        (ReaderConfig(positives_only=True), r"--reader\.positives-only does not apply to nnunet, only to autopet2"),
        (ReaderConfig(configuration="2d"), r"--reader\.configuration is one of --reader\.plans here"),
    ],
)
def test_an_option_that_means_nothing_in_a_layout_is_refused(
    options: ReaderConfig, message: str, nnunet_source: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_dataset(nnunet_source, options=options)


def test_a_list_of_cases_holds_for_any_layout(nnunet_source: Path, tmp_path: Path) -> None:
    (nnunet_source / "splits_final.json").write_text('[{"train": ["a", "b"], "val": ["c", "d"]}]')
    wanted = tmp_path / "cases.txt"
    wanted.write_text("c\na\nu\n")
    raw = read_dataset(nnunet_source, options=ReaderConfig(cases=str(wanted)))
    assert [case.case for case in raw.cases] == ["a", "c", "u"]
    assert raw.splits == {"train": ("a",), "val": (), "test": ("c",)}
    for text, message in (("a\nzz\n", "names 'zz'; the cases are like 'a'"), ("\n \n", "names no case")):
        wanted.write_text(text)
        with pytest.raises(UserError, match=message):
            read_dataset(nnunet_source, options=ReaderConfig(cases=str(wanted)))
    with pytest.raises(UserError, match=r"--reader\.cases .*nowhere\.txt cannot be read"):
        read_dataset(nnunet_source, options=ReaderConfig(cases=str(tmp_path / "nowhere.txt")))


def test_case_names_are_safe_for_files() -> None:
    assert case_name("PETCT_1", "03-2003-NA PET/CT  Köln") == "PETCT_1_03-2003-NA_PET_CT_Köln"
