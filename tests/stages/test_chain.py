"""The main job end to end: raw scans in, a pretrained and finetuned network and a scored table out."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from anatomask.cli.main import main
from anatomask.files import exclusive_lock
from anatomask.weights.files import find_weights, read_header, read_weights

SHORT = ["--training.epochs", "2", "--training.steps-per-epoch", "2", "--training.validate-every", "2"]
SMALL = ["--recipe", "tiny", "--loader.patch-size", "32", "32", "32", "--network.base", "4"]


ANATOMASK = ("--method.decoder-width", "16", "--method.r0", "0.5")
MOCO = ("--method", "moco", "--method.hidden", "32", "--method.projection", "16", "--method.queue", "4")
MAE = ("--method", "mae")
BYOL = ("--method", "byol", "--method.hidden", "32", "--method.projection", "16")
SWIN = (
    *("--network", "swin_unetr", "--network.feature-size", "6", "--network.depths", "1", "1", "1", "1"),
    *("--loader.patch-size", "64", "64", "64"),
)
UNETR = (
    *("--network", "unetr", "--network.patch-size", "64", "64", "64", "--loader.patch-size", "64", "64", "64"),
    *("--network.width", "24", "--network.depth", "4"),
)
ZHOU = ("--method", "selfmedmae", "--method.decoder-depth", "1")
MIT = (
    *("--network", "unimiss", "--network.patch-size", "64", "64", "32", "--loader.patch-size", "64", "64", "32"),
    *("--network.widths", "4", "8", "16", "32"),
)
XIE = ("--method", "unimiss", "--method.outputs", "64", "--method.slice-epochs", "1")
TANG = ("--method", "swinunetr_ssl", "--optimiser.warmup-updates", "2")


def chain(
    data: str, runs: Path, out: Path, method: Sequence[str] = ANATOMASK, network: Sequence[str] = SMALL[2:]
) -> None:
    """pretrain, finetune, evaluate, report; each must succeed."""
    common = [*SMALL[:2], *network, *SHORT, "--data", data, "--runs", str(runs)]
    assert main(["pretrain", *common, "--name", "pretrained", *method]) == 0
    assert main(["finetune", *common, "--name", "finetuned", "--init", str(runs / "pretrained")]) == 0
    assert main(["evaluate", "--recipe", "tiny", "--run", str(runs / "finetuned")]) == 0
    assert main(["report", "--runs", str(runs / "finetuned"), "--out", str(out)]) == 0


def check_run(run: Path) -> None:
    """Everything that a training run leaves."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["training"]["epochs"] == 2
    assert config.get("method", {}).get("sparse_backend") in (None, "blocks")  # finetuning has none
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"]
    assert list(run.glob("events.*"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
    assert find_weights(run).name == "step_00000004"


def check_results(
    runs: Path, out: Path, cases: list[str], originals: dict[str, Path], method: str = "AnatoMask"
) -> None:
    """Predictions lie on the grid of their sources, and the table says what `summary.json` says."""
    finetuned = runs / "finetuned"
    summary = json.loads((finetuned / "summary.json").read_text())
    assert summary["cases"] == len(cases)
    rows = list(csv.DictReader((finetuned / "cases.csv").read_text().splitlines()))
    scored = [[float(row["dsc"]) for row in rows if row["case"] == case and row["dsc"]] for case in cases]
    assert summary["dsc"]["mean"] == pytest.approx(np.mean([np.mean(values) for values in scored]))
    for case in cases:
        prediction = nib.Nifti1Image.from_filename(finetuned / "predictions" / f"{case}.nii.gz")
        source = nib.Nifti1Image.from_filename(originals[case])
        assert prediction.shape == source.shape
        assert np.allclose(prediction.affine, source.affine)
    table = (out / "table.md").read_text()
    assert method in table
    assert f"{100 * summary['dsc']['mean']:.1f}" in table
    assert list(out.glob("*.png"))


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_phantoms(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    ray_session: None,
    open_to_others: set[int],
) -> None:
    monkeypatch.chdir(tmp_path)  # a user's paths are relative, and Ray's workers run elsewhere
    scans, shards, runs, out = (Path(name) for name in ("scans", "shards", "runs", "report"))
    assert main(["phantom", "--out", str(scans), "--cases", "4", "--size", "48", "--spacing", "6"]) == 0
    organs = ["liver", "spleen", "aorta"]
    prepare = ["--preprocess.spacing", "8", "8", "8", "--preprocess.classes", *organs]
    assert main(["prepare", "--recipe", "tiny", "--source", str(scans), "--out", str(shards), *prepare]) == 0
    chain(str(shards), runs, out)
    check_run(runs / "pretrained")
    check_run(runs / "finetuned")
    test = json.loads((shards / "splits.json").read_text())["test"]
    folder = scans / "Totalsegmentator_dataset"
    check_results(runs, out, test, {case: folder / case / "ct.nii.gz" for case in test})

    header = read_header(find_weights(runs / "finetuned"))
    assert list(header["class_names"].values()) == organs
    assert header["initialisation"]["method"] == "AnatoMask"
    pretrained = read_weights(find_weights(runs / "pretrained"))
    assert {name.split(".")[0] for name in pretrained.tensors} == {"student", "teacher"}
    pictures = list((runs / "pretrained" / "pictures").glob("*.png"))
    assert [path.name for path in pictures] == ["reconstruction.png"]

    capfd.readouterr()
    finetune = ["finetune", *SMALL, *SHORT, "--data", str(shards), "--runs", str(runs)]
    assert main([*finetune, "--network.base", "8", "--init", str(runs / "pretrained")]) == 1
    assert "set network.base" in capfd.readouterr().err
    assert main([*finetune, "--name", "finetuned", "--init", str(runs / "pretrained"), "--seed", "1"]) == 1
    assert "seed is 0 there, 1 here" in capfd.readouterr().err
    before = (runs / "finetuned" / "metrics.jsonl").read_text()
    assert main([*finetune, "--name", "finetuned", "--init", str(runs / "pretrained")]) == 0
    assert (runs / "finetuned" / "metrics.jsonl").read_text() == before
    with exclusive_lock(runs / ".finetuned.lock"):  # as another process that trains it
        assert main([*finetune, "--name", "finetuned", "--init", str(runs / "pretrained"), "--overwrite"]) == 1
    assert "is in use by another process" in capfd.readouterr().err
    assert (runs / "finetuned" / "metrics.jsonl").read_text() == before
    assert not open_to_others


TRAIN, TEST = "kbp_002", "kbp_001"
"""Real scans; the one that is predicted, in hundreds of small windows, is the smaller one."""


@pytest.fixture(scope="module")
def head_and_neck(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Callable[[], tuple[Path, Path]]:
    """Returns two real scans as an nnU-Net raw folder, and their shards, which the first test that asks prepares."""

    @cache
    def make() -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("real")
        source, shards = folder / "Dataset001_HeadNeck", folder / "shards"
        for case in (TRAIN, TEST):
            for file in (f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz"):
                (source / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(real_data / "openkbp" / file, source / file)
        shutil.copy(real_data / "openkbp" / "dataset.json", source)
        (source / "splits_final.json").write_text(json.dumps([{"train": [TRAIN], "val": [TEST]}]))
        assert main(["prepare", "--recipe", "small", "--source", str(source), "--out", str(shards)]) == 0
        return source, shards

    return make


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("method", "network", "name"),
    [
        (ANATOMASK, SMALL[2:], "AnatoMask"),
        pytest.param(BYOL, SMALL[2:], "BYOL", marks=pytest.mark.slow),
        pytest.param(MOCO, SMALL[2:], "MoCo v2", marks=pytest.mark.slow),
        pytest.param(MAE, SMALL[2:], "MAE", marks=pytest.mark.slow),
        pytest.param(TANG, SWIN, "Swin UNETR SSL", marks=pytest.mark.slow),
        pytest.param(ZHOU, UNETR, "SelfMedMAE", marks=pytest.mark.slow),
        pytest.param(XIE, MIT, "UniMiSS", marks=pytest.mark.slow),
    ],
)
def test_two_real_scans(
    method: Sequence[str],
    network: Sequence[str],
    name: str,
    tmp_path: Path,
    head_and_neck: Callable[[], tuple[Path, Path]],
    ray_session: None,
) -> None:
    source, shards = head_and_neck()
    runs, out = tmp_path / "runs", tmp_path / "report"
    assert json.loads((shards / "splits.json").read_text())["test"] == [TEST]
    chain(str(shards), runs, out, method, network)
    check_results(runs, out, [TEST], {TEST: source / "imagesTr" / f"{TEST}_0000.nii.gz"}, name)
