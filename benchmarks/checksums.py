"""What checksums cost: `python benchmarks/checksums.py [--quick] [--scans ../shared/data]`.

A real CT is prepared at 1.5 mm; random crops of 112×112×128 voxels are read for the first time, when their bricks are
checked, and again, when they are not, with the file in the page cache. Beside it: how fast XXH3 and zlib's CRC-32 go
through memory, and the checksum of the weights of STU-Net-B. Times are CPU seconds of one core; the last line is JSON.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from measure import machine, report
from xxhash import xxh3_64_intdigest

from anatomask.data.datasets.base import RawCase, nifti_image
from anatomask.data.fingerprint import ChannelFingerprint, Fingerprint
from anatomask.data.index import write_index
from anatomask.data.preprocess import prepare_case
from anatomask.data.records import DatasetInfo
from anatomask.data.samples import random_origin
from anatomask.data.shards import PreparedDataset, write_case
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig

SCAN = "scans/nlst_101287_chest.nii.gz"
CROP = (112, 112, 128)
SPACING = (1.5, 1.5, 1.5)
BRICK = 32
EPOCHS = 1000
"""Epochs of one reader, each of which reads a crop of every case."""


def main() -> None:
    """Measure, and print."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(arguments.scans) / SCAN
        shape = write_shard(Path(folder), path)
        first, again, whole = crops(folder, shape, arguments.rounds)
    block = np.random.default_rng(0).bytes(2**26)
    speed = {
        name: len(block) / seconds(check, block) / 1e9
        for name, check in (("xxh3", xxh3_64_intdigest), ("crc32", zlib.crc32))
    }
    parameters = sum(tensor.numel() for tensor in STUNet(STUNetConfig(), 104).state_dict().values())
    weights = 4 * parameters / speed["xxh3"] / 1e9
    result = {
        "checking_over_loading_first": (first - again) / again,
        "checking_over_loading": whole / (EPOCHS * again),
        "crop_first_s": first,
        "crop_again_s": again,
        "volume_s": whole,
        "gb_per_s": speed,
        "weights_s": weights,
        "parameters": parameters,
        "shape": shape,
        "machine": machine("cpu"),
    }
    rows = [
        ["crop, bricks checked", f"{1e3 * first:.2f} ms"],
        ["crop, checked before", f"{1e3 * again:.2f} ms"],
        ["checking the whole volume, once", f"{1e3 * whole:.2f} ms"],
        [f"share of loading over {EPOCHS} epochs", f"{100 * result['checking_over_loading']:.2f} %"],
        ["XXH3 / CRC-32 from memory", f"{speed['xxh3']:.1f} / {speed['crc32']:.1f} GB/s"],
        [f"weights of {parameters / 1e6:.0f} M parameters", f"{1e3 * weights:.0f} ms"],
    ]
    report(f"Checksums of {path.name} at 1.5 mm, {shape} voxels", ["", "one core"], rows, result)


def write_shard(folder: Path, scan: Path) -> tuple[int, ...]:
    """Prepare a CT into `folder`; return its shape in voxels."""
    case = prepare_case(RawCase("scan", "scan", (nifti_image(scan),)), ["ct"], [], SPACING)
    record = write_case(str(folder), case, BRICK, "none")
    info = DatasetInfo("bench", "folder", ("CT",), ("ct",), {}, {}, SPACING, BRICK, "none")
    fingerprint = Fingerprint((ChannelFingerprint("CT", "ct", -1000, 1000, 0, 300),))
    write_index(str(folder), info, [record], {"train": ("scan",)}, fingerprint)
    return record.shape


def crops(folder: str, shape: tuple[int, ...], rounds: int) -> tuple[float, float, float]:
    """Read crops at random places, each by a new reader: seconds of the first time, of the second, of all bricks."""
    first, again, whole = [], [], []
    for number in range(rounds + 1):
        origin = random_origin(shape, CROP, np.random.default_rng(number))
        reader = PreparedDataset.open(folder)
        reader.bytes_touched("scan", origin, CROP, label=False)  # the footer is read
        times = [seconds(reader.read_crop, "scan", origin, CROP, label=False, pad=False, repeats=1) for _ in range(2)]
        reader = PreparedDataset.open(folder)
        reader.bytes_touched("scan", origin, CROP, label=False)
        volumes = [seconds(reader.read_volume, "scan", label=False, repeats=1) for _ in range(2)]
        if number:  # before, the file was not in memory
            first.append(times[0])
            again.append(times[1])
            whole.append(max(0.0, volumes[0] - volumes[1]))
    return median(first), median(again), median(whole)


def seconds(work: Callable[..., object], *arguments: object, repeats: int = 7, **options: object) -> float:
    """Return the CPU seconds of a call, the least of `repeats`."""
    best = math.inf
    for _ in range(repeats):
        start = time.process_time()
        work(*arguments, **options)
        best = min(best, time.process_time() - start)
    return best


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer crops: within a minute")
    parser.add_argument("--scans", default="../shared/data", help="folder of the real scans")
    arguments = parser.parse_args()
    arguments.rounds = 10 if arguments.quick else 50
    return arguments


if __name__ == "__main__":
    main()
