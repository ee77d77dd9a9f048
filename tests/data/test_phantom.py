"""The phantom: seeded, varied, labelled, dense as a body is, and laid out as TotalSegmentator v1."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.datasets.totalsegmentator import class_names, merge_masks
from anatomask.data.phantom import FOLDER, Scan, make_scan, write_phantom
from anatomask.data.settings import PhantomConfig
from anatomask.errors import UserError

IDS = {name: number for number, name in class_names().items()}
CONFIG = PhantomConfig(out="unused", size=64, spacing=3.0)


@pytest.fixture(scope="module")
def scans() -> list[Scan]:
    return [make_scan(CONFIG, index) for index in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom")
    assert list(write_phantom(PhantomConfig(out=str(out), cases=3, size=40, spacing=4.0))) == [
        "s0000",
        "s0001",
        "s0002",
    ]
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_seed_gives_the_same_files_and_another_seed_does_not(folder: Path, tmp_path: Path) -> None:
    first = contents(folder)
    assert len(list(write_phantom(PhantomConfig(out=str(tmp_path), cases=3, size=40, spacing=4.0)))) == 3
    assert contents(tmp_path) == first
    other = make_scan(PhantomConfig(out="unused", size=40, spacing=4.0, seed=1), 0)
    image = nib.Nifti1Image.from_filename(folder / FOLDER / "s0000/ct.nii.gz")
    assert other.hu.shape != image.shape or not np.array_equal(other.hu, np.asarray(image.dataobj))


def test_cases_differ_in_grid_spacing_orientation_and_anisotropy(scans: list[Scan]) -> None:
    zooms = [nib.affines.voxel_sizes(scan.affine) for scan in scans]
    assert len({scan.hu.shape for scan in scans}) == len(scans)
    assert len({tuple(np.round(z, 2)) for z in zooms}) == len(scans)
    assert all(z.min() >= 1.5 and z.max() <= 5.2 for z in zooms)
    assert max(z.max() / z.min() for z in zooms) > 1.2
    assert len({nib.aff2axcodes(scan.affine) for scan in scans}) >= 3


def test_anatomy_is_where_the_affine_says(scans: list[Scan]) -> None:
    """Liver right of spleen, aorta in front of the spine, kidneys paired, whatever the order of the axes."""
    for scan in scans:

        def centre(name: str, scan: Scan = scan) -> np.ndarray:
            voxels = np.argwhere(scan.label == IDS[name])
            assert len(voxels), name
            return nib.affines.apply_affine(scan.affine, voxels.mean(0))

        assert centre("liver")[0] > centre("spleen")[0] + 50
        assert centre("kidney_right")[0] > centre("kidney_left")[0] + 50
        assert centre("aorta")[1] > centre("vertebrae_L1")[1] + 5
        assert centre("vertebrae_T12")[2] > centre("vertebrae_L1")[2] > centre("vertebrae_L2")[2]


def test_density_is_that_of_ct(scans: list[Scan]) -> None:
    def median(scan: Scan, name: str) -> float:
        return float(np.median(scan.hu[scan.label == IDS[name]]))

    for scan in scans:
        assert scan.hu.dtype == np.int16 and scan.hu.min() >= -1024 and scan.hu.max() <= 3071
        assert 40 < median(scan, "liver") < 140
        assert 30 < median(scan, "spleen") < 150
        assert 0 < median(scan, "kidney_left") < 230
        assert 10 < median(scan, "aorta") < 280
        assert 30 < median(scan, "autochthon_left") < 80
        assert 130 < median(scan, "vertebrae_L1") < 600
        assert (scan.hu < -900).mean() > 0.1, "there is air around the body"
    lungs = [
        median(scan, "lung_lower_lobe_right") for scan in scans if (scan.label == IDS["lung_lower_lobe_right"]).any()
    ]
    assert lungs and all(-950 < hu < -650 for hu in lungs)
    doses = [median(scan, "aorta") - median(scan, "autochthon_left") for scan in scans]
    assert min(doses) < 30 and max(doses) > 60, "some scans have contrast medium, some have none"


def test_edges_have_partial_volume() -> None:
    """Between lung and liver lie voxels of every density; a hard edge would leave the gap empty."""
    scan = make_scan(PhantomConfig(out="unused", size=96, spacing=3.0), 0)
    share = ((scan.hu > -600) & (scan.hu < -250)).mean()
    assert 0.005 < share < 0.15


def test_layout_is_that_of_totalsegmentator(folder: Path) -> None:
    with (folder / FOLDER / "meta.csv").open() as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    assert [row["image_id"] for row in rows] == ["s0000", "s0001", "s0002"]
    assert sorted(row["split"] for row in rows) == ["test", "train", "val"]
    for row in rows:
        case = folder / FOLDER / row["image_id"]
        image = nib.Nifti1Image.from_filename(case / "ct.nii.gz")
        total = np.zeros(image.shape, dtype=int)
        for name in IDS:
            mask = nib.Nifti1Image.from_filename(case / "segmentations" / f"{name}.nii.gz")
            assert mask.get_data_dtype() == np.uint8 and np.array_equal(mask.affine, image.affine)
            total += np.asarray(mask.dataobj)
        assert total.max() == 1, "labels are disjoint"
        merged, affine = merge_masks(case / "segmentations")
        assert np.array_equal(merged > 0, total > 0) and np.allclose(affine, image.affine)
        assert len(np.unique(merged)) > 30


def test_it_goes_on_where_it_was_and_begins_anew_when_told(folder: Path, tmp_path: Path) -> None:
    config = PhantomConfig(out=str(tmp_path), cases=3, size=40, spacing=4.0)
    next(write_phantom(config))
    (tmp_path / FOLDER / "s0000/ct.nii.gz").write_bytes(b"kept")
    list(write_phantom(config))
    assert (tmp_path / FOLDER / "s0000/ct.nii.gz").read_bytes() == b"kept"
    list(write_phantom(config, overwrite=True))
    assert contents(tmp_path) == contents(folder)


def test_other_settings_and_foreign_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    with pytest.raises(UserError, match=r"seed is 0 there, 7 here.*--overwrite"):
        write_phantom(PhantomConfig(out=str(folder), cases=3, size=40, spacing=4.0, seed=7))
    assert contents(folder) == before
    real = tmp_path / FOLDER / "s0001/ct.nii.gz"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"a patient")
    with pytest.raises(UserError, match="is there, but no phantom wrote it; choose another --out"):
        write_phantom(PhantomConfig(out=str(tmp_path)), overwrite=True)
    assert real.read_bytes() == b"a patient"


@pytest.mark.parametrize(("field", "value"), [("cases", 0), ("size", 8), ("spacing", -1.0), ("seed", -1)])
def test_values_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        PhantomConfig(out="x", **{field: value})


@pytest.mark.parametrize("text", ['{"cut', "[]"])
def test_damaged_settings_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "phantom.json").write_text(text)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"phantom\.json is damaged.*choose another --out"):
            write_phantom(PhantomConfig(out=str(tmp_path)), overwrite=overwrite)


@pytest.mark.parametrize("name", ["s0000/ct.nii.gz.bak", "mine/ct.nii.gz", "s0000/segmentations/tumour.nii.gz"])
def test_overwrite_deletes_nothing_where_other_files_lie_among_the_phantoms(name: str, tmp_path: Path) -> None:
    config = PhantomConfig(out=str(tmp_path), cases=1, size=32, spacing=6.0)
    list(write_phantom(config))
    (tmp_path / FOLDER / name).parent.mkdir(exist_ok=True)
    (tmp_path / FOLDER / name).write_text("mine")
    written = contents(tmp_path)
    with pytest.raises(UserError, match=r"is of no phantom; move it elsewhere"):
        write_phantom(config, overwrite=True)
    assert contents(tmp_path) == written


def test_a_real_data_set_beside_settings_of_something_else_stays(tmp_path: Path) -> None:
    """Any file named phantom.json let --overwrite delete TotalSegmentator's scans."""
    real = tmp_path / FOLDER / "s0001/ct.nii.gz"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"a patient")
    (tmp_path / "phantom.json").write_text('{"phantom": "water"}')
    with pytest.raises(UserError, match=r"no phantom wrote it .*; choose another --out"):
        write_phantom(PhantomConfig(out=str(tmp_path)), overwrite=True)
    assert real.read_bytes() == b"a patient"
