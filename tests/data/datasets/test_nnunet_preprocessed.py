"""nnU-Net's preprocessed layout, written from a real scan: plans, `.b2nd` or `.npz`, pickles that must stay shut."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations

from anatomask.data.datasets import RawCase, read_dataset
from anatomask.data.datasets.base import nifti_image, nifti_label
from anatomask.data.nifti import read_nifti
from anatomask.data.preprocess import grid_of, prepare_case
from anatomask.data.resampling import resample_image, resample_label, target_shape
from anatomask.data.settings import ReaderConfig
from anatomask.errors import UserError

MEAN, STD = 40.0, 300.0
CASE = "kbp_001"
PLANS = "nnUNetPlans"
FOLDER = f"{PLANS}_3d_fullres"


class Bomb:
    """What a pickle may do to those who open it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was opened",)


Write = Callable[..., Path]


def crop(real_data: Path, kind: str, folder: Path) -> Path:
    """The part of the real case that these tests take, as NIfTI."""
    name = f"{CASE}_0000.nii.gz" if kind == "imagesTr" else f"{CASE}.nii.gz"
    voxels, affine = read_nifti(real_data / "openkbp" / kind / name)
    nib.save(nib.Nifti1Image(voxels[:40], affine), folder / name)
    return folder / name


@pytest.fixture
def write(real_data: Path, tmp_path: Path) -> Write:
    """Preprocess a real case as nnU-Net lays it out: axes (z, y, x) of the file, then transposed, then resampled."""

    def make(
        spacing: tuple[float, float, float] = (6.0, 5.0, 3.0),  # of the transposed axes
        forward: tuple[int, int, int] = (0, 1, 2),
        codes: str = "RAS",
        ending: str = ".b2nd",
        reader: str = "SimpleITKIO",
        cut: int = 0,
        truth: bool = True,
        name: str = "Dataset001_KBP",
    ) -> Path:
        source = tmp_path / name
        folder = source / FOLDER
        folder.mkdir(parents=True)
        (image, affine), (label, _) = (read_nifti(crop(real_data, kind, tmp_path)) for kind in ("imagesTr", "labelsTr"))
        turn = orientations.ornt_transform(nib.io_orientation(affine), orientations.axcodes2ornt(codes))
        stored_affine = affine @ orientations.inv_ornt_aff(turn, image.shape)
        stored = [orientations.apply_orientation(volume, turn) for volume in (image, label)]
        if truth:
            (source / "gt_segmentations").mkdir()
            nib.save(nib.Nifti1Image(stored[1], stored_affine), source / "gt_segmentations" / f"{CASE}.nii.gz")
        if reader == "NibabelIOWithReorient":
            ras = nib.as_closest_canonical(nib.Nifti1Image(stored[0], stored_affine))
            ras_label = nib.as_closest_canonical(nib.Nifti1Image(stored[1], stored_affine))
            stored, stored_affine = [np.asanyarray(one.dataobj) for one in (ras, ras_label)], ras.affine
        sizes = nib.affines.voxel_sizes(stored_affine)
        read = [volume[cut:].transpose(2, 1, 0).transpose(forward) for volume in stored]
        shape = target_shape(read[0].shape, sizes[::-1][list(forward)], spacing)
        data = ((resample_image(read[0], shape) - MEAN) / STD).astype(np.float32)[None]
        seg = resample_label(read[1].astype(np.uint8), shape).astype(np.int8)[None]
        seg[:, 0, 0, 0] = -1
        if ending == ".b2nd":
            blosc2.asarray(data, urlpath=str(folder / f"{CASE}.b2nd"), chunks=data.shape, mode="w")
            blosc2.asarray(seg, urlpath=str(folder / f"{CASE}_seg.b2nd"), chunks=seg.shape, mode="w")
        else:
            np.savez_compressed(folder / f"{CASE}.npz", data=data, seg=seg)
        (folder / f"{CASE}.pkl").write_bytes(pickle.dumps(Bomb()))
        plans = {
            "dataset_name": name,
            "plans_name": PLANS,
            "image_reader_writer": reader,
            "transpose_forward": forward,
            "transpose_backward": [int(axis) for axis in np.argsort(forward)],
            "configurations": {
                "2d": {"data_identifier": f"{PLANS}_2d", "spacing": [1.0, 1.0]},
                "3d_fullres": {"data_identifier": folder.name, "spacing": spacing},
                "3d_cascade_fullres": {"inherits_from": "3d_fullres"},
            },
        }
        (source / f"{PLANS}.json").write_text(json.dumps(plans))
        labels = json.loads((real_data / "openkbp" / "dataset.json").read_text())["labels"]
        header = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
        (source / "dataset.json").write_text(json.dumps(header))
        (source / "dataset_fingerprint.json").write_text("{}")
        return source

    return make


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"ending": ".npz"},
        {"forward": (2, 0, 1), "spacing": (4.0, 6.0, 5.0)},
        {"codes": "LPS"},
        {"codes": "PSR", "forward": (1, 0, 2), "ending": ".npz"},
        {"codes": "LIP", "reader": "NibabelIOWithReorient"},
    ],
)
def test_a_real_case_lies_where_its_scan_does(
    layout: dict[str, Any], write: Write, real_data: Path, tmp_path: Path
) -> None:
    raw = read_dataset(write(**layout))
    assert (raw.reader, raw.schemes, raw.channel_names) == ("nnunet_preprocessed", ("none",), ("CT",))
    (case,) = pickle.loads(pickle.dumps(raw)).cases
    assert raw.spacing is not None
    prepared = prepare_case(case, raw.schemes, raw.class_names, raw.spacing)

    scan, truth = (crop(real_data, kind, tmp_path) for kind in ("imagesTr", "labelsTr"))
    nifti = RawCase(CASE, CASE, (nifti_image(scan),), nifti_label(truth))
    expected = prepare_case(nifti, ("ct",), raw.class_names, raw.spacing)
    assert prepared.label is not None and expected.label is not None
    assert prepared.images[0].dtype == np.float16
    np.testing.assert_allclose(prepared.affine, expected.affine, atol=1e-3)
    assert np.mean(prepared.label != expected.label) < 1e-3  # the voxels at -1, which are background
    np.testing.assert_allclose(prepared.images[0] * STD + MEAN, expected.images[0], atol=3)
    assert grid_of(case.images[0]).shape == prepared.images[0].shape  # nothing was resampled again
    stored = case.images[0].read(case.images[0].path)[0].astype(np.float16)
    assert set(prepared.images[0].ravel().tolist()) == set(stored.ravel().tolist())


def test_where_nnunet_cut_the_scan_its_axes_are_still_right(write: Write) -> None:
    whole, cut = (read_dataset(write(codes="LPS", cut=n, name=f"cut{n}")) for n in (0, 10))
    affines = [raw.cases[0].images[0].grid(raw.cases[0].images[0].path)[1] for raw in (whole, cut)]
    assert nib.aff2axcodes(affines[1]) == ("L", "P", "S")
    np.testing.assert_allclose(affines[1][:3, :3], np.diag([-3.0, -5.0, 6.0]), atol=1e-5)
    np.testing.assert_allclose(affines[0][:3, 3], affines[1][:3, 3], atol=3)


def test_without_the_ground_truth_the_axes_are_assumed_and_that_is_said(write: Write) -> None:
    raw = read_dataset(write(truth=False))
    assert raw.remarks[-1] == "1 cases have no gt_segmentations: their axes are taken to point R, A, S"
    _, affine = raw.cases[0].images[0].grid(raw.cases[0].images[0].path)
    np.testing.assert_array_equal(affine, np.diag([3.0, 5.0, 6.0, 1.0]))


def test_configurations_by_name_by_folder_and_inherited(write: Write) -> None:
    source = write()
    for name in ("3d_fullres", FOLDER, "3d_cascade_fullres"):
        assert len(read_dataset(source, options=ReaderConfig(configuration=name)).cases) == 1
    with pytest.raises(UserError, match=r"no preprocessed files of --reader\.configuration 3d_lowres; there are 3d"):
        read_dataset(source, options=ReaderConfig(configuration="3d_lowres"))
    other = json.loads((source / f"{PLANS}.json").read_text())
    other["configurations"]["3d_fullres"]["data_identifier"] = "OtherPlans_3d_fullres"
    (source / "OtherPlans.json").write_text(json.dumps(other))
    (source / FOLDER).rename(source / "OtherPlans_3d_fullres")
    assert len(read_dataset(source).cases) == 1
    (source / FOLDER).symlink_to(source / "OtherPlans_3d_fullres")
    with pytest.raises(UserError, match="may be OtherPlans_3d_fullres, nnUNetPlans_3d_fullres; name one"):
        read_dataset(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_reader_writer": "Tiff3DIO"}, "read by Tiff3DIO"),
        ({"transpose_backward": [0, 1, 1]}, "transpose_backward is"),
        (
            {"configurations": {"3d_fullres": {"data_identifier": FOLDER, "spacing": [1, 1]}}},
            "spacing of",
        ),
        ({"configurations": {"3d_fullres": {"inherits_from": "3d_fullres"}}}, "is not understood"),
        ({"configurations": {"3d_fullres": {"inherits_from": "lost"}}}, "lacks 'lost'"),
    ],
)
def test_plans_that_are_not_understood_are_refused(change: dict[str, Any], message: str, write: Write) -> None:
    source = write()
    path = source / f"{PLANS}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=rf"nnUNetPlans\.json.*{message}"):
        read_dataset(source)


def test_broken_files_are_named(write: Write, tmp_path: Path) -> None:
    source = write()
    folder = source / FOLDER
    path = folder / f"{CASE}.b2nd"
    content = path.read_bytes()
    raw = read_dataset(source)

    def prepare() -> None:
        prepare_case(raw.cases[0], raw.schemes, raw.class_names, raw.spacing)  # type: ignore[arg-type]

    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{CASE}\.b2nd cannot be read"):
        prepare()
    path.write_bytes(content)
    blosc2.asarray(np.full((2, 4, 4, 4), 1.0, np.float32), urlpath=str(path), mode="w")
    with pytest.raises(UserError, match=rf"{CASE}\.b2nd has 2 channels, dataset\.json 1"):
        prepare()
    blosc2.asarray(np.full((1, 4, 4, 4), np.nan, np.float32), urlpath=str(path), mode="w")
    with pytest.raises(UserError, match=rf"{CASE}\.b2nd has 64 voxels that are NaN"):
        prepare()
    path.write_bytes(content)
    (folder / f"{CASE}_seg.b2nd").unlink()
    with pytest.raises(UserError, match=rf"{CASE}_seg\.b2nd is missing"):
        prepare()


def test_python_objects_in_an_npz_are_refused(write: Write) -> None:
    source = write(ending=".npz")
    path = source / FOLDER / f"{CASE}.npz"
    np.savez(path, data=np.array([[[[Bomb()]]]], dtype=object), seg=np.zeros((1, 1, 1, 1)), allow_pickle=True)
    raw = read_dataset(source)
    with pytest.raises(UserError, match=rf"{CASE}\.npz cannot be read \(Object arrays cannot be loaded"):
        prepare_case(raw.cases[0], raw.schemes, raw.class_names, (3, 3, 3))
