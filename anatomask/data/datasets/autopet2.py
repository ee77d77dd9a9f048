"""AutoPET II: `FDG-PET-CT-Lesions/PETCT_<id>/<study>/{CTres,SUV,SEG}.nii.gz`; channels 0 = CTres, 1 = SUV.

A patient may have several studies, which stay in one split. Half of the 1014 studies show no lesion.
`--reader.positives-only` leaves these out; to find them, it reads every SEG once (minutes for the whole data set).
"""

from __future__ import annotations

from pathlib import Path

from anatomask.data.datasets.base import (
    DEFAULT_NSD_TOLERANCE,
    RawCase,
    RawDataset,
    Reader,
    case_name,
    inner_folder,
    nifti_image,
    nifti_label,
    tell_reading,
)
from anatomask.data.nifti import read_nifti
from anatomask.data.settings import ReaderConfig

CHANNELS = ("CTres", "SUV")
LABEL = "SEG"


def _matches(source: Path) -> bool:
    return bool(_studies(source))


def _studies(source: Path) -> list[Path]:
    """List the folders with any of a study's files. Where one is missing, reading the case reports it."""
    root = inner_folder(source, "FDG-PET-CT-Lesions")
    files = (f"{name}.nii.gz" for name in (*CHANNELS, LABEL))
    return sorted({path.parent for file in files for path in root.glob(f"PETCT_*/*/{file}")})


def _read(source: Path, fold: int, options: ReaderConfig) -> RawDataset:
    studies = _studies(source)
    if options.positives_only:
        tell_reading(len(studies), "to find the studies with lesions")
    kept = [study for study in studies if _may_be_positive(study)] if options.positives_only else studies
    return RawDataset(
        reader="autopet2",
        cases=tuple(map(_case, kept)),
        channel_names=CHANNELS,
        schemes=("ct", "quantitative"),
        class_names={1: "tumour"},
        nsd_tolerance={1: DEFAULT_NSD_TOLERANCE},
        remarks=(f"{len(studies) - len(kept)} studies without lesions left out",) if options.positives_only else (),
    )


def _case(study: Path) -> RawCase:
    patient = study.parent.name
    images = tuple(nifti_image(study / f"{name}.nii.gz") for name in CHANNELS)
    return RawCase(case_name(patient, study.name), patient, images, nifti_label(study / f"{LABEL}.nii.gz"))


def _may_be_positive(study: Path) -> bool:
    """Return whether a lesion is drawn; True also for an unreadable label, whose preparation reports the reason."""
    try:
        return bool(read_nifti(study / f"{LABEL}.nii.gz")[0].any())
    except Exception:  # whatever a broken file makes its library do
        return True


READER = Reader(_matches, _read, frozenset({"positives_only"}))
