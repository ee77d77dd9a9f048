from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.datasets import read_dataset
from anatomask.data.datasets.totalsegmentator import SPACING, class_names, merge_masks
from anatomask.data.preprocess import prepare_case
from anatomask.errors import UserError

AFFINE = np.diag([1.5, 1.5, 1.5, 1.0])


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A case whose spleen (1) and stomach (6) overlap."""
    folder = tmp_path / "Totalsegmentator_dataset" / "s0001"
    save(folder / "ct.nii.gz", np.zeros((4, 4, 4), np.int16))
    for name in class_names().values():
        mask = np.zeros((4, 4, 4), np.uint8)
        mask[0] = name == "spleen"
        mask[:, 0] = name == "stomach"
        save(folder / "segmentations" / f"{name}.nii.gz", mask)
    return folder


def test_the_list_of_classes() -> None:
    names = class_names()
    assert list(names) == list(range(1, 105))
    assert (names[1], names[5], names[6], len(set(names.values()))) == ("spleen", "liver", "stomach", 104)


def test_masks_are_merged_and_the_later_wins(case: Path) -> None:
    label, affine = merge_masks(case / "segmentations")
    expected = np.zeros((4, 4, 4), np.uint8)
    expected[0] = 1
    expected[:, 0] = 6
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(affine, AFFINE)


def test_the_folder_itself_or_the_one_above(case: Path, tmp_path: Path) -> None:
    save(case.parent / "s0002" / "ct.nii.gz", np.zeros((4, 4, 4), np.int16))
    for source in (tmp_path, case.parent):
        raw = read_dataset(source)
        assert raw.reader == "totalsegmentator"
        assert [(one.case, one.label is not None) for one in raw.cases] == [("s0001", True), ("s0002", False)]
        assert raw.spacing == (1.5, 1.5, 1.5)
        assert set(raw.nsd_tolerance.values()) == {3.0}


def test_masks_that_are_missing_unknown_or_not_binary(case: Path) -> None:
    masks = case / "segmentations"
    save(masks / "unicorn.nii.gz", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(UserError, match=r"unicorn\.nii\.gz is not a class .*--dataset folder"):
        merge_masks(masks)
    (masks / "unicorn.nii.gz").unlink()
    save(masks / "liver.nii.gz", np.full((4, 4, 4), 2, np.uint8))
    with pytest.raises(UserError, match=r"liver\.nii\.gz is not a binary mask"):
        merge_masks(masks)
    save(masks / "liver.nii.gz", np.zeros((4, 4, 5), np.uint8))
    with pytest.raises(UserError, match=r"liver\.nii\.gz has shape"):
        merge_masks(masks)
    save(masks / "liver.nii.gz", np.zeros((4, 4, 4), np.uint8), np.diag([-1.5, 1.5, 1.5, 1.0]))
    with pytest.raises(UserError, match=r"liver\.nii\.gz and .*spleen\.nii\.gz lie 12\.0 mm apart"):
        merge_masks(masks)
    (masks / "liver.nii.gz").unlink()
    with pytest.raises(UserError, match=r"liver\.nii\.gz is missing \(1 of 104"):
        merge_masks(masks)


def test_masks_without_a_scan_are_a_case_that_fails(case: Path) -> None:
    (case.parent / "s0003" / "segmentations").mkdir(parents=True)
    save(case.parent / ".s0004" / "ct.nii.gz", np.zeros((4, 4, 4), np.int16))
    (case / "segmentations" / "._liver.nii.gz").write_bytes(b"of macOS")
    raw = read_dataset(case.parent)
    assert [one.case for one in raw.cases] == ["s0001", "s0003"]
    assert merge_masks(case / "segmentations")[0].any()
    with pytest.raises(UserError, match=r"s0003/ct\.nii\.gz is missing"):
        prepare_case(raw.cases[1], ("ct",), class_names(), (1.5, 1.5, 1.5))


def test_scans_without_any_masks_are_a_plain_folder(tmp_path: Path) -> None:
    save(tmp_path / "patient1" / "ct.nii.gz", np.zeros((4, 4, 4), np.int16))
    raw = read_dataset(tmp_path)
    assert (raw.reader, raw.spacing, raw.class_names) == ("folder", None, {})


def test_a_scan_whose_checksum_is_wrong_is_named_as_the_published_s0864_is(case: Path) -> None:
    rng = np.random.default_rng(0)
    save(case / "ct.nii.gz", rng.integers(-1000, 1000, (4, 4, 4)).astype(np.int16))
    shutil.copytree(case, case.parent / "s0864")
    save(case / "ct.nii.gz", np.arange(64, dtype=np.int16).reshape(4, 4, 4))
    path = case.parent / "s0864" / "ct.nii.gz"
    save(path, rng.integers(-1000, 1000, (30, 30, 30)).astype(np.int16))
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF  # the checksum comes last, after every voxel
    path.write_bytes(content)
    raw = read_dataset(case.parent)
    assert raw.remarks == ("s0864: its scan is damaged in the published archive, not only in your copy",)
    with pytest.raises(UserError, match=r"s0864/ct\.nii\.gz is damaged or cut off \(CRC"):
        prepare_case(raw.cases[1], raw.schemes, raw.class_names, SPACING)
    assert prepare_case(raw.cases[0], raw.schemes, raw.class_names, SPACING).label is not None


@pytest.fixture
def v2(real_data: Path, tmp_path: Path) -> Path:
    """The real case with v2's names: v1's masks where a class has kept its name, empty ones elsewhere."""
    v1 = real_data / "totalsegmentator" / "Totalsegmentator_dataset" / "s0001"
    folder = tmp_path / "Totalsegmentator_dataset_v201" / "s0001"
    (folder / "segmentations").mkdir(parents=True)
    (folder / "ct.nii.gz").symlink_to(v1 / "ct.nii.gz")
    image = nib.Nifti1Image.from_filename(v1 / "ct.nii.gz")
    empty = tmp_path / "empty.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), empty)
    for name in class_names("v2").values():
        old = v1 / "segmentations" / f"{name}.nii.gz"
        (folder / "segmentations" / old.name).symlink_to(old if old.exists() else empty)
    return folder


def test_the_classes_of_v2() -> None:
    v1, v2 = class_names("v1"), class_names("v2")
    assert list(v2) == list(range(1, 118))
    assert len(set(v2.values())) == 117
    assert (v2[5], v2[26], v2[51], v2[79], v2[117]) == (
        "liver", "vertebrae_S1", "heart", "spinal_cord", "costal_cartilages"
    )  # fmt: skip
    assert set(v1.values()) - set(v2.values()) == {
        "heart_myocardium", "heart_atrium_left", "heart_ventricle_left", "heart_atrium_right", "heart_ventricle_right",
        "pulmonary_artery", "face",
    }  # fmt: skip


def test_v2_is_told_from_v1_and_its_organs_are_the_same(v2: Path, real_data: Path) -> None:
    new, old = read_dataset(v2.parents[1]), read_dataset(real_data / "totalsegmentator")
    assert (new.reader, old.reader) == ("totalsegmentator_v2", "totalsegmentator")
    assert new.splits is None
    for first, masks in (("s0000", ()), ("s0000b", ("liver.nii.gz",))):  # broken cases do not decide the version
        folder = v2.parent / first / "segmentations"
        folder.mkdir(parents=True)
        (v2.parent / first / "ct.nii.gz").symlink_to(v2 / "ct.nii.gz")
        for name in masks:
            (folder / name).symlink_to(v2 / "segmentations" / name)
        assert read_dataset(v2.parents[1]).reader == "totalsegmentator_v2"
    after, _ = merge_masks(v2 / "segmentations", "v2")
    before, _ = merge_masks(real_data / "totalsegmentator" / "Totalsegmentator_dataset" / "s0001" / "segmentations")
    ids = {name: c for c, name in class_names("v2").items()}
    for c, name in class_names().items():
        if name in ("liver", "vertebrae_L3", "urinary_bladder", "autochthon_left"):
            assert (before == c).any()
            np.testing.assert_array_equal(after == ids[name], before == c)
    with pytest.raises(UserError, match="does not have the layout totalsegmentator; it looks like totalsegmentator_v2"):
        read_dataset(v2.parents[1], "totalsegmentator")


def test_the_split_of_v2_is_that_of_its_table(v2: Path) -> None:
    for name in ("s0002", "s0003", "s0004"):
        (v2.parent / name).mkdir()
        (v2.parent / name / "ct.nii.gz").symlink_to(v2 / "ct.nii.gz")
        if name != "s0004":
            (v2.parent / name / "segmentations").symlink_to(v2 / "segmentations")
    meta = v2.parent / "meta.csv"
    meta.write_text("image_id;age;split\ns0001;60;train\ns0002;;test\ns0003;;val\ns9999;;train\n")
    assert read_dataset(v2.parents[1]).splits == {"train": ("s0001",), "val": ("s0003",), "test": ("s0002",)}
    meta.write_text("image_id;age;split\ns0001;60;train\ns0002;;testing\ns0003;;val\n")
    with pytest.raises(UserError, match=r"meta\.csv must give case s0002 a split .*not 'testing'"):
        read_dataset(v2.parents[1])
    meta.write_text("image_id;age;split\ns0001;60;train\ns0002;;test\ns0003;;val\ns0002;;train\n")
    with pytest.raises(UserError, match=r"meta\.csv lists case s0002 twice; keep one of the rows"):
        read_dataset(v2.parents[1])
    meta.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"meta\.csv cannot be read as a table"):
        read_dataset(v2.parents[1])
