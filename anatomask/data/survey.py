"""Facts of one raw case, which a survey shows and from which its suspicions are derived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations
from scipy import ndimage

from anatomask.data.anatomy import Coarse, coarse, lungs_above, spine_behind, thumbnail
from anatomask.data.datasets.base import RawCase, is_nifti
from anatomask.data.datasets.folder import AIR_HU, looks_like_ct
from anatomask.data.fingerprint import Histogram, Scheme
from anatomask.data.memory import TooLarge, available_memory, bytes_to_read, product
from anatomask.data.nifti import header_doubt
from anatomask.data.organs import Organ
from anatomask.data.preprocess import read_images, read_label, shared_grid
from anatomask.data.records import Affine, Shape, affine_rows, triple
from anatomask.errors import UserError, unexpected

BINS = 128
"""Number of bins of a channel's histogram, between `low` and `high`."""
FEW_VALUES = 256
"""Number of distinct values from which on a channel is a scan; one with fewer may be a label map."""


@dataclass(frozen=True)
class ChannelFacts:
    """Intensity statistics of one channel, in its own unit."""

    minimum: float
    maximum: float
    low: float
    """The 0.1th percentile."""
    median: float
    high: float
    """The 99.9th percentile."""
    distinct: int
    """Number of different values."""
    at_minimum: float
    """Share of the voxels that have the smallest value."""
    air: float
    """Share of the voxels that are as dark as only air in HU is."""
    flat: float
    """Share of equal neighbours among voxels other than the smallest; near 1 for a label map."""
    histogram: tuple[int, ...]
    """Voxels in `BINS` equal bins from `low` to `high`; the outermost bins include what lies beyond."""


@dataclass(frozen=True)
class ClassFacts:
    """One class in one case."""

    organ: Organ
    mean: float
    """Mean of the first channel."""
    outside: float
    """Share of its voxels that lie outside the body."""


@dataclass(frozen=True)
class ImageFacts:
    """Facts of the images of one case."""

    shape: Shape
    """Shape in RAS axes."""
    spacing: tuple[float, float, float]
    """Voxel size in mm, in RAS axes."""
    orientation: str
    """Directions of the axes as stored, such as "LPS"."""
    affine: Affine
    """Affine as stored."""
    channels: tuple[ChannelFacts, ...]
    digest: str
    """Digest of the first channel's voxels in any order: mirroring does not change it."""
    spine_behind: float | None
    lungs_above: bool | None
    header_doubt: str


@dataclass(frozen=True)
class LabelFacts:
    """Facts of the label map of one case."""

    classes: Mapping[int, ClassFacts]
    """Classes that the label map holds."""
    unknown: tuple[float, ...]
    """Values that the data set does not list."""


@dataclass(frozen=True)
class CaseFacts:
    """Facts of a case, or the reason why it cannot be read."""

    case: str
    labelled: bool
    images: ImageFacts | None = None
    label: LabelFacts | None = None
    image_error: str = ""
    label_error: str = ""
    thumbnail: np.ndarray | None = None
    """Thumbnail (16, 16, 16) uint8, RAS."""


@dataclass(frozen=True)
class Volumes:
    """One case in memory, in RAS axes."""

    images: tuple[np.ndarray, ...]
    """Volumes (X, Y, Z), one per channel."""
    spacing: tuple[float, float, float]
    affine: np.ndarray
    label: np.ndarray | None
    label_error: str
    stored_affine: np.ndarray


def read_case(raw: RawCase, memory: int | None = None) -> Volumes:
    """Read a case as `prepare` does, but continue without a label that is broken or on another grid.

    Args:
        raw: the case's files.
        memory: bytes that reading it may take at its peak. Default: what the machine has free.

    Raises:
        TooLarge: the case would take more; only headers were read.
        UserError: the images cannot be read; the message names the file.
    """
    grid = shared_grid(raw)
    needs, limit = bytes_to_read(grid.shape, len(raw.images)), available_memory() if memory is None else memory
    if needs > limit:
        raise TooLarge(f"{raw.images[0].path} has {product(grid.shape)} voxels", needs, limit)
    volumes, affine = read_images(raw.images)
    shape = volumes[0].shape
    label, error = None, ""
    if raw.label is not None:
        try:
            label = read_label(raw.label, raw.images[0].path, shape, affine)
        except Exception as broken:  # as in `survey_case`: the image is worth looking at all the same
            label, error = None, _message(raw.label.path, broken)
    to_ras = nib.io_orientation(affine)
    ras_affine = affine @ orientations.inv_ornt_aff(to_ras, shape)
    return Volumes(
        images=tuple(orientations.apply_orientation(volume, to_ras) for volume in volumes),
        spacing=triple(nib.affines.voxel_sizes(ras_affine), float),
        affine=ras_affine,
        label=None if label is None else orientations.apply_orientation(label, to_ras),
        label_error=error,
        stored_affine=affine,
    )


def survey_case(
    raw: RawCase, schemes: Sequence[Scheme], classes: Mapping[int, str], memory: int | None = None
) -> CaseFacts:
    """Collect the facts of one case; an unreadable case is a fact too.

    Args:
        raw: the case's files.
        schemes: per channel.
        classes: the ids that the label may hold besides 0.
        memory: bytes that it may take at its peak. Default: what the machine has free.

    Raises:
        TooLarge: the case would take more than `memory`, if that is given.
    """
    labelled = raw.label is not None
    try:
        volumes = read_case(raw, memory)
        hu = schemes[0] == "ct" or looks_like_ct(volumes.images[0])
        scan = coarse(volumes.images[0], volumes.spacing, hu=hu)
        return CaseFacts(
            case=raw.case,
            labelled=labelled,
            images=_image_facts(raw, volumes, scan),
            label=None if volumes.label is None else _label_facts(volumes.label, volumes, scan, classes),
            label_error=volumes.label_error,
            thumbnail=thumbnail(scan),
        )
    except Exception as error:  # whatever a broken file makes its library do: the other cases go on
        if isinstance(error, TooLarge) and memory is not None:
            raise
        return CaseFacts(raw.case, labelled, image_error=_message(raw.images[0].path, error))


def _message(path: Path, error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else unexpected(path, error)


def _image_facts(raw: RawCase, volumes: Volumes, scan: Coarse) -> ImageFacts:
    histograms = [Histogram.of(_plain(image)) for image in volumes.images]
    return ImageFacts(
        shape=triple(volumes.images[0].shape, int),
        spacing=volumes.spacing,
        orientation="".join(nib.aff2axcodes(volumes.stored_affine)),
        affine=affine_rows(volumes.stored_affine),
        channels=tuple(map(_channel_facts, volumes.images, histograms)),
        digest=_digest(volumes.images[0].shape, histograms[0]),
        spine_behind=spine_behind(scan),
        lungs_above=lungs_above(scan),
        header_doubt=next(filter(None, (_doubt(image.path) for image in raw.images)), ""),
    )


def _plain(image: np.ndarray) -> np.ndarray:
    """Convert scaled voxels (float64) to float32: half the memory, and rounding does not matter here."""
    return image.astype(np.float32) if image.dtype == np.float64 else image


def _doubt(path: Path) -> str:
    return header_doubt(path) if is_nifti(path) else ""


def _channel_facts(image: np.ndarray, histogram: Histogram) -> ChannelFacts:
    low, median, high = (histogram.percentile(percent) for percent in (0.1, 50, 99.9))
    values, counts = histogram.values, histogram.counts
    minimum = float(values[0])
    width = (high - low) / BINS or 1.0
    bins = np.clip((values - low) / width, 0, BINS - 1).astype(np.int64)
    return ChannelFacts(
        minimum=minimum,
        maximum=float(values[-1]),
        low=low,
        median=median,
        high=high,
        distinct=len(values),
        at_minimum=float(counts[0] / histogram.total),
        air=float(counts[values < AIR_HU].sum() / histogram.total),
        flat=_flatness(image, minimum) if 1 < len(values) <= FEW_VALUES else 0.0,
        histogram=tuple(int(count) for count in np.bincount(bins, weights=counts, minlength=BINS)),
    )


def _flatness(image: np.ndarray, minimum: float) -> float:
    one, other = image[1:], image[:-1]
    inside = (one != minimum) & (other != minimum)
    return float(np.mean(one[inside] == other[inside])) if inside.any() else 0.0


def _digest(shape: Sequence[int], histogram: Histogram) -> str:
    """Hash the number of voxels of each value: two different scans never agree in all of them, mirrored copies do."""
    digest = sha256(repr(sorted(shape)).encode())
    digest.update(histogram.values.tobytes())
    digest.update(histogram.counts.tobytes())
    return digest.hexdigest()[:32]


def _label_facts(label: np.ndarray, volumes: Volumes, scan: Coarse, classes: Mapping[int, str]) -> LabelFacts:
    found = np.unique(label)
    unknown = tuple(float(value) for value in found if value != 0 and value not in classes)
    known = [int(value) for value in found if value in classes]
    boxes = ndimage.find_objects(np.where(np.isin(label, known), label, 0).astype(np.int32))
    return LabelFacts({c: _class_facts(label, c, boxes[c - 1], volumes, scan) for c in known}, unknown)


def _class_facts(label: np.ndarray, c: int, box: tuple[slice, ...], volumes: Volumes, scan: Coarse) -> ClassFacts:
    own = label[box] == c
    voxels = int(own.sum())
    middle = np.array([part.start for part in box]) + ndimage.center_of_mass(own)
    centre = volumes.affine[:3, :3] @ middle + volumes.affine[:3, 3]
    outside = 1 - float(scan.surrounds(box)[own].mean()) if scan.body.any() else 0.0
    organ = Organ(voxels * float(np.prod(volumes.spacing)) / 1000, triple(centre, float))
    return ClassFacts(organ, float(volumes.images[0][box][own].mean(dtype=np.float64)), outside)
