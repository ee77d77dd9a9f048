"""Readers of raw data sets, one file each. A new one is such a file and a line in `READERS`, or an extension."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

from anatomask.data.classes import select_classes
from anatomask.data.datasets import (
    amos22,
    autopet2,
    dicom,
    flare22,
    folder,
    nnunet,
    nnunet_preprocessed,
    npz,
    totalsegmentator,
)
from anatomask.data.datasets.base import RawCase, RawDataset, RawImage, RawLabel, Reader
from anatomask.data.datasets.refusals import with_refusals
from anatomask.data.listing import faults
from anatomask.data.settings import ReaderConfig
from anatomask.data.splits import keep
from anatomask.errors import UserError, reason
from anatomask.files import refuse_pipe
from anatomask.plugins import with_extensions

READERS: dict[str, Reader] = {
    "totalsegmentator": totalsegmentator.READER,
    "totalsegmentator_v2": totalsegmentator.READER_V2,
    "flare22": flare22.READER,
    "amos22": amos22.READER,
    "autopet2": autopet2.READER,
    "nnunet": nnunet.READER,
    "nnunet_preprocessed": nnunet_preprocessed.READER,
    "folder": folder.READER,
    "npz": npz.READER,
    "dicom": dicom.READER,
}
"""Readers by name, in the order in which `detect` tries them."""


def readers() -> dict[str, Reader]:
    """Return all readers by name, those of extensions first, because they may know a layout better."""
    every: dict[str, Reader] = with_extensions("READERS", READERS)
    return {name: every[name] for name in [*(name for name in every if name not in READERS), *READERS]}


def detect(source: Path) -> str:
    """Find the first reader whose layout the folder has, and return its name.

    Raises:
        UserError: the folder is missing, or holds no scans that any reader knows.
    """
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; name the folder of raw scans")
    for name, reader in readers().items():
        if reader.matches(source):
            return name
    hidden = "".join(f"; {path}: {why}" for path, why in islice(faults(source), 1))
    raise UserError(
        f"{source} holds no scans (NIfTI, NPZ or DICOM) in a layout that is known; choose another "
        f"folder, or make it one of {', '.join(readers())}, as in docs/datasets.md{hidden}"
    )


def read_dataset(source: Path, dataset: str = "auto", fold: int = 0, options: ReaderConfig | None = None) -> RawDataset:
    """Read the data set in a folder.

    Args:
        source: the folder as downloaded.
        dataset: a name of `readers`, or "auto".
        fold: of a given `splits_final.json`.
        options: what to read of it. Default: everything.

    Raises:
        UserError: the folder is missing or empty, the layout is unknown or broken, or an option does not apply to it.
    """
    options = options or ReaderConfig()
    known = readers()
    if dataset != "auto" and dataset not in known:
        raise UserError(f"--dataset {dataset} is unknown; it may be auto, {', '.join(known)}, or of a --plugin FILE.py")
    if dataset == "auto" or not source.is_dir():
        dataset = detect(source)
    elif not known[dataset].matches(source):
        raise UserError(f"{source} does not have the layout {dataset}; it looks like {detect(source)}")
    refuse_foreign(dataset, options)
    return checked(known[dataset].read(source, fold, options), source, options)


def checked(raw: RawDataset, source: Path, options: ReaderConfig) -> RawDataset:
    """Refuse what no reader can use, keep the cases that the options name, and number the classes 1 … K.

    Raises:
        UserError: there are no cases, two have one name, or the options name a case that is not there.
    """
    raw = with_refusals(raw, source)
    if not raw.cases:
        raise UserError(f"{source} holds no scans{''.join(f'; {text}' for text in raw.remarks)}; choose another folder")
    twice = [case for case, count in Counter(raw.case for raw in raw.cases).items() if count > 1]
    if twice:
        raise UserError(f"{source}: two scans would both be case {twice[0]!r}; rename one of them")
    if list(raw.class_names) != list(range(1, len(raw.class_names) + 1)):
        raw = select_classes(raw, list(raw.class_names.values()))
    return _listed(raw, Path(options.cases)) if options.cases else raw


def refuse_foreign(dataset: str, options: ReaderConfig) -> None:
    """Check that the layout's reader uses every option that is set.

    Raises:
        UserError: the reader ignores an option that is set.
    """
    known = readers()
    for field in fields(options):
        foreign = field.name not in known[dataset].options | {"cases"}
        if foreign and getattr(options, field.name) != field.default:
            heeding = ", ".join(name for name, reader in known.items() if field.name in reader.options)
            flag = f"--reader.{field.name.replace('_', '-')}"
            raise UserError(f"{flag} does not apply to {dataset}, only to {heeding}; leave it out")


def _listed(raw: RawDataset, path: Path) -> RawDataset:
    """Keep only the cases that the file names, one per line."""
    refuse_pipe(path, "--reader.cases")
    try:
        wanted = set(path.read_text(encoding="utf-8").split("\n")) - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--reader.cases {path} cannot be read as text ({reason(error)}); write a case per line"
        ) from error
    wanted = {line.strip() for line in wanted} - {""}
    known = {case.case for case in raw.cases}
    if not wanted:
        raise UserError(f"--reader.cases {path} names no case; write one per line")
    if wanted - known:
        raise UserError(f"--reader.cases {path} names {min(wanted - known)!r}; the cases are like {min(known)!r}")
    return replace(
        raw,
        cases=tuple(case for case in raw.cases if case.case in wanted),
        splits=raw.splits and keep(raw.splits, wanted),
        folds=tuple(keep(fold, wanted) for fold in raw.folds),
        held_back=raw.held_back & wanted,
    )


__all__ = [
    "READERS",
    "RawCase",
    "RawDataset",
    "RawImage",
    "RawLabel",
    "Reader",
    "ReaderConfig",
    "checked",
    "detect",
    "read_dataset",
    "refuse_foreign",
]
