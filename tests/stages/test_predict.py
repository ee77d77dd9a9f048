"""`anatomask predict` from a raw scan to its label map, in this process: real scans, tiny untrained networks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel import orientations

import anatomask
from anatomask.cli.main import main
from anatomask.data.datasets.base import RawCase, nifti_image, nifti_label
from anatomask.data.fingerprint import ChannelFingerprint, Fingerprint
from anatomask.data.index import write_index
from anatomask.data.preprocess import prepare_case
from anatomask.data.records import DatasetInfo
from anatomask.data.scans import prepare
from anatomask.data.shards import PreparedDataset, write_case
from anatomask.evaluation.case import evaluate_case
from anatomask.evaluation.ensemble import predictor_of
from anatomask.evaluation.predictor import Predictor
from anatomask.evaluation.settings import InferenceConfig
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig
from anatomask.weights.files import describe_architecture, read_weights, write_weights
from tests.bad_input.world import predict_serially
from tests.data.datasets.series import write_series

SPACING = (6.0, 6.0, 6.0)
CLASSES = {1: "left parotid", 2: "spinal cord"}
CT = ChannelFingerprint("CT", "ct", -200.0, 1500.0, 240.0, 410.0)
SUV = ChannelFingerprint("SUV", "quantitative", 0.0, 20.0, 2.0, 3.0)


def write_run(folder: Path, *channels: ChannelFingerprint, seed: int = 0, patch: int = 32, **changes: Any) -> Path:
    """Weights of a segmentation network that no training has touched; `changes` of the header."""
    torch.manual_seed(seed)
    config = STUNetConfig(base=2, in_channels=len(channels))
    header = {
        "kind": "segmentation",
        "architecture": describe_architecture(config, len(CLASSES)),
        "patch_size": [patch] * 3,
        "mirror_axes": [0],
        "spacing": list(SPACING),
        "class_names": {str(number): name for number, name in CLASSES.items()},
        "fingerprint": Fingerprint(channels).to_dict(),
        "dataset": "data",
        "initialisation": {"method": "scratch", "run": None},
    }
    write_weights(folder, STUNet(config, len(CLASSES)).state_dict(), {**header, **changes})
    return folder


@pytest.fixture(scope="module")
def world(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A real scan, the same with other axes, and two runs."""
    root = tmp_path_factory.mktemp("predict")
    (root / "scans").mkdir()
    image = nib.Nifti1Image.from_filename(real_data / "openkbp/imagesTr/kbp_001_0000.nii.gz")
    image.header["descrip"] = b"made for a test"
    image.header.set_qform(image.affine, code=1)
    turn = orientations.ornt_transform(nib.io_orientation(image.affine), orientations.axcodes2ornt("PIR"))
    nib.save(image, root / "scans/head.nii.gz")
    nib.save(image.as_reoriented(turn), root / "scans/turned.nii.gz")
    other = replace(CT, mean=100.0, std=300.0)
    runs = write_run(root / "a", CT), write_run(root / "b", other, seed=1)
    return SimpleNamespace(root=root, scans=root / "scans", scan=root / "scans/head.nii.gz", runs=runs)


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs the verb without Ray."""
    monkeypatch.setattr("anatomask.stages.predict.predict_cases", predict_serially)

    def run(source: Path, *arguments: object, out: str = "out", runs: tuple[Path, ...]) -> int:
        named = [*map(str, runs), "--source", str(source), "--out", str(tmp_path / out), *map(str, arguments)]
        return main(["predict", "--run", *named])

    return run


def read(path: Path) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(path)


def voxels(path: Path) -> np.ndarray:
    return np.asarray(read(path).dataobj)


def test_a_label_map_is_that_of_an_evaluation_and_of_the_python_function(
    world: SimpleNamespace, predict: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one reads the raw scan, the other the shards."""
    assert predict(world.scans, runs=world.runs[:1]) == 0
    said = capsys.readouterr().out
    assert f"2 of 2 scans are predicted (2 now): {tmp_path}/out/<case>.nii.gz" in said
    assert "labels.txt (ITK-SNAP), labels.ctbl (3D Slicer)" in said

    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image((voxels(world.scan) > 300).astype(np.uint8), read(world.scan).affine), label)
    case = prepare_case(RawCase("head", "p", (nifti_image(world.scan),), nifti_label(label)), ["ct"], [1, 2], SPACING)
    record = write_case(str(tmp_path / "data"), case, 32, "none")
    info = DatasetInfo("data", "folder", ("CT",), ("ct",), CLASSES, {1: 3.0, 2: 3.0}, SPACING, 32, "none")
    write_index(str(tmp_path / "data"), info, [record], {"test": ["head"]}, Fingerprint((CT,)))
    dataset = PreparedDataset.open(str(tmp_path / "data"))
    weights = read_weights(world.runs[0])
    evaluated = evaluate_case(Predictor.of(weights), dataset, "head", "run").prediction

    made = voxels(tmp_path / "out/head.nii.gz")
    assert len(np.unique(made)) > 1
    np.testing.assert_array_equal(made, np.asarray(evaluated.dataobj))
    function = anatomask.predict(world.runs[0], anatomask.read_scan(world.scan), device="cpu")
    np.testing.assert_array_equal(made, np.asarray(function.dataobj))


def test_a_label_map_lies_as_the_scan_and_keeps_its_header(
    world: SimpleNamespace, predict: Callable[..., int], tmp_path: Path
) -> None:
    assert predict(world.scans, runs=world.runs[:1]) == 0
    for case in ("head", "turned"):
        scan, made = read(world.scans / f"{case}.nii.gz"), read(tmp_path / f"out/{case}.nii.gz")
        assert made.shape == scan.shape
        np.testing.assert_array_equal(made.affine, scan.affine)
        for field in ("qform_code", "sform_code", "pixdim", "quatern_b", "srow_x", "xyzt_units", "descrip"):
            np.testing.assert_array_equal(made.header[field], scan.header[field])
        assert made.get_data_dtype() == np.uint8
        assert made.header.get_intent()[0] == "label"
    head, turned = (read(tmp_path / f"out/{case}.nii.gz") for case in ("head", "turned"))
    assert nib.aff2axcodes(turned.affine) == ("P", "I", "R")
    back = turned.as_reoriented(
        orientations.ornt_transform(nib.io_orientation(turned.affine), nib.io_orientation(head.affine))
    )
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(head.dataobj))


def test_names_of_classes_are_written(world: SimpleNamespace, predict: Callable[..., int], tmp_path: Path) -> None:
    assert predict(world.scan, runs=world.runs[:1]) == 0
    (extension,) = read(tmp_path / "out/head.nii.gz").header.extensions
    assert extension.get_code() == 30
    labels = ElementTree.fromstring(extension.content).iter("Label")
    assert {int(label.attrib["Key"]): label.text for label in labels} == {0: "background", **CLASSES}
    assert '1   255    0    0        1  1  1    "left parotid"' in (tmp_path / "out/labels.txt").read_text()
    assert "\n1 left_parotid 255 0 0 255\n" in (tmp_path / "out/labels.ctbl").read_text()


def test_a_finished_scan_is_not_predicted_again_and_other_settings_are_refused(
    world: SimpleNamespace, predict: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "scans"
    source.mkdir()
    shutil.copy(world.scan, source / "one.nii.gz")
    assert predict(source, runs=world.runs[:1]) == 0
    finished = (tmp_path / "out/one.nii.gz").stat().st_mtime_ns
    shutil.copy(world.scan, source / "two.nii.gz")
    (tmp_path / "out/.two.nii.gz.0123abcd.tmp").write_text("left by a kill")
    os.utime(source / "one.nii.gz", (time.time() + 60, time.time() + 60))  # corrected since
    assert predict(source, runs=world.runs[:1]) == 0
    said = capsys.readouterr()
    assert "2 of 2 scans are predicted (1 now)" in said.out
    assert (
        f"of one are newer than what was made of them, which is kept; delete {tmp_path}/out/<case>.nii.gz" in said.err
    )
    assert (tmp_path / "out/one.nii.gz").stat().st_mtime_ns == finished
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "labels.ctbl", "labels.txt", "one.nii.gz", "prediction.json", "two.nii.gz"
    ]  # fmt: skip

    assert predict(source, "--inference.overlap", 0.25, runs=world.runs[:1]) == 1
    assert "inference.overlap is 0.5 there, 0.25 here; choose another --out" in capsys.readouterr().err
    assert predict(source, runs=world.runs[1:]) == 1
    assert "weights is " in capsys.readouterr().err
    (tmp_path / "out/mine.nii.gz").write_text("of the user")
    assert predict(source, "--overwrite", runs=world.runs[1:]) == 0
    assert (tmp_path / "out/mine.nii.gz").read_text() == "of the user"
    assert (tmp_path / "out/one.nii.gz").stat().st_mtime_ns != finished


def test_probabilities_are_those_of_the_label_map(
    world: SimpleNamespace, predict: Callable[..., int], tmp_path: Path
) -> None:
    assert predict(world.scans / "turned.nii.gz", "--probabilities", runs=world.runs[:1]) == 0
    made = voxels(tmp_path / "out/turned.nii.gz")
    with np.load(tmp_path / "out/turned.npz") as file:
        probabilities = file["probabilities"]
    assert probabilities.shape == (3, *made.shape)
    assert probabilities.dtype == np.float16
    np.testing.assert_allclose(probabilities.astype(np.float32).sum(0), 1, atol=3e-3)
    chosen = np.take_along_axis(probabilities, made[None].astype(int), 0)[0]
    np.testing.assert_array_equal(chosen, probabilities.max(0))


def test_runs_are_averaged_in_each_window(world: SimpleNamespace, predict: Callable[..., int], tmp_path: Path) -> None:
    """Against a mean of softmaxes of each network, normalised by its own fingerprint, over one window."""
    runs = [
        write_run(tmp_path / name, channel, seed=seed, patch=64)
        for name, channel, seed in (("p", CT, 0), ("q", replace(CT, mean=90.0), 1))
    ]
    weights = [read_weights(run) for run in runs]
    scan = anatomask.read_scan(world.scan)
    plain = InferenceConfig(mirror=False)
    shares = []
    for one in weights:
        volume = prepare(scan, one.header).volume
        with torch.no_grad():
            shares.append(Predictor.of(one, plain).logits(volume).softmax(0))
    both = predictor_of(weights, plain)
    together = both.logits(both.normalised(prepare(scan, weights[0].header)))
    torch.testing.assert_close(together.exp(), sum(shares) / 2, atol=1e-5, rtol=1e-4)
    assert not torch.equal(shares[0].argmax(0), shares[1].argmax(0))

    assert predict(world.scan, out="both", runs=world.runs) == 0
    assert predict(world.scan, out="first", runs=world.runs[:1]) == 0
    shutil.copytree(world.runs[0], tmp_path / "again")
    assert predict(world.scan, out="twice", runs=(world.runs[0], tmp_path / "again")) == 0
    first = voxels(tmp_path / "first/head.nii.gz")
    assert np.mean(voxels(tmp_path / "twice/head.nii.gz") != first) < 1e-4  # rounding
    assert np.mean(voxels(tmp_path / "both/head.nii.gz") != first) > 1e-3


def test_a_dicom_series_is_predicted_as_the_same_scan_in_nifti(
    world: SimpleNamespace, predict: Callable[..., int], tmp_path: Path
) -> None:
    scan = read(world.scan)
    write_series(tmp_path / "dicom/study", np.asarray(scan.dataobj).astype(np.int16), scan.affine)
    assert predict(tmp_path / "dicom", runs=world.runs[:1]) == 0
    assert predict(world.scan, out="nifti", runs=world.runs[:1]) == 0
    series, file = (
        nib.as_closest_canonical(read(tmp_path / path)) for path in ("out/study.nii.gz", "nifti/head.nii.gz")
    )
    np.testing.assert_allclose(series.affine, file.affine, atol=1e-3)
    assert np.mean(np.asarray(series.dataobj) != np.asarray(file.dataobj)) < 1e-3


def test_channels_are_files_with_numbers_or_what_a_reader_finds(
    real_data: Path, predict: Callable[..., int], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", CT, SUV, patch=16)
    study = next(path.parent for path in sorted((real_data / "autopet2").rglob("SUV.nii.gz")))
    shutil.copytree(study, tmp_path / "layout/FDG-PET-CT-Lesions" / study.parent.name / study.name)
    (tmp_path / "flat").mkdir()
    for number, name in enumerate(("CTres", "SUV")):
        shutil.copy(study / f"{name}.nii.gz", tmp_path / f"flat/tumour_000{number}.nii.gz")
    assert predict(tmp_path / "flat", runs=(run,)) == 0
    assert predict(tmp_path / "flat/tumour_0001.nii.gz", out="file", runs=(run,)) == 0
    assert predict(tmp_path / "layout", out="reader", runs=(run,)) == 0
    (found,) = (tmp_path / "reader").glob("*.nii.gz")
    made = voxels(tmp_path / "out/tumour.nii.gz")
    np.testing.assert_array_equal(voxels(tmp_path / "file/tumour.nii.gz"), made)
    np.testing.assert_array_equal(voxels(found), made)


def test_what_cannot_be_predicted_is_named_and_the_others_go_through(
    world: SimpleNamespace,
    real_data: Path,
    predict: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "scans"
    source.mkdir()
    shutil.copy(world.scan, source / "good.nii.gz")
    shutil.copy(real_data / "openkbp/labelsTr/kbp_001.nii.gz", source / "organs.nii.gz")
    shutil.copy(real_data / "openkbp/labelsTr/kbp_001.nii.gz", source / "good_seg.nii.gz")
    shutil.copy(real_data / "scans/prostatex_0000_t2.nii.gz", source / "mr.nii.gz")
    for channel in range(2):
        shutil.copy(world.scan, source / f"two_000{channel}.nii.gz")
    nib.save(nib.Nifti1Image(voxels(world.scan), None), source / "lost.nii.gz")
    (source / "cut.nii.gz").write_bytes(world.scan.read_bytes()[:20_000])
    assert predict(source, runs=world.runs[:1]) == 1
    err = capsys.readouterr().err
    for said in (
        "anatomask predict: organs: .*organs.nii.gz is a label map, not a scan",
        "good_seg.nii.gz left out: named like a label map",
        "anatomask predict: mr: .*mr.nii.gz is no CT in HU",
        "anatomask predict: two: .*two_0000.nii.gz has 2 channels, the network reads 1 ",
        "anatomask predict: lost: .*lost.nii.gz has no spacing",
        "anatomask predict: cut: .*cut.nii.gz is damaged or cut off",
    ):
        assert len([line for line in err.splitlines() if re.match(said, line)]) == 1, said
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["good.nii.gz"]
    assert "two" in json.loads((tmp_path / "out/prediction.json").read_text())["cases"]


def test_the_plan_counts_scans_and_memory(
    world: SimpleNamespace,
    predict: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert predict(world.scans, "--dry-run", runs=world.runs) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2, of which 0 are finished" in said
    assert "32 × 32 × 32 voxels, 4 forward passes each" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("class_names", {"1": "liver", "2": "spleen"}), ("spacing", [5.0, 6.0, 6.0]), ("patch_size", [48, 32, 32])],
)
def test_runs_that_differ_are_not_averaged(
    field: str, value: Any, world: SimpleNamespace, predict: Callable[..., int], tmp_path: Path, capsys: Any
) -> None:
    other = write_run(tmp_path / "other", CT, **{field: value})
    assert predict(world.scan, runs=(world.runs[0], other)) == 1
    assert re.search(rf"{world.runs[0]} was trained with .*, {other} with .*give runs of one", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_command_spreads_scans_over_ray(
    world: SimpleNamespace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also, a scan that no machine could predict is said, and not begun."""
    (tmp_path / "scans").mkdir()
    for case in ("head", "turned"):
        shutil.copy(world.scans / f"{case}.nii.gz", tmp_path / "scans")
    voxels = np.array([-1000, 40] * 4, np.int16).reshape(2, 2, 2)  # as CT has them
    huge = nib.Nifti1Image(voxels, np.diag([4000.0, 4000.0, 9000.0, 1.0]))
    nib.save(huge, tmp_path / "scans/huge.nii.gz")
    command = ["predict", "--run", *map(str, world.runs), "--source", str(tmp_path / "scans"), "--probabilities"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 1
    shown = capfd.readouterr()
    assert re.search(
        r"^anatomask predict: huge: it needs [\d.]+ GiB of memory to be predicted", shown.err, re.MULTILINE
    )
    assert re.search(r"^predicting 2/2 cases", shown.err, re.MULTILINE)
    assert "2 of 3 scans are predicted (2 now)" in shown.out
    for case in ("head", "turned"):
        scan, made = read(world.scans / f"{case}.nii.gz"), read(tmp_path / f"out/{case}.nii.gz")
        assert made.shape == scan.shape
        weights = [read_weights(run) for run in world.runs]
        here = predictor_of(weights).label_map(
            prepare(anatomask.read_scan(world.scans / f"{case}.nii.gz"), weights[0].header)
        )
        assert np.mean(np.asarray(made.dataobj) != np.asarray(here.dataobj)) < 1e-4


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order_and_the_same_command_goes_on(
    number: signal.Signals, world: SimpleNamespace, tmp_path: Path
) -> None:
    """A lost connection to a cluster sends SIGHUP."""
    (tmp_path / "scans").mkdir()
    names = [f"head{index}.nii.gz" for index in range(12)]
    for name in names:
        (tmp_path / "scans" / name).symlink_to(world.scan)
    arguments = ["--run", str(world.runs[0]), "--source", str(tmp_path / "scans"), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "anatomask", "predict", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        while not list((tmp_path / "out").glob("head*.nii.gz")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "anatomask predict: stopped. The same command goes on where it was." in said
    assert "Traceback" not in said
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("head*.nii.gz")}
    assert 0 < len(done) < len(names)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"12 of 12 scans are predicted ({12 - len(done)} now)" in again.stdout
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == done
