"""Readers of raw data sets, one file each. A new one is such a file and a line in `READERS`."""

from __future__ import annotations

from pathlib import Path

from anatomask.data.datasets import folder, nnunet, totalsegmentator
from anatomask.data.datasets.base import RawCase, RawDataset, RawLabel, Reader
from anatomask.errors import UserError

READERS: dict[str, Reader] = {
    "totalsegmentator": totalsegmentator.READER,
    "nnunet": nnunet.READER,
    "folder": folder.READER,
}
"""In the order in which `detect` asks them."""


def detect(source: Path) -> str:
    """The name of the first reader whose layout the folder has.

    Raises:
        UserError: the folder is missing, or there are no scans that any reader knows.
    """
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; --source names the folder of raw scans")
    for name, reader in READERS.items():
        if reader.matches(source):
            return name
    raise UserError(f"{source} holds no scans (.nii or .nii.gz) in a layout that is known: {', '.join(READERS)}")


def read_dataset(source: Path, dataset: str = "auto", fold: int = 0) -> RawDataset:
    """The data set in a folder.

    Args:
        source: the folder as downloaded.
        dataset: a key of `READERS`, or "auto".
        fold: of a given `splits_final.json`.

    Raises:
        UserError: the folder is missing or empty, the layout is unknown or broken.
    """
    found = detect(source)
    if dataset == "auto":
        dataset = found
    if dataset not in READERS:
        raise UserError(f"--dataset {dataset} is unknown; it may be auto, {', '.join(READERS)}")
    if not READERS[dataset].matches(source):
        raise UserError(f"{source} does not have the layout {dataset}; it looks like {found}")
    raw = READERS[dataset].read(source, fold)
    if not raw.cases:
        raise UserError(f"{source} holds no scans")
    return raw


__all__ = ["READERS", "RawCase", "RawDataset", "RawLabel", "Reader", "detect", "read_dataset"]
