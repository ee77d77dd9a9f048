"""Raw scans to be predicted, in a folder of any layout or in one file. Labels, splits and patients do not matter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from anatomask.data.datasets import checked, detect, read_dataset, refuse_foreign
from anatomask.data.datasets.base import (
    RawCase,
    RawDataset,
    case_name,
    is_nifti,
    nifti_files,
    nifti_image,
)
from anatomask.data.datasets.channels import group_channels
from anatomask.data.datasets.dicom import is_dicom
from anatomask.data.datasets.masks import find_masks
from anatomask.data.settings import ReaderConfig
from anatomask.errors import UserError
from anatomask.names import some


def read_scans(source: Path, dataset: str = "auto", options: ReaderConfig | None = None) -> RawDataset:
    """Find the scans in a folder, or the scan that one NIfTI file belongs to.

    A folder of NIfTI files that has no known layout holds a case per file, but for those that are named like label
    maps, and for the channels of one case (`group_channels`).

    Args:
        source: folder or file.
        dataset: layout of a folder, a name of `readers`, or "auto".
        options: what to read of it. Default: everything.

    Raises:
        UserError: there is no such folder or file, or no scan in it, or as `read_dataset`.
    """
    options = options or ReaderConfig()
    if source.is_file():
        if not is_nifti(source):
            advice = "name the folder of the series" if is_dicom(source) else "name a folder, or a file .nii or .nii.gz"
            raise UserError(f"{source} is not a NIfTI file; {advice}")
        if dataset != "auto" or options != ReaderConfig():
            raise UserError(f"--dataset and --reader choose among the files of a folder, and {source} is one file")
        same = [case for case in _grouped(_nifti_files(source.parent), source.parent) if source in case.paths]
        return checked(_plain(same), source, options)
    layout = detect(source) if dataset == "auto" else dataset
    if layout == "folder" and not (options.image or options.label):
        refuse_foreign(layout, options)
        files = sorted(nifti_files(source))
        scans = find_masks(files, source).scans
        labels = [str(path.relative_to(source)) for path in sorted({*files} - {*scans})]
        remarks = (f"{some(labels)} left out: named like a label map",) if labels else ()
        return checked(replace(_plain(_grouped(scans, source)), remarks=remarks), source, options)
    raw = read_dataset(source, layout, options=options)
    if raw.reader == "nnunet_preprocessed":
        raise UserError(f"{source} holds preprocessed scans, on grids of their own; name the folder of the raw ones")
    return replace(raw, cases=tuple(replace(case, label=None) for case in raw.cases))


def _nifti_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if is_nifti(path)]


def _plain(cases: Iterable[RawCase]) -> RawDataset:
    return RawDataset("folder", tuple(cases), (), (), {}, {})


def _grouped(files: Iterable[Path], source: Path) -> list[RawCase]:
    """Make the cases of files in a folder."""
    return [
        RawCase(name, name, tuple(map(nifti_image, paths)))
        for case, paths in group_channels(files)
        for name in [case_name(*paths[0].parent.relative_to(source).parts, case)]
    ]
