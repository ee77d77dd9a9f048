"""The four data sets of the paper through the whole chain, on the real stand-ins, with tiny networks.

A stand-in has one to four scans, so each network is scored on the scans that it was trained on, and the table says so.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import nibabel as nib
import pytest

from anatomask.cli.main import main
from anatomask.recipes import TARGETS
from anatomask.weights.files import find_weights, read_header

SHORT = ["--training.epochs", "2", "--training.steps-per-epoch", "2", "--training.validate-every", "2"]
CROP = ["--loader.patch-size", "32", "32", "32"]
BASE = ["--network.base", "4"]
STARTS = {
    "totalsegmentator": "pretrained",
    "flare22": "totalsegmentator",
    "amos22": "totalsegmentator",
    "autopet2": "totalsegmentator",
    "autopet2-published": "published",
    "flare22-scratch": "scratch",
}
"""What the network of each run starts from: the paper's path, published weights, and nothing."""
LARGE = {"totalsegmentator": ("6", "6", "6"), "flare22": ("6", "6", "6"), "autopet2": ("2", "2", "4")}
"""Voxel sizes in mm of three data sets, larger than their own, which take hundreds of windows for a case."""
SCANS = {
    "totalsegmentator": {"s0001": "Totalsegmentator_dataset/s0001/ct.nii.gz"},
    "flare22": {"FLARE22_Tr_0001": "images/FLARE22_Tr_0001_0000.nii.gz"},
    "amos22": {case: f"amos22/imagesTr/{case}.nii.gz" for case in ("amos_0001", "amos_0507")},
    "autopet2": {
        f"PETCT_sts_{patient}_study_1": f"FDG-PET-CT-Lesions/PETCT_sts_{patient}/study_1/CTres.nii.gz"
        for patient in ("002", "003")
    },
}
"""Scans of each data set, a CT and an MR of AMOS22 and two of AutoPET II's four, by case."""


def run(*argv: object) -> None:
    """Run a command, which must succeed."""
    assert main(list(map(str, argv))) == 0, argv


def finetune(name: str, runs: Path) -> None:
    """Finetune, watched on the cases that are trained on, and score on them."""
    target, init = name.partition("-")[0], STARTS[name]
    common = ["--target", target, "--recipe", "tiny", *SHORT, *CROP, "--runs", runs]
    start = BASE if init == "scratch" else ["--init", runs / init]
    run("finetune", *common, "--data", runs.parent / target, "--name", name, "--val-split", "train", *start)
    run("evaluate", "--recipe", "tiny", "--run", runs / name, "--split", "train")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_four_data_sets(
    tmp_path: Path, real_data: Path, ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    for target, scans in SCANS.items():
        (tmp_path / "cases.txt").write_text("\n".join(scans))
        settings = ["--target", target, "--recipe", "tiny", "--reader.cases", tmp_path / "cases.txt"]
        settings += ["--preprocess.spacing", *LARGE[target]] if target in LARGE else []
        folders = ["--source", real_data / target, "--out", tmp_path / target]
        run("prepare", *settings, *folders, "--split.fractions", "1", "0", "0")
    runs = tmp_path / "runs"
    common = ["--target", "totalsegmentator", "--recipe", "tiny", *SHORT, *CROP, *BASE, "--runs", runs]
    run("pretrain", *common, "--data", tmp_path / "totalsegmentator", "--name", "pretrained")
    finetune("totalsegmentator", runs)
    run("export-weights", runs / "totalsegmentator", "--format", "stunet", "--output", tmp_path / "base.model")
    run("import-weights", tmp_path / "base.model", "--output", runs / "published", "--dataset", "TotalSegmentator")
    for name in list(STARTS)[1:]:
        finetune(name, runs)
    capfd.readouterr()
    run("report", "--runs", *(runs / name for name in STARTS), "--out", tmp_path / "report")

    table = (tmp_path / "report/table.md").read_text()
    printed = " ".join(capfd.readouterr().out.split())
    for title in (TARGETS[target].title for target in SCANS):
        assert f"{title}: train is for training on; its scores say nothing of new scans." in table
        assert f"{title}: train is for training on" in printed
    for name, init in STARTS.items():
        check(name, init, runs, real_data)


def check(name: str, init: str, runs: Path, real_data: Path) -> None:
    """What a run leaves: where it started, scores of every class of every case, label maps on the scans' own grids."""
    target, folder = name.partition("-")[0], runs / name
    header = read_header(find_weights(folder))
    assert header["initialisation"]["run"] == (None if init == "scratch" else str(runs / init))
    assert header["architecture"]["in_channels"] == (2 if target == "autopet2" else 1)
    assert header["train_cases"] == len(SCANS[target])
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["split"], summary["cases"], summary["failed"]) == ("train", len(SCANS[target]), {})
    assert 0 <= summary["dsc"]["mean"] <= 1 and 0 <= summary["nsd"]["mean"] <= 1
    assert {"nsd_1mm", "nsd_2mm"} & summary.keys() == ({"nsd_1mm", "nsd_2mm"} if target == "amos22" else set())
    rows = list(csv.DictReader((folder / "cases.csv").read_text().splitlines()))
    assert len(rows) == TARGETS[target].classes * len(SCANS[target])
    assert all(re.fullmatch(r"\d+", row["lesions"]) for row in rows) == (target == "autopet2")
    for case, file in SCANS[target].items():
        assert any(row["case"] == case and row["dsc"] for row in rows)
        prediction = nib.Nifti1Image.from_filename(folder / "predictions" / f"{case}.nii.gz")
        scan = nib.Nifti1Image.from_filename(real_data / target / file)
        assert prediction.shape == scan.shape
        assert abs(prediction.affine - scan.affine).max() < 1e-4
