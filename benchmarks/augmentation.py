"""Time of augmenting a sample: `python benchmarks/augmentation.py --nnunet-python VENV/bin/python [--quick]`.

Ours turns, scales, changes and mirrors crops of a scan, two at a time, and so does nnU-Net 2.8.1's own pipeline (`make
nnunet`), one by one. Neither reads from disk; padding and normalising, which ours does on the way, has its own column.
Label maps are cells of 25 voxels, half of them background, the others of one class of several at random: nnU-Net
interpolates each class of a crop on its own. The ways run in processes of their own, in turn, on one thread; times are
medians of rounds, of the processor on a CPU and of the clock on a GPU, where nnU-Net stays on the CPU. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

CELL = 25
"""Edge in voxels of a cube as large as a cell of a label map."""
BATCH = 2
SIZES = ((64, 64, 64), (112, 112, 128))
CLASSES = (2, 104)


def main() -> None:
    """Measure each way in turn, and print."""
    arguments = parse()
    if arguments.way:
        measured = ours if arguments.way == "ours" else nnunet
        print(json.dumps(measured(arguments)), flush=True)
        return
    from measure import machine, report

    ways = {"ours": sys.executable} | ({"nnunet": arguments.nnunet_python} if arguments.nnunet_python else {})
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            for classes in arguments.classes:
                scan = Path(folder) / "scan.npz"
                np.savez(scan, allow_pickle=False, **made_scan(size, classes))
                runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
                for _ in range(arguments.rounds):
                    for way, python in ways.items():
                        runs[way].append(child(python, way, scan, size, arguments))
                medians = {
                    way: {key: statistics.median(run[key] for run in of_way) for key in of_way[0]}
                    for way, of_way in runs.items()
                }
                name = f"{'x'.join(map(str, size))}, {classes} classes"
                ratio = medians["nnunet"]["ms"] / medians["ours"]["ms"] if "nnunet" in medians else None
                found[name] = medians | {"nnunet_over_ours": ratio}
                rows.append(
                    [
                        name,
                        f"{medians['ours']['ms']:.1f}",
                        f"{medians['nnunet']['ms']:.1f}" if ratio else "-",
                        f"{ratio:.1f}" if ratio else "-",
                        f"{medians['ours']['normalising_ms']:.1f}",
                        f"{medians['ours']['read']:.2f}",
                        f"{medians['nnunet']['read']:.2f}" if ratio else "-",
                    ]
                )
    given = {name: value for name, value in vars(arguments).items() if name != "nnunet_python"}
    report(
        f"Augmentation of {arguments.samples} samples, one core, ours on {arguments.device}",
        ["crop", "ours ms", "nnU-Net ms", "ratio", "normalising ms", "voxels read / crop", "nnU-Net's"],
        rows,
        {"found": found, "arguments": given, "machine": machine(arguments.device) | {"threads": 1}},
    )


def child(python: str, way: str, scan: Path, size: tuple[int, int, int], arguments: argparse.Namespace) -> Any:
    """Run one way in its own process, and return its figures."""
    command = [python, __file__, "--way", way, "--scan", str(scan), "--samples", str(arguments.samples)]
    command += ["--sizes", "x".join(map(str, size)), "--device", arguments.device]
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def made_scan(size: tuple[int, int, int], classes: int) -> dict[str, np.ndarray]:
    """Make a scan in HU that holds every box of a crop, and its label map."""
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)
    shape = [2 * int(1.2 * edge) for edge in size]
    cells = math.prod(shape) // CELL**3
    pairs = np.stack(np.meshgrid(*(np.arange(0.5, edge, 2) for edge in shape), indexing="ij"), -1)  # of voxels
    _, nearest = cKDTree(rng.uniform(0, shape, (cells, 3))).query(pairs)
    of_cell = np.where(rng.random(cells) < 0.5, 0, rng.integers(1, classes + 1, cells))
    label = of_cell[nearest].astype(np.uint8).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    image = 40 * (label % 7) + rng.normal(0, 30, shape)
    return {"image": image.astype(np.int16)[None], "label": label}


def ours(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure ours, batch by batch."""
    from anatomask.data.augmentation.draws import draw_matrix, moves, source_box
    from anatomask.data.augmentation.pipeline import IntensityAugmentation, placed_crops
    from anatomask.data.crops import flip, pad_outside
    from anatomask.data.normalisation import normalise
    from anatomask.data.samples import Sample, stacked
    from anatomask.training.loop import to_device

    torch.set_num_threads(1)
    scan, (size,), device = np.load(arguments.scan), arguments.sizes, torch.device(arguments.device)
    image, label = scan["image"], scan["label"]
    middle, rng, read = (np.array(label.shape) - size) // 2, np.random.default_rng(0), 0
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    change = IntensityAugmentation()

    def sample(seed: int) -> Sample:
        matrix = draw_matrix(seed)
        start, box = source_box(matrix, size) if moves(matrix) else (np.zeros(3, np.int64), size)
        part = tuple(slice(first, first + edge) for first, edge in zip(middle + start, box, strict=True))
        return {
            "image": image[:, *part].copy(),
            "label": label[part].copy(),
            "inside": np.array([(0, edge) for edge in box], np.int16),
            "minimum": np.array([-1024], np.float32),
            "normalisation": np.array([[-200, 300, 80, 90]], np.float32),
            "flip": rng.random(3) < 0.5,
            "seed": np.asarray(seed),
            "matrix": matrix,
            "box_start": start,
        }

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock()

    seconds = normalising = 0.0
    for first in range(-BATCH, arguments.samples, BATCH):  # one batch to warm up
        drawn = [sample(abs(first) + each) for each in range(BATCH)]
        batch = to_device(stacked(drawn), device)
        began = now()
        for columns in zip(*(batch[name] for name in ("image", "inside", "minimum", "normalisation")), strict=True):
            normalise(pad_outside(*columns[:3]), columns[3])
        normalised = now()
        images, labels = placed_crops(batch, size)
        images = change(images, batch["seed"])
        images, labels = flip(images, batch["flip"]), flip(labels, batch["flip"])
        done = now()
        if first >= 0:
            normalising += normalised - began
            seconds += done - normalised
            read += sum(each["label"].size for each in drawn)
    per_sample = 1e3 / arguments.samples
    return {
        "ms": per_sample * (seconds - normalising),
        "normalising_ms": per_sample * normalising,
        "read": read / arguments.samples / math.prod(size),
    }


def nnunet(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure nnU-Net's own pipeline, as its loader calls it: sample by sample."""
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(1)
    scan, (size,) = np.load(arguments.scan), arguments.sizes
    angle = (-math.radians(30), math.radians(30))
    box = get_patch_size(size, angle, angle, angle, (0.85, 1.25))  # as in its trainer
    part = tuple(
        slice((extent - edge) // 2, (extent - edge) // 2 + edge)
        for extent, edge in zip(scan["label"].shape, box, strict=True)
    )
    image = torch.from_numpy((scan["image"][:, *part].clip(-200, 300) - 80) / 90).float()
    label = torch.from_numpy(scan["label"][None, *part].astype(np.int16))
    pipeline = nnUNetTrainer.get_training_transforms(size, angle, None, (0, 1, 2), False)
    np.random.seed(0)
    torch.manual_seed(0)
    blur = next(
        step.transform for step in pipeline.transforms if "Blur" in type(getattr(step, "transform", 0)).__name__
    )
    for _ in range(20):  # tries two ways for each size of kernel, once
        blur(image=image[:, : size[0], : size[1], : size[2]].clone())
    seconds = 0.0
    for _ in range(arguments.samples):
        crop, classes = image.clone(), label.clone()
        began = time.process_time()
        pipeline(image=crop, segmentation=classes)
        seconds += time.process_time() - began
    return {"ms": 1e3 * seconds / arguments.samples, "read": math.prod(box.tolist()) / math.prod(size)}


def edges(text: str) -> tuple[int, ...]:
    """Read the size of a crop, as 64x64x64."""
    return tuple(map(int, text.split("x")))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nnunet-python", help="interpreter of nnU-Net's environment; default: ours alone")
    parser.add_argument("--quick", action="store_true", help="the small crop, few samples: within a minute")
    parser.add_argument("--sizes", nargs="+", type=edges, default=SIZES, help="crops, as 64x64x64")
    parser.add_argument("--classes", nargs="+", type=int, default=CLASSES, help="classes of the label maps")
    parser.add_argument("--samples", type=int, default=200, help="samples of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--way", choices=["ours", "nnunet"], help=argparse.SUPPRESS)
    parser.add_argument("--scan", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.samples, arguments.rounds = SIZES[:1], 20, 1
    return arguments


if __name__ == "__main__":
    main()
