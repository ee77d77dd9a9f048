"""CPU seconds of scoring a case: `python benchmarks/metrics.py`.

The classes of a real label map of TotalSegmentator, with voxels halved (1.5 mm), are scored against the same map moved
by a voxel along two axes, in which each class has a stray voxel, too, as networks leave them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from measure import machine, report

from anatomask.evaluation.metrics import dice_scores, score_classes
from anatomask.evaluation.settings import Metric

CASES: dict[str, tuple[Metric, ...]] = {
    "DSC and volumes": (),
    "and NSD": ("nsd",),
    "and HD95": ("hd95",),
    "and NSD, HD95": ("nsd", "hd95"),
    "and lesions": ("lesions",),
}
"""Metrics by the words of the table."""


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="voxels of 3 mm, once")
    parser.add_argument("--scans", default="../shared/data", help="folder of the real scans")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    label, spacing = read_case(Path(arguments.scans))
    if not arguments.quick:
        label, spacing = np.kron(label, np.ones((2, 2, 2), np.uint8)), [edge / 2 for edge in spacing]
    classes = [int(number) for number in np.unique(label) if number]
    moved = np.roll(label, (1, 1), (0, 1))
    rng = np.random.default_rng(0)
    for number in classes:
        moved[tuple(rng.integers(0, label.shape))] = number
    dice_scores(moved[:4], label[:4], [1])  # what is imported once
    tolerance = dict.fromkeys(classes, 3.0)
    found = {}
    for name, metrics in CASES.items():
        taken = []
        for _ in range(1 if arguments.quick else 3):
            began = time.process_time()
            score_classes(moved, label, spacing, tolerance, metrics)
            taken.append(time.process_time() - began)
        found[name] = statistics.median(taken)
    rows = [[name, f"{took:.2f}", f"{1000 * took / len(classes):.0f}"] for name, took in found.items()]
    result = {"seconds": found, "classes": len(classes), "shape": list(label.shape), "machine": machine("cpu")}
    title = f"{len(classes)} classes on {' × '.join(map(str, label.shape))} voxels, one core"
    report(title, ["", "CPU s", "ms per class"], rows, result)


def read_case(scans: Path) -> tuple[np.ndarray, list[float]]:
    """Read the masks of the first TotalSegmentator case as one label map (D, H, W), and its spacing in mm."""
    paths = sorted(next((scans / "totalsegmentator").rglob("segmentations")).glob("*.nii.gz"))
    images = [nib.Nifti1Image.from_filename(path) for path in paths]
    label = np.zeros(images[0].shape, np.uint8)
    for number, image in enumerate(images, start=1):
        label[np.asarray(image.dataobj) > 0] = number
    return label, [float(edge) for edge in images[0].header.get_zooms()[:3]]


if __name__ == "__main__":
    main()
