"""`anatomask evaluate` and `anatomask report` as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from anatomask.cli.main import main
from anatomask.data.shards import PreparedDataset
from anatomask.evaluation.metrics import score_classes
from anatomask.evaluation.results import from_csv
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig
from anatomask.weights.files import describe_architecture, write_weights

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def dataset(make_dataset: Callable[..., PreparedDataset], blobs: Callable[..., np.ndarray]) -> PreparedDataset:
    labels = {"c": blobs((33, 20, 24)), "a": blobs((34, 40, 21)), "b": blobs((20, 30, 31))}
    labels["a"][labels["a"] == 2] = 0  # a class that is absent from one case
    return make_dataset(labels, (2.0, 2.0, 3.0), "LPS")


def write_run(folder: Path, dataset: PreparedDataset, method: str = "AnatoMask", seed: int = 0) -> Path:
    """A finetuning run's folder, with weights that no training has touched."""
    torch.manual_seed(seed)
    config = STUNetConfig(base=2)
    header = {
        "format": 1,
        "kind": "segmentation",
        "architecture": describe_architecture(config, 2),
        "patch_size": [32, 32, 32],
        "mirror_axes": [0, 1, 2],
        "spacing": list(dataset.spacing),
        "class_names": {"1": "liver", "2": "spleen"},
        "fingerprint": dataset.fingerprint.to_dict(),
        "dataset": dataset.name,
        "data": dataset.path,
        "loaded": {"tensors": 50, "of_tensors": 98, "parameters": 1000, "of_parameters": 4000},
        "train_fraction": 0.5,
        "initialisation": {"method": method, "run": "runs/pretrained/checkpoints/step_1"},
    }
    write_weights(folder / "checkpoints/step_1", STUNet(config, 2).state_dict(), header)
    (folder / "checkpoints/index.json").write_text(json.dumps({"last": "step_1", "best": "step_1", "step": 1}))
    return folder


def arguments(run: Path, *more: str) -> list[str]:
    return ["--run", str(run), "--inference.no-mirror", "--inference.overlap", "0.25", *more]


def test_a_broken_case_is_listed_and_only_it_is_redone(
    dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "runs/net", dataset)
    broken = Path(dataset.path) / "originals/b.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    assert main(["evaluate", *arguments(run)]) == 1
    assert "originals/b.nii.gz" in capsys.readouterr().err
    summary = json.loads((run / "summary.json").read_text())
    assert summary["cases"] == 2
    assert list(summary["failed"]) == ["b"]
    finished = {path.name: path.stat().st_mtime_ns for path in (run / "predictions").iterdir()}
    assert sorted(finished) == ["a.csv", "a.nii.gz", "c.csv", "c.nii.gz"]

    broken.write_bytes(whole)
    assert main(["evaluate", *arguments(run)]) == 0
    for name, time in finished.items():
        assert (run / "predictions" / name).stat().st_mtime_ns == time
    table = (run / "cases.csv").read_text()
    rows = from_csv(table, "cases.csv")
    assert [(row.case, row.class_id) for row in rows] == [(case, c) for case in "abc" for c in (1, 2)]
    for case in "abc":
        prediction = nib.Nifti1Image.from_filename(run / f"predictions/{case}.nii.gz")
        truth = dataset.original_label(case)
        np.testing.assert_allclose(prediction.affine, truth.affine, atol=1e-4)
        spacing = nib.affines.voxel_sizes(truth.affine)
        expected = score_classes(
            np.asarray(prediction.dataobj), np.asarray(truth.dataobj), spacing, dataset.nsd_tolerance
        )
        for row in rows:
            if row.case == case:
                score = expected[row.class_id]
                assert (row.dsc, row.nsd) == pytest.approx((score.dsc, score.nsd), abs=1e-6, nan_ok=True)
                assert row.hd95_mm == pytest.approx(score.hd95_mm, abs=1e-6, nan_ok=True)
                assert row.voxels == score.voxels
                assert row.volume_ml == pytest.approx(score.volume_ml, abs=1e-6)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["cases"], summary["failed"], summary["classes"]["spleen"]["cases"]) == (3, {}, 2)
    assert (summary["method"], summary["initialisation"], summary["train_fraction"]) == ("AnatoMask", "pretrained", 0.5)
    assert summary["loaded"] == {"tensors": 50, "of_tensors": 98, "parameters": 1000, "of_parameters": 4000}
    assert summary["nsd_tolerance_mm"] == {"liver": 3.0, "spleen": 3.0}

    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), "--inference.no-mirror", "--inference.overlap", "0.5"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "inference.overlap" in error and "--overwrite" in error
    assert (run / "cases.csv").read_text() == table


def test_weights_that_are_not_finite_are_refused_once(
    dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "runs/nan", dataset)
    network = STUNet(STUNetConfig(base=2), 2)
    torch.nn.init.constant_(next(network.parameters()), float("nan"))
    header = json.loads((run / "checkpoints/step_1/model.json").read_text())
    write_weights(run / "checkpoints/step_1", network.state_dict(), header)
    assert main(["evaluate", *arguments(run)]) == 1
    assert capsys.readouterr().err.count("not finite") == 1
    assert not (run / "summary.json").exists()


def test_runs_become_a_table_and_a_figure(
    dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        write_run(tmp_path / "runs/first", dataset),
        write_run(tmp_path / "runs/second", dataset, method="scratch", seed=1),
    ]
    for run in runs:
        assert main(["evaluate", *arguments(run)]) == 0
    out = tmp_path / "report"
    capsys.readouterr()
    assert main(["report", "--runs", *map(str, runs), "--out", str(out), "--cases", "2"]) == 0
    printed = capsys.readouterr().out
    assert "AnatoMask" in printed and "scratch" in printed
    assert max(map(len, printed.split(str(out))[0].splitlines())) <= 80
    written = {"differences-data.png", "overlays-data.png", "report.html", "table.csv", "table.md"}
    assert {path.name for path in out.iterdir()} == written
    assert (out / "table.md").read_text().count("| data |") == 2

    (runs[1] / "predictions/a.nii.gz").unlink()
    assert main(["report", "--runs", *map(str, runs), "--out", str(out), "--cases", "3"]) == 0
    assert "No figure of data" in capsys.readouterr().out


def test_what_cannot_be_evaluated_is_refused_before_anything_is_written(
    dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "runs/net", dataset)
    missing = tmp_path / "runs/none"
    for bad, reason in (
        (arguments(run, "--split", "val"), "--split may be test"),
        (arguments(run, "--data", str(tmp_path / "nowhere")), "nowhere: there is no such file or folder"),
        (arguments(missing), "runs/none"),
        (arguments(run, "--cluster.threads", "9999"), "cluster.threads: no node has 9999 CPUs"),
    ):
        assert main(["evaluate", *bad]) == 1
        assert reason in " ".join(capsys.readouterr().err.split())
    assert not (run / "cases.csv").exists()
    assert main(["report", "--runs", str(run), "--out", str(tmp_path / "report")]) == 1
    assert "summary.json is missing" in capsys.readouterr().err.replace("\n", "")
    assert not (tmp_path / "report").exists()


def test_the_plan_starts_nothing(dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "runs/net", dataset)
    before = sorted(run.rglob("*"))
    assert main(["evaluate", *arguments(run, "--dry-run")]) == 0
    printed = capsys.readouterr().out
    assert "3, of which 0 are finished" in printed
    assert sorted(run.rglob("*")) == before
