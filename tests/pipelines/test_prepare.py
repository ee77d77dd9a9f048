from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.shards import PreparedDataset
from pipelines.prepare import main


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
    assert main(argv) == 1
    shown = capsys.readouterr()
    assert "cut off" in shown.err.replace("\n", " ")
    assert "4 (4 now), 1 skipped" in shown.out
    assert sorted(PreparedDataset.open(str(out)).records) == list("abde")

    before = (out / "cases" / "a.parquet").stat().st_mtime_ns
    (source / "c.nii.gz").write_bytes((source / "d.nii.gz").read_bytes())
    assert main(argv) == 0
    assert "5 (1 now), 0 skipped" in capsys.readouterr().out
    assert json.loads((out / "skipped.json").read_text()) == []
    assert (out / "cases" / "a.parquet").stat().st_mtime_ns == before

    assert main([*argv, "--preprocess.spacing", "2", "2", "2"]) == 1
    assert "preprocess.spacing" in capsys.readouterr().err
    assert sorted(PreparedDataset.open(str(out)).records) == list("abcde")


@pytest.mark.ray
def test_when_no_case_comes_through(tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_session: None) -> None:
    source = tmp_path / "scans"
    source.mkdir()
    voxels = np.full((8, 8, 8), np.nan, np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), source / "a.nii.gz")
    assert main(["--source", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "none of the 1 cases" in capsys.readouterr().err
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_the_dry_run_starts_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["--source", str(source), "--out", str(out), "--dry-run"]) == 0
    assert "CT as ct" in capsys.readouterr().out
    assert not out.exists()


def test_folders_that_cannot_be(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for folders, message in (
        ((tmp_path / "nowhere", tmp_path / "out"), "is not a folder"),
        ((tmp_path / "empty", tmp_path / "out"), "holds no scans"),
        ((source, source / "out"), "lies inside the source"),
        ((source, tmp_path / "file"), "cannot be made a folder"),
    ):
        assert main(["--source", str(folders[0]), "--out", str(folders[1])]) == 1
        assert message in capsys.readouterr().err.replace("\n", " ")
