from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.cli.main import main as anatomask
from anatomask.cluster_shares import memory_of_tasks
from anatomask.data.memory import bytes_to_prepare, in_units
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.stages import mapping


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five scans of which one is cut off."""
    folder = tmp_path / "scans"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcde":
        voxels = rng.integers(-1000, 1000, (20, 20, 20)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"{name}.nii.gz")
    path = folder / "c.nii.gz"
    path.write_bytes(path.read_bytes()[:1000])
    return folder


@pytest.mark.ray
def test_good_cases_go_through_and_the_same_command_goes_on(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_session: None
) -> None:
    out = tmp_path / "out"
    argv = ["--source", str(source), "--out", str(out)]
    assert anatomask(["prepare", *argv]) == 1
    shown = capsys.readouterr()
    assert "cut off" in shown.err.replace("\n", " ")
    assert "4 (4 now), 1 skipped" in shown.out
    assert sorted(PreparedDataset.open(str(out)).records) == list("abde")

    before = (out / "cases" / "a.parquet").stat().st_mtime_ns
    (source / "c.nii.gz").write_bytes((source / "d.nii.gz").read_bytes())
    assert anatomask(["prepare", *argv]) == 0
    assert "5 (1 now), 0 skipped" in capsys.readouterr().out
    assert json.loads((out / "skipped.json").read_text()) == []
    assert (out / "cases" / "a.parquet").stat().st_mtime_ns == before

    assert anatomask(["prepare", *argv, "--preprocess.spacing", "2", "2", "2"]) == 1
    assert "preprocess.spacing" in capsys.readouterr().err
    assert sorted(PreparedDataset.open(str(out)).records) == list("abcde")


@pytest.mark.ray
def test_large_scans_come_last_and_those_without_sense_are_skipped(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ray_session: None,
) -> None:
    voxels = np.random.default_rng(1).integers(-1000, 1000, (40, 40, 40)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), source / "c.nii.gz")
    nib.save(nib.Nifti1Image(voxels, np.diag([1e6, 1e6, 1e6, 1.0])), source / "micrometres.nii.gz")
    share = bytes_to_prepare((20, 20, 20), (20, 20, 20), 1)
    _, most = memory_of_tasks(1)
    monkeypatch.setattr(mapping, "memory_of_tasks", lambda tasks: (share, most))
    out = tmp_path / "out"
    assert anatomask(["prepare", "--source", str(source), "--out", str(out)]) == 1
    assert "5 (5 now), 1 skipped" in capsys.readouterr().out
    (skipped,) = json.loads((out / "skipped.json").read_text())
    assert skipped["case"] == "micrometres"
    assert f"iB of memory, and {in_units(most)} are there; correct the voxel size" in skipped["reason"]
    assert PreparedDataset.open(str(out)).records["c"].original_shape == (40, 40, 40)


@pytest.mark.ray
def test_when_no_case_comes_through(tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_session: None) -> None:
    source = tmp_path / "scans"
    source.mkdir()
    voxels = np.full((8, 8, 8), np.nan, np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), source / "a.nii.gz")
    assert anatomask(["prepare", "--source", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "none of the 1 cases" in capsys.readouterr().err
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_the_dry_run_starts_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert anatomask(["prepare", "--source", str(source), "--out", str(out), "--dry-run"]) == 0
    assert "CT as ct" in capsys.readouterr().out
    assert not out.exists()


def test_folders_that_cannot_be(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for folders, message in (
        ((tmp_path / "nowhere", tmp_path / "out"), "no such file or folder"),
        ((tmp_path / "empty", tmp_path / "out"), "holds no scans"),
        ((source, source / "out"), "lies inside the source"),
        ((source, source), "lies inside the source"),
        ((source, tmp_path), "lies inside --out"),
        ((source, tmp_path / "file"), "cannot be made a folder"),
    ):
        assert anatomask(["prepare", "--source", str(folders[0]), "--out", str(folders[1])]) == 1
        assert message in capsys.readouterr().err.replace("\n", " ")


def test_an_address_is_no_folder_below_the_source(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(source)
    assert anatomask(["prepare", "--source", str(source), "--out", f"file://{tmp_path}/out", "--dry-run"]) == 0
    assert f"file://{tmp_path}/out"[:40] in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["totalsegmentator", "folder"])
def test_the_spacing_is_the_users_else_the_data_sets_else_the_recipes(
    layout: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if layout == "totalsegmentator":
        (tmp_path / "ts" / "s1" / "segmentations").mkdir(parents=True)
        shutil.copy(source / "a.nii.gz", tmp_path / "ts" / "s1" / "ct.nii.gz")
        source = tmp_path / "ts"
    argv = ["--recipe", "tiny", "--source", str(source), "--out", str(tmp_path / "out"), "--dry-run"]
    own = {"totalsegmentator": "1.5 × 1.5 × 1.5 mm", "folder": "7 × 7 × 7 mm"}[layout]
    for extra, expected in (([], own), (["--preprocess.spacing", "3", "2", "5"], "3 × 2 × 5 mm")):
        assert anatomask(["prepare", *argv, *extra]) == 0
        assert expected in capsys.readouterr().out


@pytest.mark.ray
def test_every_defect_of_a_scan_is_listed_and_the_good_ones_go_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_session: None
) -> None:
    source, out = tmp_path / "Dataset007_Bad", tmp_path / "out"
    (source / "imagesTr").mkdir(parents=True)
    (source / "labelsTr").mkdir()
    header = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (source / "dataset.json").write_text(json.dumps(header))
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 1000, (20, 18, 16)).astype(np.int16)
    label = (image > 0).astype(np.uint8)
    nan = image.astype(np.float32)
    nan[0, 0, :2] = np.nan
    cases = {
        "good1": (image, label), "good2": (image + 1, label), "cut": (image, label), "shape": (image, label[1:]),
        "value": (image, label * 9), "time": (np.stack([image] * 2, -1), label), "nan": (nan, label),
    }  # fmt: skip
    for case, (voxels, truth) in cases.items():
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), source / "imagesTr" / f"{case}_0000.nii.gz")
        nib.save(nib.Nifti1Image(truth, np.eye(4)), source / "labelsTr" / f"{case}.nii.gz")
    cut = source / "imagesTr" / "cut_0000.nii.gz"
    cut.write_bytes(cut.read_bytes()[:2000])

    assert (
        anatomask(["prepare", "--source", str(source), "--out", str(out), "--preprocess.spacing", "1", "1", "1"]) == 1
    )
    shown = capsys.readouterr()
    told = "".join(character for character in shown.err if not character.isspace() and character not in "│┃")
    for message in (
        "cut_0000.nii.gz is damaged or cut off",
        "shape.nii.gz has shape (19, 18, 16)",
        "value.nii.gz holds 9, which the data set does not list",
        "time_0000.nii.gz has shape (20, 18, 16, 2)",
        "nan_0000.nii.gz has 2 voxels that are NaN",
    ):
        assert message.replace(" ", "") in told
    assert "Traceback" not in shown.err + shown.out
    dataset = PreparedDataset.open(str(out))
    assert sorted(dataset.records) == ["good1", "good2"]
    np.testing.assert_array_equal(dataset.read_volume("good1", label=False)[0][0], image)
    skipped = json.loads((out / "skipped.json").read_text())
    assert sorted(row["case"] for row in skipped) == ["cut", "nan", "shape", "time", "value"]


@pytest.mark.parametrize(("code", "message"), [(errno.EROFS, "is read-only"), (errno.ENOSPC, "no space is left")])
def test_a_folder_that_cannot_be_written_is_named(
    code: int,
    message: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(self: Storage, path: str, data: bytes) -> None:
        raise OSError(code, os.strerror(code), self.show(path))

    monkeypatch.setattr(Storage, "write", refuse)
    for verb, more in (("prepare", ["--source", str(source)]), ("phantom", ["--cases", "1"])):
        assert anatomask([verb, *more, "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr()
        assert f"anatomask {verb}: {tmp_path / 'out'}" in shown.err and message in shown.err
        assert "Traceback" not in shown.err


def test_a_class_that_is_named_twice_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("preprocess: {classes: [liver, liver]}")
    assert anatomask(["prepare", "--config", str(file), "--source", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "preprocess.classes names liver twice" in capsys.readouterr().err


def test_options_of_the_reader_and_schemes_reach_the_plan(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--dry-run"]
    amos = ["prepare", "--source", str(real_data / "amos22"), *out]
    assert anatomask([*amos, "--reader.modality", "ct", "--preprocess.normalisation", "ct"]) == 0
    shown = capsys.readouterr().out
    assert "CT as ct" in shown and "1, of which 1" in shown
    assert anatomask([*amos, "--reader.positives-only"]) == 1
    assert "does not apply to amos22, only to autopet2" in capsys.readouterr().err
    pet = ["prepare", "--source", str(real_data / "autopet2"), *out]
    assert anatomask([*pet, "--reader.positives-only", "--preprocess.normalisation", "ct", "zscore"]) == 0
    shown = capsys.readouterr().out
    assert "CTres as ct, SUV as zscore" in shown and "0 studies without lesions left out" in shown
