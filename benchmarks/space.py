"""Disk space of a scan: `python benchmarks/space.py [--nnunet-python VENV/bin/python]`.

The real CT scans, prepared at 1.5 mm, are written as our shards with each codec, as NIfTI, as nnU-Net's Blosc2 array
(by nnU-Net, in its own environment), and as float32 `.npy`; without labels. The last line is JSON.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
from loader import child, folder_bytes
from measure import machine, report

SPACING = (1.5, 1.5, 1.5)


def main() -> None:
    """Write, measure, and print."""
    arguments = parse()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        sources, voxels = write_all(Path(arguments.scans), folder, arguments.limit)
        if arguments.nnunet_python:
            child(arguments.nnunet_python, "nnunet-write", folder, 0)
            for label in (folder / "nnunet").glob("*_seg.b2nd"):
                label.unlink()
        found = {path.name: folder_bytes(path) for path in sorted(folder.iterdir()) if path.name != "raw"}
    scans = len(sources)
    rows = [
        [name, f"{size / scans / 2**20:.1f}", f"{size / voxels:.2f}", f"{size / found['float32 npy']:.2f}"]
        for name, size in sorted(found.items(), key=lambda item: item[1])
    ]
    result = {
        "mib_per_scan": {name: size / scans / 2**20 for name, size in found.items()},
        "bytes_per_voxel": {name: size / voxels for name, size in found.items()},
        "scans": sources,
        "voxels": voxels,
        "machine": machine("cpu"),
    }
    report(f"{scans} real CT scans at 1.5 mm", ["", "MiB per scan", "bytes per voxel", "of float32"], rows, result)


def write_all(scans: Path, folder: Path, limit: int) -> tuple[list[str], int]:
    """Write every CT below `scans` in each form except nnU-Net's; return their names and total number of voxels."""
    import nibabel as nib

    from anatomask.data.bricks import Codec
    from anatomask.data.datasets.base import RawCase, nifti_image
    from anatomask.data.preprocess import prepare_case
    from anatomask.data.shards import write_case

    for name in ("raw", "NIfTI (.nii.gz)", "float32 npy"):
        (folder / name).mkdir()
    names, voxels = [], 0
    paths = [*sorted((scans / "scans").glob("*.nii.gz")), *sorted((scans / "totalsegmentator").rglob("ct.nii.gz"))]
    for path in paths[:limit]:
        case = path.parent.name if path.name == "ct.nii.gz" else path.name.removesuffix(".nii.gz")
        if np.mean(np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj) < -500) < 1e-3:  # CT has air
            continue
        prepared = prepare_case(RawCase(case, case, (nifti_image(path),)), ["ct"], [], SPACING)
        for codec in get_args(Codec):
            write_case(str(folder / f"shards, {codec}"), prepared, 32, codec)
        volume = prepared.images[0]
        np.save(folder / "raw" / f"{case}.npy", volume)
        np.save(folder / "float32 npy" / f"{case}.npy", volume.astype(np.float32))
        nib.save(nib.Nifti1Image(volume, prepared.affine), folder / "NIfTI (.nii.gz)" / f"{case}.nii.gz")
        names.append(case)
        voxels += volume.size
    return names, voxels


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three scans: within a minute")
    parser.add_argument("--nnunet-python", default="", help="Python that has nnunetv2. Default: nnU-Net is left out")
    parser.add_argument("--scans", default="../shared/data", help="folder of the real scans")
    parser.add_argument("--scratch", help="folder for what is written; default: the system's temporary one")
    arguments = parser.parse_args()
    arguments.limit = 3 if arguments.quick else None
    return arguments


if __name__ == "__main__":
    main()
