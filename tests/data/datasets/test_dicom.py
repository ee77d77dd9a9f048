"""Series written with pydicom from a real scan, and read back."""

from __future__ import annotations

import pickle
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from anatomask.data.datasets import RawDataset, read_dataset
from anatomask.data.nifti import read_nifti
from anatomask.data.preprocess import grid_of, prepare_case
from anatomask.data.settings import ReaderConfig
from anatomask.errors import UserError
from tests.data.datasets.series import INTERCEPT, change, write_series

with warnings.catch_warnings():  # nibabel says that its DICOM readers are experimental
    warnings.simplefilter("ignore")
    from nibabel.nicom import dicomwrappers


@pytest.fixture(scope="module")
def scan(real_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """A part of a real abdominal CT with slices of 5 mm: (80, 60, 12)."""
    voxels, affine = read_nifti(real_data / "scans" / "crlm_1004_abdomen.nii.gz")
    corner = (100, 100, 10)
    part = voxels[100:180, 100:160, 10:22]
    return part, affine @ nib.affines.from_matvec(np.eye(3), corner)


def oblique(affine: np.ndarray) -> np.ndarray:
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.15, 0.1))
    return turn @ affine


def canonical(voxels: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.Nifti1Image(voxels.astype(np.float32), affine))


@pytest.mark.parametrize("turn", [lambda affine: affine, oblique, lambda affine: affine @ np.diag([1, 1, -1, 1])])
def test_a_real_scan_comes_back(
    turn: Callable[[np.ndarray], np.ndarray], scan: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    voxels, affine = scan[0], turn(scan[1])
    files = write_series(tmp_path / "p7" / "study", voxels, affine)
    raw = read_dataset(tmp_path)
    assert (raw.reader, raw.channel_names, raw.schemes, raw.remarks) == ("dicom", ("CT",), ("ct",), ())
    (case,) = pickle.loads(pickle.dumps(raw)).cases  # as into a worker
    assert (case.case, case.patient, case.label) == ("p7_study", "patient 7", None)
    read, read_affine = case.images[0].read(case.images[0].path)
    expected, result = canonical(voxels, affine), canonical(read, read_affine)
    np.testing.assert_array_equal(result.get_fdata(), expected.get_fdata())
    np.testing.assert_allclose(result.affine, expected.affine, atol=1e-4)
    assert grid_of(case.images[0]).shape == expected.shape

    first = dicomwrappers.wrapper_from_file(files[4])  # another reader's opinion of where a pixel lies
    row, column = 17, 31
    there = np.diag([-1, -1, 1, 1]) @ first.affine @ [row, column, 0, 1]
    k = round(float((np.linalg.inv(read_affine) @ there)[2]))
    np.testing.assert_allclose(read_affine @ [column, row, k, 1], there, atol=1e-3)
    assert read[column, row, k] == voxels[column, row, 4]

    prepared = prepare_case(case, raw.schemes, (), nib.affines.voxel_sizes(expected.affine))
    np.testing.assert_array_equal(prepared.images[0], expected.get_fdata())


def only(raw: RawDataset) -> Any:
    return raw.cases[0].images[0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda files, at: files[5].unlink(),
            r"a slice is missing between \d+\.dcm and \d+\.dcm: 10\.00 mm, else",
        ),
        (lambda files, at: change(files[5], ImagePositionPatient=at(5.3)), "uneven spacing between"),
        (lambda files, at: change(files[5], ImagePositionPatient=at(4)), "lie where another does"),
        (lambda files, at: (files[5].parent / "copy.dcm").write_bytes(files[5].read_bytes()), "are the same slice"),
        (lambda files, at: change(files[5], Rows=30), r"has Rows 30, but .* of the same series 60"),
        (lambda files, at: change(files[5], PixelSpacing=[2, 2]), "has PixelSpacing"),
        (lambda files, at: change(files[5], ImageOrientationPatient=[1, 0, 0, 0, 0, 1]), "has ImageOrientationPatient"),
        (lambda files, at: change(files[5], ImagePositionPatient=None), "does not say where its slice lies"),
        (lambda files, at: change(files[5], PixelSpacing=[0, 0]), "does not say where its slice lies"),
        (lambda files, at: change(files[5], Columns=None), "does not say where its slice lies"),
        (lambda files, at: change(files[5], SOPInstanceUID=None), "does not say where its slice lies"),
        (lambda files, at: change(files[5], NumberOfFrames=8), "holds many frames"),
        (lambda files, at: change(files[5], SamplesPerPixel=3), "colour picture"),
        (lambda files, at: change(files[5], RescaleIntercept=None), "its HU are unknown"),
        (lambda files, at: files[5].write_bytes(files[5].read_bytes()[:-3000]), "its pixels cannot be read"),
        (lambda files, at: [path.unlink() for path in files[1:]], "is the only slice"),
    ],
)
def test_a_broken_series_is_refused_and_the_file_or_folder_named(
    spoil: Callable[..., object], message: str, scan: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    files = write_series(tmp_path / "bad", *scan)
    good = write_series(tmp_path / "good", *scan)

    def at(k: float) -> list[str]:
        return [f"{v:.9g}" for v in (np.diag([-1, -1, 1, 1]) @ scan[1] @ [0, 0, k, 1])[:3]]

    spoil(files, at)
    raw = read_dataset(tmp_path)
    assert [case.case for case in raw.cases] == ["bad", "good"]
    with pytest.raises(UserError, match=message) as caught:
        only(raw).read(only(raw).path)
    assert str(tmp_path / "bad") in str(caught.value)
    other = raw.cases[1].images[0]
    assert other.read(other.path)[0].shape[2] == len(good)


def test_a_tilted_gantry_is_refused(scan: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    sheared = scan[1].copy()
    sheared[1, 2] += 1.0  # 11° against 5 mm
    write_series(tmp_path, scan[0], sheared)
    raw = read_dataset(tmp_path)
    with pytest.raises(UserError, match=r"is sheared by 11\.0 mm \(gantry tilt\)"):
        only(raw).read(only(raw).path)


def test_several_series_in_a_folder_and_files_that_are_no_scans(
    scan: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    write_series(folder, *scan)
    for path in folder.iterdir():
        path.rename(folder / f"thin{path.stem}")  # no ending
    write_series(folder, scan[0] + 1, scan[1], SeriesNumber=5, PatientID="")
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    localizer = write_series(tmp_path / "study" / "scout", scan[0][:, :, :1], scan[1], ImageType=scout)
    structures = pydicom.dcmread(localizer[0])
    structures.Modality = "RTSTRUCT"
    structures.save_as(folder / "structures.dcm")
    (folder / "notes.txt").write_text("x")
    (folder / "lost.dcm").write_bytes(b"damaged")
    raw = read_dataset(tmp_path)
    assert [(case.case, case.patient) for case in raw.cases] == [
        ("study_lost.dcm", "study_lost.dcm"), ("study_series3", "patient 7"), ("study_series5", "study")
    ]  # fmt: skip
    assert raw.remarks == ("1 files left out: RTSTRUCT", "1 files left out: localizer")
    volumes = [case.images[0].read(case.images[0].path)[0] for case in raw.cases[1:]]
    np.testing.assert_array_equal(volumes[1], volumes[0] + 1)
    with pytest.raises(UserError, match=r"lost\.dcm is no DICOM file or is damaged"):
        only(raw).read(only(raw).path)


@pytest.mark.parametrize("name", ["IM{:04d}", "1.2.840.{}"])
def test_a_damaged_slice_without_suffix_is_not_lost_unseen(
    name: str, scan: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """Named like the others; what is not is no slice."""
    files = [path.rename(tmp_path / name.format(k)) for k, path in enumerate(write_series(tmp_path, *scan))]
    (tmp_path / "README").write_text("of the archive")
    assert [case.case for case in read_dataset(tmp_path).cases] == [tmp_path.name]
    files[-1].write_bytes(files[-1].read_bytes()[:100])
    assert sorted(case.case for case in read_dataset(tmp_path).cases) == sorted([tmp_path.name, files[-1].name])


def test_a_series_that_is_spread_over_folders_is_one_scan(scan: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    files = write_series(tmp_path / "p1", *scan)
    expected, _ = only(read_dataset(tmp_path)).read(tmp_path / "p1")
    for k, path in enumerate(files):
        target = tmp_path / "p1" / f"DIR{k // 5}" / f"IM{k}.dcm"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    write_series(tmp_path / "p1" / "DIR2", *scan, SeriesNumber=4)
    raw = read_dataset(tmp_path)
    assert [(case.case, case.patient) for case in raw.cases] == [("p1", "patient 7"), ("p1_DIR2", "patient 7")]
    assert raw.remarks == (f"1 series are spread over several folders and read as one scan each, as in {tmp_path}/p1",)
    np.testing.assert_array_equal(only(raw).read(only(raw).path)[0], expected)
    shutil.copytree(tmp_path / "p1" / "DIR1", tmp_path / "p1" / "copy")
    with pytest.raises(UserError, match=r"DIR1/IM\d\.dcm and copy/IM\d\.dcm are the same slice; delete one"):
        only(read_dataset(tmp_path)).read(tmp_path / "p1")


def test_phases_of_a_series_that_were_sorted_into_folders_are_cases(
    scan: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    for phase in ("early", "late"):
        write_series(tmp_path / phase, *scan, SeriesInstanceUID="1.2.3")
    raw = read_dataset(tmp_path)
    assert [case.case for case in raw.cases] == ["early", "late"] and not raw.remarks
    (tmp_path / "late" / "000.dcm").unlink()
    with pytest.raises(UserError, match="slices or more lie where another does"):
        only(read_dataset(tmp_path)).read(tmp_path)


def test_modalities_are_taken_apart(scan: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    write_series(tmp_path / "a", *scan)
    write_series(tmp_path / "b", *scan, Modality="MR")
    mixed = read_dataset(tmp_path)
    assert (mixed.schemes, len(mixed.cases)) == (("zscore",), 2)
    assert "modalities are mixed" in mixed.remarks[0]
    ct = read_dataset(tmp_path, options=ReaderConfig(modality="ct"))
    assert (ct.schemes, ct.channel_names, [case.case for case in ct.cases]) == (("ct",), ("CT",), ["a"])
    mr = read_dataset(tmp_path, options=ReaderConfig(modality="mr"))
    assert (mr.schemes, mr.channel_names, [case.case for case in mr.cases]) == (("zscore",), ("MR",), ["b"])
    with pytest.raises(UserError, match="holds no scans"):
        read_dataset(tmp_path, options=ReaderConfig(modality="pet"))


def test_the_slope_of_each_slice_counts(scan: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    files = write_series(tmp_path, *scan, Modality="PT")
    change(files[2], RescaleSlope=0.5, RescaleIntercept=0)
    raw = read_dataset(tmp_path)
    read, affine = only(raw).read(only(raw).path)
    k = round(float((np.linalg.inv(affine) @ scan[1] @ [0, 0, 2, 1])[2]))
    np.testing.assert_array_equal(read[:, :, k], (scan[0][:, :, 2] - INTERCEPT) * 0.5)


def test_headers_without_a_series_are_cases_that_fail(tmp_path: Path) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    empty = Dataset()
    empty.file_meta, empty.Modality, empty.Rows = meta, "CT", 4
    empty.SOPClassUID, empty.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    empty.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    raw = read_dataset(tmp_path)
    with pytest.raises(UserError, match=r"x\.dcm is no DICOM file or is damaged"):
        only(raw).read(only(raw).path)


@pytest.mark.parametrize("seed", range(4))
def test_bytes_that_are_changed_at_random_are_refused_or_read(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    voxels = np.random.default_rng(seed).integers(-1000, 1000, (8, 6, 4)).astype(np.int16)
    file = write_series(tmp_path / "s", voxels, np.diag([1.0, 1, 2, 1]))[1]
    good = file.read_bytes()
    refused = 0
    for _ in range(25):
        content = bytearray(good)
        for _ in range(rng.choice((1, 1, 8))):
            content[rng.randrange(128, len(good))] = rng.randrange(256)
        at = rng.randrange(132, len(good))
        if rng.random() < 0.3:
            content[at:at] = rng.choice((rng.randbytes(7), content[at : at + 40]))
        if rng.random() < 0.2:
            del content[at:]
        file.write_bytes(content)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=UserWarning)  # a user would see pydicom's
            try:
                raw = read_dataset(tmp_path)
                for case in raw.cases:
                    grid_of(case.images[0])
                    case.images[0].read(case.images[0].path)
            except UserError as error:
                refused += 1
                assert str(tmp_path) in str(error)
    assert refused
