"""Prediction of a large scan, from file to file, against nnU-Net's predictor: `python benchmarks/inference.py`.

A real CT is resampled to `--size` voxels, and segmented into `--classes` by the same weights here and by nnU-Net, each
in a process of its own: seconds from the scan's file to the label map's, seconds of a core, and the process's peak
memory. Then the label maps are compared, also with that of an nnU-Net that sums the logits of windows in single
precision instead of half, which is not timed. The weights have learned for `--updates` updates to tell air, fat, soft
tissue and bone apart; random ones would choose among equal logits, which nnU-Net's half precision rounds. nnU-Net runs
in an environment of its own, which `make nnunet` makes and `--nnunet` names; without it, only ours is measured. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from measure import machine, report

from anatomask.data.datasets.base import RawCase, nifti_image
from anatomask.data.resampling import resample_image
from anatomask.data.storage import Storage
from anatomask.evaluation.forward import forward_pass
from anatomask.evaluation.network import read_network
from anatomask.evaluation.placement import inference_bytes
from anatomask.evaluation.prediction import LABEL_MAP, Prediction
from anatomask.evaluation.settings import InferenceConfig
from anatomask.evaluation.windows import WindowGrid
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.training.losses import segmentation_loss
from anatomask.weights.files import describe_architecture, write_weights

SCAN = "scans/acrin_042_petct.nii.gz"
ENVIRONMENT = Path.home() / ".cache" / "anatomask" / "nnunet-venv"
SPACING = (1.5, 1.5, 1.5)
NORMAL = {"percentile_00_5": -1000.0, "percentile_99_5": 1000.0, "mean": -300.0, "std": 450.0}
"""Normalisation of the weights: HU are clipped, and z-scored."""
TISSUES = (-500, -30, 150)
"""HU between air, fat, soft tissue and bone."""
CROP = 32
"""Edge in voxels of the crops that the network learns on."""


def main() -> None:
    """Measure, compare and print."""
    arguments = parse()
    if arguments.ours:
        print(json.dumps(predict(Path(arguments.ours[0]), Path(arguments.ours[1]), arguments.threads)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, arguments)
        own = [sys.executable, __file__, "--ours", name, str(folder / "ours"), "--threads", str(arguments.threads)]
        found = {"ours": run(own, arguments.threads)}
        differ = exact = 0.0
        python = arguments.nnunet / "bin" / "python"
        if compared := python.is_file():
            program = str(Path(__file__).with_name("inference_nnunet.py"))
            found["nnunet"] = run([str(python), program, name, str(folder / "theirs")], arguments.threads)
            run([str(python), program, name, str(folder / "exact"), "float32"], arguments.threads)
            ours = folder / "ours" / f"scan{LABEL_MAP}"
            differ, exact = (differing(ours, folder / f"{theirs}.nii.gz") for theirs in ("theirs", "exact"))
    rows = [
        [who, *(f"{one[name]:.1f}" for name in ("seconds", "cpu_seconds")), f"{one['peak_gib']:.2f}"]
        for who, one in found.items()
    ]
    result: dict[str, Any] = {
        **found,
        "arguments": {**vars(arguments), "nnunet": str(arguments.nnunet)},
        "machine": machine("cpu"),
    }
    if compared:
        for name in ("seconds", "cpu_seconds"):
            result[f"{name}_over_ours"] = found["nnunet"][name] / found["ours"][name]
        result["memory_over_nnunet"] = found["ours"]["peak_gib"] / found["nnunet"]["peak_gib"]
        result |= {"differing_share": differ, "differing_share_float32": exact}
        rows.append(["voxels that differ", f"{100 * differ:.3f} %", "", ""])
        rows.append(["and with its sums in float32", f"{100 * exact:.3f} %", "", ""])
    grid = WindowGrid(tuple(arguments.size), tuple(arguments.patch), 0.5)
    voxels, patch = (" x ".join(map(str, numbers)) for numbers in (arguments.size, arguments.patch))
    title = (
        f"a CT of {voxels} voxels, {arguments.classes + 1} outputs, base {arguments.base}: {grid.count} windows of "
        f"{patch}, {2 ** len(arguments.mirror)} forward passes each, {arguments.threads} thread(s)"
    )
    report(title, ["", "s from file to file", "s of a core", "peak GiB"], rows, result)


def parse() -> argparse.Namespace:
    """Parse the flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small scan in small windows: within a minute")
    parser.add_argument("--scans", default="../shared/data", help="folder of real scans")
    parser.add_argument("--nnunet", type=Path, default=ENVIRONMENT, help="nnU-Net's environment; default: %(default)s")
    parser.add_argument("--size", nargs=3, type=int, default=[200, 200, 300], help="voxels of the scan")
    parser.add_argument("--patch", nargs=3, type=int, default=[112, 112, 128], help="voxels of a window")
    parser.add_argument("--classes", type=int, default=104)
    parser.add_argument("--base", type=int, default=8)
    parser.add_argument("--mirror", nargs="*", type=int, default=[], help="mirrored axes; default: none")
    parser.add_argument("--updates", type=int, default=60, help="updates that the network learns")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ours", nargs=2, metavar=("FOLDER", "OUT"), help="predict in this process, and stop")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.patch, arguments.base = [72, 72, 96], [48, 48, 64], 4
    return arguments


def write_inputs(folder: Path, arguments: argparse.Namespace) -> None:
    """Write the scan, the weights as ours and as nnU-Net's worker reads them, plans and `dataset.json`."""
    image = nib.Nifti1Image.from_filename(Path(arguments.scans) / SCAN)
    volume = resample_image(np.asanyarray(image.dataobj), arguments.size).round().astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.diag([*SPACING, 1.0])), folder / "scan.nii.gz")
    config = STUNetConfig(base=arguments.base)
    tensors = learn(config, arguments.classes, volume, arguments.updates)
    names = {number: f"class {number}" for number in range(1, arguments.classes + 1)}
    header = {
        "format": 1,
        "kind": "segmentation",
        "architecture": describe_architecture(config, arguments.classes),
        "patch_size": arguments.patch,
        "mirror_axes": arguments.mirror,
        "spacing": list(SPACING),
        "fingerprint": {"channels": [{"name": "CT", "scheme": "ct", **NORMAL}]},
        "class_names": {str(number): name for number, name in names.items()},
        "dataset": "none",
        "initialisation": {"method": "scratch", "run": None},
    }
    write_weights(folder / "weights", tensors, header)
    weights = {"network": asdict(config), "tensors": tensors, "mirror_axes": arguments.mirror}
    torch.save(weights, folder / "weights.pth")
    labels = {"background": 0, **{name: number for number, name in names.items()}}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "plans.json").write_text(json.dumps(plans(arguments)))


def learn(config: STUNetConfig, classes: int, volume: np.ndarray, updates: int) -> dict[str, torch.Tensor]:
    """Train a network for some updates to tell four kinds of tissue in HU apart; return its tensors."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    image = (np.clip(volume, NORMAL["percentile_00_5"], NORMAL["percentile_99_5"]) - NORMAL["mean"]) / NORMAL["std"]
    tissue = np.digitize(volume, TISSUES).astype(np.uint8)
    network = config.segmenter(classes)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(updates):
        low = [int(rng.integers(extent - CROP + 1)) for extent in volume.shape]
        box = tuple(slice(start, start + CROP) for start in low)
        optimiser.zero_grad()
        logits = network(torch.from_numpy(image[box].astype(np.float32))[None, None])
        segmentation_loss(logits, torch.from_numpy(tissue[box])[None, None]).backward()
        optimiser.step()
    return dict(network.state_dict())


def plans(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return plans of nnU-Net for the network; its axes are (z, y, x)."""
    resampling = "resample_data_or_seg_to_shape"
    cubic = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "none",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": arguments.patch[::-1],
        "median_image_size_in_voxels": arguments.size[::-1],
        "spacing": list(SPACING),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resampling,
        "resampling_fn_seg": resampling,
        "resampling_fn_probabilities": resampling,
        "resampling_fn_data_kwargs": cubic,
        "resampling_fn_seg_kwargs": {**cubic, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**cubic, "order": 1},
        "batch_dice": False,
        "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    properties = {**NORMAL, "max": 3000.0, "min": -1024.0, "median": -300.0}
    return {
        "dataset_name": "Dataset001_None",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": properties},
    }


def run(command: list[str], threads: int) -> dict[str, float]:
    """Run a worker, and return the figures in its last line."""
    root = str(Path(__file__).resolve().parents[1])
    here = {"PYTHONPATH": root, "OMP_NUM_THREADS": str(threads), "nnUNet_def_n_proc": str(threads)}
    folders = dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), tempfile.gettempdir())
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **folders, **here})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def predict(folder: Path, out: Path, threads: int) -> dict[str, float]:
    """Predict as `anatomask predict` does in each of its tasks."""
    torch.set_num_threads(threads)
    out.mkdir()
    weights, inference = read_network(folder / "weights"), InferenceConfig()
    raw = RawCase("scan", "scan", (nifti_image(folder / "scan.nii.gz"),))
    prediction = Prediction(Storage(out), {"scan": raw}, inference, probabilities=False)
    start, began = time.perf_counter(), time.process_time()
    prediction.finish([weights], "scan", torch.device("cpu"))
    seconds, cpu = time.perf_counter() - start, time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    shape, patch = nib.Nifti1Image.from_filename(folder / "scan.nii.gz").shape, weights.header["patch_size"]
    classes = weights.header["architecture"]["classes"]
    bound = inference_bytes(shape, shape, 1, classes, patch, inference, forward_pass([weights], inference))
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_gib": peak, "reserved_gib": bound / 2**30 + 1}


def differing(one: Path, other: Path) -> float:
    """Return the share of voxels in which two label maps differ."""
    a, b = (np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj) for path in (one, other))
    return float((a != b).mean())


if __name__ == "__main__":
    main()
