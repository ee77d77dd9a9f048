"""Series written with pydicom from a real scan, and read back."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from anatomask.data.datasets import RawDataset, ReaderConfig, read_dataset
from anatomask.data.nifti import read_nifti
from anatomask.data.preprocess import grid_of, prepare_case
from anatomask.errors import UserError

with warnings.catch_warnings():  # nibabel says that its DICOM readers are experimental
    warnings.simplefilter("ignore")
    from nibabel.nicom import dicomwrappers

INTERCEPT = -1024


def write_series(folder: Path, voxels: np.ndarray, affine: np.ndarray, **tags: Any) -> list[Path]:
    """A slice per file, named in an order that is not that of the slices; returns the files by slice."""
    folder.mkdir(parents=True, exist_ok=True)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    columns = (to_lps @ affine)[:3]
    sizes = np.linalg.norm(columns[:, :3], axis=0)
    series = generate_uid()
    files = []
    for k in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{(k * 7919) % 1000:03d}.dcm"
        file = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID, file.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        file.SeriesInstanceUID, file.SeriesNumber, file.Modality, file.PatientID = series, 3, "CT", "patient 7"
        file.Rows, file.Columns = voxels.shape[1], voxels.shape[0]
        file.ImageOrientationPatient = [f"{v:.10g}" for v in [*columns[:, 0] / sizes[0], *columns[:, 1] / sizes[1]]]
        file.ImagePositionPatient = [f"{v:.9g}" for v in columns @ [0, 0, k, 1]]
        file.PixelSpacing = [f"{sizes[1]:.9g}", f"{sizes[0]:.9g}"]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
        file.RescaleSlope, file.RescaleIntercept = 1, INTERCEPT
        file.PixelData = (voxels[:, :, k].T - INTERCEPT).astype(np.uint16).tobytes()
        for name, value in tags.items():
            setattr(file, name, value)
        file.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def change(path: Path, **tags: Any) -> None:
    file = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    file.save_as(path)


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
