"""`anatomask export-weights --format monai-bundle`: MONAI's own tools check and run the folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, verify_net_in_out
from monai.bundle.utils import DEFAULT_METADATA

import anatomask
from anatomask.cli.main import main
from anatomask.weights.files import read_weights
from anatomask.weights.header import parse_header
from tests.bad_input.world import predict_serially
from tests.stages.test_predict import CT, SUV, write_run

TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"],
    "properties": {
        "type": {"enum": ["image", "series", "tuples", "probabilities"]},
        "format": {"type": "string"},
        "modality": {"type": "string"},
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 3, "maxItems": 3},
        "dtype": {"enum": ["float32"]},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
TEXTS = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors")
VERSIONS = {"type": "object", "additionalProperties": {"type": "string"}}
SPECIFICATION = {
    "type": "object",
    "required": [*TEXTS, "copyright", "required_packages_version", "network_data_format"],
    "properties": {
        **{name: {"type": "string", "minLength": 1} for name in (*TEXTS, "copyright", "name")},
        "changelog": VERSIONS,
        "required_packages_version": VERSIONS,
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "additionalProperties": {"type": "object", "additionalProperties": TENSOR, "minProperties": 1},
        },
    },
}
"""Mandatory fields and their types, as MONAI's bundle specification lists them; its own schema is on the network."""


@dataclass(frozen=True)
class Bundle:
    """An exported bundle and the run that it is of."""

    run: Path
    folder: Path

    @property
    def configs(self) -> dict[str, Any]:
        return {f"{name}_file": str(self.folder / f"configs/{file}.json") for name, file in FILES.items()}


FILES = {"config": "inference", "meta": "metadata"}


def export(run: Path, folder: Path, *flags: str) -> Bundle:
    assert main(["export-weights", str(run), "--format", "monai-bundle", "--output", str(folder), *flags]) == 0
    return Bundle(run, folder)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("bundle")
    return export(write_run(root / "run", CT, mirror_axes=[0, 2]), root / "ct", "--license", "cc-by-4.0")


def workflow(bundle: Bundle, **changes: Any) -> ConfigWorkflow:
    fields = {"bundle_root": str(bundle.folder), "device": "$torch.device('cpu')", **changes}
    made = ConfigWorkflow(**bundle.configs, workflow_type="infer", **fields)
    made.initialize()
    return made


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj)


def test_its_files(bundle: Bundle) -> None:
    files = sorted(str(path.relative_to(bundle.folder)) for path in bundle.folder.rglob("*") if path.is_file())
    weights = ["models/model.json", "models/model.safetensors"]
    assert files == ["LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", *weights]
    read, source = read_weights(bundle.folder / "models"), read_weights(bundle.run)
    assert read.header == source.header == parse_header((bundle.folder / "models/model.json").read_text())
    assert all(torch.equal(tensor, source.tensors[name]) for name, tensor in read.tensors.items())
    assert (
        "Licence of these weights, as whoever exported them stated it: cc-by-4.0"
        in (bundle.folder / "LICENSE").read_text()
    )
    assert (
        "python -m monai.bundle run --config_file configs/inference.json"
        in (bundle.folder / "docs/README.md").read_text()
    )


def test_its_description_is_as_monai_specifies_it(bundle: Bundle) -> None:
    described = json.loads((bundle.folder / "configs/metadata.json").read_text())
    jsonschema.validate(described, SPECIFICATION)
    assert DEFAULT_METADATA.keys() <= described.keys()
    assert described["network_data_format"]["outputs"]["pred"]["channel_def"]["2"] == "spinal cord"
    assert (described["license"], described["task"]) == ("cc-by-4.0", "Segmentation of 2 classes in CT")
    assert described["monai_version"] == DEFAULT_METADATA["monai_version"]
    assert described["required_packages_version"]["anatomask"] == anatomask.__version__


def test_monai_finds_what_it_requires_of_an_inference_bundle(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "scan.nii").touch()
    found = workflow(bundle, dataset_dir=str(tmp_path / "scan.nii"), output_dir=str(tmp_path / "out"))
    assert found.check_properties() == []
    verify_net_in_out(net_id="network_def", device="cpu", bundle_root=str(bundle.folder), **bundle.configs)


def test_it_gives_the_label_map_of_a_prediction(bundle: Bundle, real_data: Path, tmp_path: Path) -> None:
    scan = real_data / "openkbp/imagesTr/kbp_001_0000.nii.gz"
    (found,) = workflow(bundle, dataset_dir=str(scan), output_dir=str(tmp_path)).run()
    assert found == [tmp_path / "kbp_001.nii.gz"]
    expected = anatomask.predict(bundle.run, anatomask.read_scan(scan), device="cpu")
    assert np.array_equal(voxels(found[0]), expected.dataobj)
    assert len(np.unique(voxels(found[0]))) > 1


def test_two_channels_and_a_bad_scan_beside_good_ones(real_data: Path, tmp_path: Path) -> None:
    """The bad one is named at the end, and the good one is written."""
    bundle = export(write_run(tmp_path / "run", CT, SUV), tmp_path / "petct")
    study = next(path.parent for path in sorted((real_data / "autopet2").rglob("SUV.nii.gz")))
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for number, name in enumerate(("CTres", "SUV")):
        shutil.copy(study / f"{name}.nii.gz", scans / f"one_000{number}.nii.gz")
    shutil.copy(study / "CTres.nii.gz", scans / "lone_0000.nii.gz")
    with pytest.raises(RuntimeError, match="Failed to evaluate") as refusal:
        workflow(bundle, dataset_dir=str(scans), output_dir=str(out)).run()
    said = str(refusal.value.__cause__)
    assert said.startswith("1 of 2 scans were not segmented. lone: ") and "has 1 channel, the network reads 2" in said
    both = anatomask.read_scan([scans / f"one_000{number}.nii.gz" for number in (0, 1)])
    expected = anatomask.predict(bundle.run, both, device="cpu")
    assert [path.name for path in out.iterdir()] == ["one.nii.gz"]
    assert np.array_equal(voxels(out / "one.nii.gz"), expected.dataobj)
    with pytest.raises(RuntimeError, match=r"bundle\.Evaluator"):
        workflow(bundle, dataset_dir=str(scans), output_dir=str(scans / "out")).run()
    assert not (scans / "out").exists()


def test_a_network_of_a_plugin_is_refused(
    tmp_path: Path, forget_plugins: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from anatomask.nn.backbones.stunet import STUNetConfig\n"
        "class Mine(STUNetConfig):\n    name = 'mine'\n"
        "BACKBONES = {'mine': Mine}\n"
    )
    run = write_run(tmp_path / "run", CT)
    write_run(run, CT, architecture=read_weights(run).header["architecture"] | {"name": "mine"})
    assert main(["export-weights", str(run), "--format", "monai-bundle", "--plugin", str(plugin)]) == 1
    assert "mine is defined by a file of --plugin: install that" in " ".join(capsys.readouterr().err.split())
    assert not (run / "exported").exists()


@pytest.mark.slow
def test_monais_command_writes_what_predict_writes(
    bundle: Bundle, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real scans of two shapes and orientations, in a process of its own: the files are equal byte by byte."""
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(real_data / "openkbp/imagesTr/kbp_001_0000.nii.gz", scans / "head.nii.gz")
    shutil.copy(next(iter(sorted((real_data / "totalsegmentator").rglob("ct.nii.gz")))), scans / "trunk.nii.gz")
    monkeypatch.setattr("anatomask.stages.predict.predict_cases", predict_serially)
    command = ["predict", "--run", str(bundle.run), "--source", str(scans), "--out"]
    assert main([*command, str(tmp_path / "predicted")]) == 0
    moved = replace(bundle, folder=Path(shutil.copytree(bundle.folder, tmp_path / "elsewhere")))
    flags = ["--dataset_dir", str(scans), "--output_dir", str(tmp_path / "out")]
    subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *flags],
        cwd=moved.folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        check=True,
    )
    for case in ("head", "trunk"):
        made = tmp_path / f"out/{case}.nii.gz"
        assert made.read_bytes() == (tmp_path / f"predicted/{case}.nii.gz").read_bytes()
        assert len(np.unique(voxels(made))) > 1
