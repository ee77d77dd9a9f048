"""Settings of reading, preparing and generating scans."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from anatomask.data.fingerprint import Scheme
from anatomask.settings import Settings

Codec = Literal["none", "lz4", "lz4hc", "zstd"]


@dataclass(frozen=True)
class ReaderConfig(Settings):
    """Settings of reading the source. Except `cases`, a field without meaning in the source's layout is refused."""

    cases: str = ""
    """Text file with the name of a case per line: only these are prepared. Any layout."""
    modality: Literal["all", "ct", "mr", "pet"] = "all"
    """Scans to take where a source mixes modalities: amos22 (ct is the challenge's task 1, all its task 2), dicom."""
    positives_only: bool = False
    """Leave out studies whose label is empty: autopet2."""
    image: str = ""
    """Pattern of the scans, as "*_ct.nii.gz" or "images/*.nii.gz"; what * stands for names the case: folder. Default:
    all NIfTI files that are not label maps beside scans."""
    label: str = ""
    """Pattern of the label maps, as "*_seg.nii.gz"; * stands for the same text as in the scan's name: folder. Default:
    files that are named like label maps (seg, mask, label), where one lies beside a scan of the same grid."""
    label_names: str = ""
    """JSON file of the classes, as {"liver": 1, "spleen": 2}: folder. Default: the values of the label maps."""
    patient: str = ""
    """Regular expression of the patient in a scan's path, or its first group, as "P[0-9]+": folder. Default: BIDS'
    sub-XX, else the topmost folder that may name a patient, else the case."""
    plans: str = ""
    """File of nnU-Net's plans whose voxel size is taken: nnunet. Default: planned from the scans, as nnU-Net does."""
    configuration: str = "3d_fullres"
    """Configuration of the plans: nnunet, nnunet_preprocessed; of the latter also the folder of its files."""


@dataclass(frozen=True)
class PreprocessConfig(Settings):
    """Settings of turning a raw scan into a prepared volume."""

    spacing: tuple[float, float, float] | None = None
    """Target voxel size in mm (R, A, S). Default: the data set's own, else default_spacing."""
    default_spacing: tuple[float, float, float] | None = None
    """Voxel size in mm of a recipe that is named, for data sets that define none. Default: planned from the scans as
    nnU-Net does: their median, or a tenth percentile across thick slices."""
    normalisation: tuple[Scheme, ...] = ()
    """Scheme per channel: ct (whole HU) and quantitative (any other unit) clip and z-score by the data set, zscore
    z-scores by the scan, none changes nothing. Default: the schemes that the data set's reader chooses."""
    classes: tuple[str, ...] = ()
    """Classes to keep, renumbered from 1 in this order; the others become background. Default: all."""
    brick: int = 32
    """Edge in voxels of the cubes in which a volume is stored."""
    codec: Codec = "none"
    """Compression of the cubes: none reads fastest, lz4 and lz4hc need half the space, zstd less (docs/loading.md)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(0.001, 1000, "spacing", "default_spacing")
        self.require_range(8, 512, "brick")
        self.require_distinct("classes")


@dataclass(frozen=True)
class PreparePlanConfig(Settings):
    """Settings of the plan that `--dry-run` prints. They do not change what is prepared."""

    cases: int | None = None
    """Number of cases to plan for, like those of the source. Default: the number in the source."""
    sample: int = 3
    """Number of cases that are prepared in a temporary folder, to measure bytes and CPU time; 0 skips this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 1_000_000_000, "cases")
        self.require_range(0, 1000, "sample")


@dataclass(frozen=True)
class PhantomConfig(Settings):
    """Phantom scans in the layout of TotalSegmentator v1."""

    out: str
    """Folder to write; it becomes the data set's root."""
    cases: int = 12
    """Number of scans."""
    size: int = 96
    """Typical number of voxels along the left-right axis; the body fills it, whatever the spacing."""
    spacing: float = 3.0
    """Typical voxel size in mm; each case varies about it."""
    seed: int = 0
    """Seed of everything that is random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 1_000_000, "cases")
        self.require_range(32, 1024, "size")
        self.require_range(0.01, 100, "spacing")
        self.require_range(0, math.inf, "seed")
