from __future__ import annotations

import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.datasets import RawDataset, read_dataset
from anatomask.data.datasets.patterns import named_parts
from anatomask.data.datasets.scans import read_scans
from anatomask.data.settings import ReaderConfig
from anatomask.errors import Note, UserError


def save(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


CT = np.linspace(-1000, 500, 1000).reshape(10, 10, 10).astype(np.int16)
MR = np.linspace(0, 1500, 1000).reshape(10, 10, 10).astype(np.int16)


def test_nested_scans_are_cases_of_their_patients(tmp_path: Path) -> None:
    save(tmp_path / "b.nii", CT)
    save(tmp_path / "p1" / "early" / "ct.nii.gz", CT)
    save(tmp_path / "p1" / "late" / "ct.nii.gz", CT)
    save(tmp_path / ".trash" / "old.nii.gz", CT)
    (tmp_path / "p1" / "late" / "._ct.nii.gz").write_bytes(b"of macOS")
    (tmp_path / "notes.txt").write_text("x")
    raw = read_dataset(tmp_path)
    assert [(case.case, case.patient) for case in raw.cases] == [
        ("b", "b"),
        ("p1_early_ct", "p1"),
        ("p1_late_ct", "p1"),
    ]
    assert all(case.label is None for case in raw.cases)
    assert (raw.channel_names, raw.schemes, raw.class_names) == (("CT",), ("ct",), {})


def test_one_scan_that_is_not_in_hu_makes_it_no_ct(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", CT)
    save(tmp_path / "b.nii", MR)
    (tmp_path / "c.nii.gz").write_bytes(b"broken")
    raw = read_dataset(tmp_path)
    assert raw.schemes == ("zscore",) and raw.channel_names == ("CT or MR",)
    assert len(raw.cases) == 3
    assert raw.remarks[0].startswith("1 of 2 inspected scans look like CT and the others do not")


def test_dicom_files_beside_nifti_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "p1").mkdir()
    (tmp_path / "p1" / "1.dcm").write_bytes(b"")
    save(tmp_path / "a.nii", CT)
    assert (
        "1 DICOM files left out, as there are NIfTI files; --dataset dicom reads them"
        in read_dataset(tmp_path).remarks[0]
    )


def test_one_file_is_read_without_a_look_at_what_lies_beside_it(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", CT)
    save(tmp_path / "b.nii", CT)
    (tmp_path / "gone.nii").symlink_to(tmp_path / "nowhere")
    raw = read_scans(tmp_path / "a.nii")
    assert [case.case for case in raw.cases] == ["a"] and not raw.remarks
    for dataset, options in (("folder", None), ("auto", ReaderConfig(image="*.nii"))):
        with pytest.raises(UserError, match=r"choose among the files of a folder, and .*a\.nii is one file"):
            read_scans(tmp_path / "a.nii", dataset, options)


def test_files_with_the_numbers_of_channels_are_one_case_only_on_one_grid(tmp_path: Path) -> None:
    """Whether they are prepared or predicted: cohorts are numbered like that, too."""
    cohort = tmp_path / "cohort"
    for number, voxels in enumerate((CT, CT[:8], CT[:6])):
        save(cohort / f"ct_000{number}.nii.gz", voxels)
    save(cohort / "late" / "p1_0000.nii.gz", CT)
    save(cohort / "p2.nii.gz", CT)
    save(cohort / "p2_0000.nii.gz", CT)  # no second p2
    save(cohort / "gap_0000.nii.gz", CT)
    save(cohort / "gap_0002.nii.gz", CT)
    names = [*(f"ct_000{number}" for number in range(3)), "gap_0000", "gap_0002", "late_p1", "p2", "p2_0000"]
    for raw in (read_dataset(cohort), read_scans(cohort)):
        assert sorted(case.case for case in raw.cases) == names
        assert all(len(case.images) == 1 for case in raw.cases)
    assert [case.case for case in read_scans(cohort / "ct_0001.nii.gz").cases] == ["ct_0001"]

    several = tmp_path / "several"
    for number in range(2):
        save(several / f"p1_000{number}.nii.gz", CT)
    (case,) = read_scans(several).cases
    assert case.case == "p1" and [image.path.name for image in case.images] == ["p1_0000.nii.gz", "p1_0001.nii.gz"]
    with pytest.raises(UserError, match=r"p1_0000.nii.gz, p1_0001.nii.gz of .* are the channels of one case"):
        read_dataset(several)
    assert len(read_dataset(several, options=ReaderConfig(image="p1_*.nii.gz")).cases) == 2


def test_two_scans_of_one_name_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", CT)
    save(tmp_path / "a.nii.gz", CT)
    with pytest.raises(UserError, match="both be case 'a'"):
        read_dataset(tmp_path)


LABELS = np.zeros((10, 10, 10), np.uint8)
LABELS[2:5, 2:5, 2:5], LABELS[6:9, 6:9, 6:9] = 1, 2


def labels_of(raw: RawDataset) -> dict[str, str | None]:
    """The name of each case's label."""
    return {case.case: case.label.path.name if case.label else None for case in raw.cases}


@pytest.mark.parametrize(
    ("scan", "mask"),
    [
        ("p1.nii.gz", "p1_seg.nii.gz"),
        ("p1_ct.nii.gz", "p1_seg.nii.gz"),
        ("p1_ct.nii.gz", "p1_ct-label.nii"),
        ("p1_0000.nii.gz", "p1_Mask.nii.gz"),
        ("p1/ct.nii.gz", "p1/segmentation.nii.gz"),
        ("images/p1.nii.gz", "labels/p1.nii.gz"),
        ("imagesTr/p1_0000.nii.gz", "labelsTr/p1.nii.gz"),
        ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_dseg.nii.gz"),
        ("p1/ct.nii.gz", "p1/masks/ct.nii.gz"),
    ],
)
def test_a_mask_beside_a_scan_is_its_label(scan: str, mask: str, tmp_path: Path) -> None:
    save(tmp_path / scan, CT)
    save(tmp_path / mask, LABELS.astype(np.float32))
    save(tmp_path / "other" / "p2.nii.gz", CT)
    raw = read_dataset(tmp_path, "folder")
    assert sorted(str(case.images[0].path.relative_to(tmp_path)) for case in raw.cases) == sorted(
        [scan, "other/p2.nii.gz"]
    )
    assert {str(case.label.path.relative_to(tmp_path)) for case in raw.cases if case.label} == {mask}
    assert raw.class_names == {1: "class 1", 2: "class 2"} and raw.nsd_tolerance == {1: 3.0, 2: 3.0}
    assert any("named like label maps and are taken as the labels" in remark for remark in raw.remarks)


def test_a_mask_that_belongs_to_no_scan_alone_is_left_out_with_a_remark(tmp_path: Path) -> None:
    for name in ("a", "b_t1", "b_t2", "c", "d", "e"):
        save(tmp_path / f"{name}.nii.gz", CT)
    save(tmp_path / "a_liver_mask.nii.gz", LABELS)  # two for one scan
    save(tmp_path / "a_spleen_mask.nii.gz", LABELS)
    save(tmp_path / "b_seg.nii.gz", LABELS)  # one for two scans
    save(tmp_path / "c_seg.nii.gz", LABELS[:5])  # another grid
    save(tmp_path / "d_mask.nii.gz", LABELS * np.float32(0.5))  # no whole numbers
    save(tmp_path / "f_seg.nii.gz", MR)  # a scan, whatever its name says
    (tmp_path / "e_seg.nii.gz").write_bytes(b"broken")  # reading the case will say so
    raw = read_dataset(tmp_path)
    assert labels_of(raw) == dict.fromkeys(["a", "b_t1", "b_t2", "c", "d", "f_seg"]) | {"e": "e_seg.nii.gz"}
    told = " | ".join(raw.remarks)
    for name, why in (
        ("a_liver_mask.nii.gz, a_spleen_mask.nii.gz", "2 label maps are beside the scan a.nii.gz"),
        ("b_seg.nii.gz", "several scans are beside it"),
        ("c_seg.nii.gz", "no scan of its grid and name is beside it"),
        ("d_mask.nii.gz", "it holds values other than"),
    ):
        assert f"{name} left out: named like a label map, but {why}" in told


def test_a_folder_of_masks_is_a_class_per_organ(tmp_path: Path) -> None:
    for patient, organs in (("p1", ("liver", "spleen")), ("p2", ("aorta", "spleen"))):
        save(tmp_path / patient / "ct.nii.gz", CT)
        for number, organ in enumerate(organs):
            mask = np.zeros(CT.shape, np.uint8)
            mask[number : number + 3] = 1
            save(tmp_path / patient / "segmentations" / f"{organ}.nii.gz", mask)
    save(tmp_path / "p3" / "ct.nii.gz", CT)
    raw = read_dataset(tmp_path, "folder")
    assert raw.class_names == {1: "aorta", 2: "liver", 3: "spleen"} and len(raw.nsd_tolerance) == 3
    assert labels_of(raw) == {"p1_ct": "segmentations", "p2_ct": "segmentations", "p3_ct": None}
    assert any(remark.startswith("the labels of 2 scans are a mask per organ") for remark in raw.remarks)
    for case, first in zip(raw.cases, (2, 1), strict=False):
        assert case.label is not None
        voxels, affine = case.label.read(case.label.path)
        assert (voxels[:, 0, 0].tolist(), affine.tolist()) == ([first, 3, 3, 3, *[0] * 6], np.eye(4).tolist())
        assert case.label.grid(case.label.path)[0] == CT.shape
    assert [case.case for case in read_scans(tmp_path, "folder").cases] == ["p1_ct", "p2_ct", "p3_ct"]
    with pytest.raises(UserError, match=r"--reader\.label-names names\.json names the values of label maps"):
        read_dataset(tmp_path, "folder", options=ReaderConfig(label_names="names.json"))

    save(tmp_path / "p3" / "segmentations" / "ct.nii.gz", LABELS)  # a label map: the others are no masks of organs
    mixed = read_dataset(tmp_path, "folder")
    save(tmp_path / "p4" / "ct.nii.gz", CT)
    save(tmp_path / "p4" / "segmentations" / "ct.nii.gz", LABELS[:5])  # of another grid: no organ named ct
    assert labels_of(read_dataset(tmp_path, "folder"))["p4_ct"] is None
    assert labels_of(mixed) == {"p1_ct": None, "p2_ct": None, "p3_ct": "ct.nii.gz"}
    assert any(
        "and 1 more left out" in remark and "not read as the mask of an organ" in remark for remark in mixed.remarks
    )


def test_two_files_for_one_label_are_named_and_neither_wins(tmp_path: Path) -> None:
    for patient, folders in (("p1", ("masks", "segmentations")), ("p2", ("masks",))):
        save(tmp_path / patient / "ct.nii.gz", CT)
        for folder in folders:
            save(tmp_path / patient / folder / "liver.nii.gz", (LABELS > 0).astype(np.uint8))
    save(tmp_path / "p1" / "masks" / "spleen.nii.gz", (LABELS > 1).astype(np.uint8))
    raw = read_dataset(tmp_path, "folder")
    assert labels_of(raw) == {"p1_ct": None, "p2_ct": "masks"} and raw.class_names == {1: "liver"}
    assert any("p1/masks/liver.nii.gz and p1/segmentations/liver.nii.gz may be of one" in text for text in raw.remarks)
    save(tmp_path / "liverp1.nii.gz", LABELS)
    save(tmp_path / "p1liver.nii.gz", LABELS)
    with pytest.raises(UserError, match=r"/liverp1\.nii\.gz and .*/p1liver\.nii\.gz may both be the label of a scan"):
        read_dataset(tmp_path, "folder", options=ReaderConfig(image="**/ct.nii.gz", label="*liver*.nii.gz"))


def test_classes_are_numbered_without_gaps_and_named_by_a_file(tmp_path: Path) -> None:
    save(tmp_path / "scans" / "a_ct.nii.gz", CT)
    save(tmp_path / "scans" / "a_seg.nii.gz", LABELS * 3)
    raw = read_dataset(tmp_path / "scans")
    assert raw.class_names == {1: "class 3", 2: "class 6"}
    assert raw.cases[0].label is not None
    voxels, _ = raw.cases[0].label.read(raw.cases[0].label.path)
    np.testing.assert_array_equal(voxels, LABELS)
    names = tmp_path / "names.json"
    for content in ({"liver": 3, "spleen": 6}, {"labels": {"background": 0, "liver": 3, "spleen": 6}}):
        names.write_text(json.dumps(content))
        named = read_dataset(tmp_path / "scans", options=ReaderConfig(label_names=str(names)))
        assert named.class_names == {1: "liver", 2: "spleen"}


@pytest.mark.parametrize("count", [19, 20])
def test_the_reading_of_many_label_maps_is_told(count: int, tmp_path: Path) -> None:
    """It may take minutes, before there is anything to show a progress of."""
    for number in range(count):
        save(tmp_path / f"p{number}.nii", CT)
        save(tmp_path / f"p{number}_seg.nii", np.ones_like(CT, dtype=np.uint8))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_dataset(tmp_path)
    said = [str(one.message) for one in caught if one.category is Note]
    assert said == [
        "20 label maps are read first, to see which classes they hold; --reader.label-names FILE names these instead"
    ] * (count == 20)


def test_patterns_name_scans_labels_and_cases(tmp_path: Path) -> None:
    for day in ("early", "late"):
        save(tmp_path / "p1" / day / "scan_ct.nii.gz", CT)
        save(tmp_path / "p1" / day / "scan_pet.nii.gz", CT)
    save(tmp_path / "p1" / "late" / "scan_gtv.nii.gz", LABELS)
    save(tmp_path / "p2" / "scan_gtv.nii.gz", LABELS)
    raw = read_dataset(tmp_path, options=ReaderConfig(image="*_ct.nii.gz", label="*_gtv.nii.gz"))
    assert labels_of(raw) == {"p1_early_scan": None, "p1_late_scan": "scan_gtv.nii.gz"}
    assert raw.remarks[0].startswith("p2/scan_gtv.nii.gz left out: ") and "no scan belongs to it" in raw.remarks[0]
    assert len(read_dataset(tmp_path, options=ReaderConfig(image="**/*_pet.nii.gz")).cases) == 2


@pytest.mark.parametrize(
    ("file", "pattern", "parts"),
    [
        ("p1_ct.nii.gz", "*_ct.nii.gz", ("p1",)),
        ("a/b/p1_ct.nii.gz", "*_ct.nii.gz", ("a", "b", "p1")),
        ("a/b/p1_ct.nii.gz", "*/*_ct.nii.gz", None),
        ("images/p1.nii.gz", "images/*.nii.gz", ("p1",)),
        ("p1/s2/ct.nii", "*/*/ct.nii", ("p1", "s2")),
        ("p1/s2/ct.nii", "**/ct.nii", ("p1", "s2")),
        ("ct.nii", "**/ct.nii", ()),
        ("p1.nii", "p?.nii", ("1",)),
        ("p1xnii", "p1.nii", None),
    ],
)
def test_what_the_wildcards_stand_for_is_the_name(file: str, pattern: str, parts: tuple[str, ...] | None) -> None:
    assert named_parts(Path(file), pattern) == parts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "*_mr.nii.gz"}, r"--reader\.image \*_mr\.nii\.gz matches none of the NIfTI files .*; correct it"),
        ({"label": "*_seg.nii.gz"}, r"needs --reader\.image"),
        (
            {"image": "*_ct.nii.gz", "label": "a_s*.nii.gz"},
            r"must be the same in both.*like 'a' in scans and like 'eg' in labels",
        ),
        ({"patient": "("}, r"--reader\.patient \( is no regular expression"),
        ({"patient": "P[0-9]"}, r"finds no patient in a_ct\.nii\.gz; correct it"),
        ({"label_names": "nowhere.json"}, r"nowhere\.json is no file"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, str], message: str, tmp_path: Path) -> None:
    save(tmp_path / "a_ct.nii.gz", CT)
    save(tmp_path / "a_seg.nii.gz", LABELS)
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path, options=ReaderConfig(**options))  # type: ignore[arg-type]


def test_the_patient_is_found_or_named(tmp_path: Path) -> None:
    for name in ("images/P1_a", "images/P1_b", "images/P2_a", "sub-07/ses-1/sub-07_T1w", "Smith/ct"):
        save(tmp_path / f"{name}.nii.gz", CT)
    patients = {case.case: case.patient for case in read_dataset(tmp_path).cases}
    assert patients == {
        "Smith_ct": "Smith",
        "images_P1_a": "images_P1_a",
        "images_P1_b": "images_P1_b",
        "images_P2_a": "images_P2_a",
        "sub-07_ses-1_sub-07_T1w": "sub-07",
    }
    for expression in ("P[0-9]", "images/(P[0-9])_"):
        options = ReaderConfig(image="images/*.nii.gz", patient=expression)
        assert [case.patient for case in read_dataset(tmp_path, options=options).cases] == ["P1", "P1", "P2"]
    assert not any("--reader.patient" in remark for remark in read_dataset(tmp_path).remarks)
    one = read_dataset(tmp_path, options=ReaderConfig(image="images/P1_*.nii.gz", patient="P[0-9]"))
    assert any("one patient, P1; --reader.patient names" in remark for remark in one.remarks)


def test_folders_that_are_taken_for_patients_are_named_where_it_is_doubtful(tmp_path: Path) -> None:
    for time in ("baseline", "followup"):
        for patient in ("a", "b"):
            save(tmp_path / "visits" / "images" / time / patient / "ct.nii.gz", CT)
    doubt = "baseline, followup taken as one patient each, though several folders there hold scans, as a, b of baseline"
    assert any(doubt in remark for remark in read_dataset(tmp_path / "visits").remarks)
    options = ReaderConfig(patient=r"/(\w+)/ct")
    assert not any(
        "--reader.patient" in remark for remark in read_dataset(tmp_path / "visits", options=options).remarks
    )
    for number in range(4):
        save(tmp_path / "cohorts" / "A" / f"p{number}.nii.gz", CT)
        save(tmp_path / "cohorts" / "A" / f"p{number}_seg.nii.gz", LABELS)
        save(tmp_path / "cohorts" / "B" / f"q{number}.nii.gz", CT)
    few = (
        "all 4 labelled scans are taken as those of A, and fewer than 3 patients cannot be divided into train, val and"
    )
    assert any(few in remark for remark in read_dataset(tmp_path / "cohorts").remarks)
