from __future__ import annotations

from pathlib import Path

import pytest

from anatomask.data.datasets import detect, read_dataset
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
