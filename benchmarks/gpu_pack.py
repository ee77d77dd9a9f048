"""Packing of prepared CTs into one small file: `python benchmarks/gpu_pack.py --data SHARDS --out FILE`.

HU become codes of 8 bits: steps of 3 HU from -200 to 250, where soft tissue lies, and coarser ones elsewhere. Codes and
labels are compressed with LZMA, of Python's own library. The file is safetensors, whose header holds everything else,
so that `gpu_volumes.py` can read it with only PyTorch installed.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anatomask.errors import UserError
from anatomask.parsing import from_json
from anatomask.weights.tensor_files import read_described, write_described

if TYPE_CHECKING:  # reading needs no Parquet
    from anatomask.data.shards import PreparedDataset

SOFT_TISSUE = (-200, 253)
"""Lowest and first excluded HU of the fine levels."""
LEVELS = np.unique(
    np.concatenate(
        [
            [-1024],
            np.arange(-980, SOFT_TISSUE[0], 64),
            np.arange(*SOFT_TISSUE, 3),
            np.arange(SOFT_TISSUE[1], 1600, 24),
            np.arange(1600, 3136, 64),
        ]
    )
).astype(np.int16)
"""HU of each code, ascending, at most 256. -500 HU, above which body begins, lies halfway between two of them."""
KIND = "packed scans"


@dataclass(frozen=True)
class Packed:
    """Contents of the file."""

    header: dict[str, Any]
    """Header: `levels`, `splits`, `class_names`, `spacing`, `normalisation`; by case `shape`, `minimum`, `labelled`."""
    codes: dict[str, np.ndarray]
    """Codes of each case, (D, H, W) uint8: indices of levels."""
    labels: dict[str, np.ndarray]
    """Label map of each labelled case, (D, H, W) uint8."""


def encode(voxels: np.ndarray) -> np.ndarray:
    """Find the nearest level of each HU: (…) uint8."""
    return np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, voxels).astype(np.uint8)


def pack(dataset: PreparedDataset, cases: Iterable[str], out: Path) -> dict[str, float]:
    """Write the file; return its size and the errors of the levels in HU.

    The errors are given for soft tissue (-175 to 250 HU), for the rest, and for the rest within the limits at which
    networks cut HU off.

    Raises:
        UserError: the images are not one channel of CT.
    """
    if tuple(dataset.info.schemes) != ("ct",):
        raise UserError(
            f"{dataset.shown} holds channels {', '.join(dataset.info.schemes)}: only one of ct can be packed"
        )
    names = sorted(cases)
    tensors: dict[str, torch.Tensor] = {}
    described: dict[str, dict[str, Any]] = {}
    low, high = dataset.normalisation(names[0])[0, :2]
    errors: dict[str, list[np.ndarray]] = {"soft": [], "rest": [], "seen_rest": []}
    for case in names:
        image, label = dataset.read_volume(case, label=dataset.records[case].labelled)
        voxels = image[0]
        codes = encode(voxels)
        error = np.abs(LEVELS[codes].astype(np.int32) - voxels)
        soft = (voxels >= -175) & (voxels <= 250)
        errors["soft"].append(np.bincount(error[soft]))
        errors["rest"].append(np.bincount(error[~soft]))
        errors["seen_rest"].append(np.bincount(error[~soft & (voxels >= low) & (voxels <= high)]))
        tensors[f"{case}.codes"] = compressed(codes)
        if label is not None:
            tensors[f"{case}.label"] = compressed(label)
        described[case] = {
            "shape": list(voxels.shape),
            "minimum": int(voxels.min()),
            "labelled": label is not None,
        }
    header = {
        "kind": KIND,
        "name": dataset.name,
        "levels": LEVELS.tolist(),
        "splits": {split: [case for case in members if case in described] for split, members in dataset.splits.items()},
        "class_names": {str(number): name for number, name in dataset.class_names.items()},
        "spacing": list(dataset.spacing),
        "normalisation": dataset.normalisation(names[0])[0].tolist(),
        "cases": described,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_described(out, tensors, header)
    found = {"cases": float(len(names)), "mb": out.stat().st_size / 1e6}
    for where, counts in errors.items():
        length = max(map(len, counts))
        total = np.sum([np.pad(count, (0, length - len(count))) for count in counts], axis=0)
        found[f"{where}_mean_error_hu"] = float((total * np.arange(length)).sum() / max(1, total.sum()))
        found[f"{where}_largest_error_hu"] = float(np.flatnonzero(total).max(initial=0))
    return found


def read_packed(path: Path) -> Packed:
    """Read the file that `pack` wrote.

    Raises:
        UserError: the file is missing, damaged, or another file.
    """
    stored = read_described(path, "copy or write it again", from_json)
    header = stored.header
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise UserError(f"{path} holds no packed scans: write it with `python benchmarks/gpu_pack.py`")

    def unpacked(name: str) -> np.ndarray:
        case, _, _ = name.rpartition(".")
        shape = header["cases"][case]["shape"]
        voxels = np.frombuffer(lzma.decompress(stored.tensors[name].numpy().data), np.uint8)
        return voxels.reshape(shape)

    try:
        with ThreadPoolExecutor() as pool:  # LZMA lets other threads run
            arrays = dict(zip(stored.tensors, pool.map(unpacked, stored.tensors), strict=True))
    except (lzma.LZMAError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): copy or write it again") from error
    return Packed(
        header,
        {name.removesuffix(".codes"): array for name, array in arrays.items() if name.endswith(".codes")},
        {name.removesuffix(".label"): array for name, array in arrays.items() if name.endswith(".label")},
    )


def compressed(voxels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(lzma.compress(voxels.tobytes(), preset=6)), np.uint8))


def main() -> None:
    """Pack, and print the size and the errors."""
    from anatomask.data.shards import PreparedDataset

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared CTs (`anatomask prepare`)")
    parser.add_argument("--out", type=Path, default=Path("data/openkbp.gpu"), help="file to write")
    arguments = parser.parse_args()
    try:
        dataset = PreparedDataset.open(str(arguments.data))
        found = pack(dataset, dataset.records, arguments.out)
    except UserError as error:
        raise SystemExit(str(error)) from error
    print(json.dumps(found))


if __name__ == "__main__":
    main()
