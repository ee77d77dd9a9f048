"""Anatomy in a scan, whatever its header says: where the body is, and in a CT the spine and the lungs.

All of it works on a coarse copy of the volume, in RAS axes. The limits were set on 203 head-and-neck CTs and on CTs
of chest, abdomen and trunk: as they lie, none of them contradicts its header; turned over, those of the trunk do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

COARSE_MM = 4.0
SOLID_HU = -300.0
BONE_HU = 200.0
LUNG_HU = (-970.0, -500.0)
"""Range in HU of lung: denser than the gas in a bowel, lighter than tissue."""
THUMBNAIL = 16
"""Voxels along each edge of a thumbnail."""


@dataclass(frozen=True)
class Coarse:
    """Copy of a scan with voxels of about `COARSE_MM`, in RAS axes."""

    image: np.ndarray
    """Voxels (X, Y, Z) in float32."""
    body: np.ndarray
    """Mask (X, Y, Z) of the body and all that lies in it; empty when nothing stands out from the air."""
    spacing: tuple[float, float, float]
    steps: tuple[int, int, int]
    """Voxels of the scan along each edge of a coarse voxel."""
    hu: bool
    """True if the image is in HU."""

    def surrounds(self, box: tuple[slice, ...]) -> np.ndarray:
        """Return whether the voxels of a box of the scan lie in the body, or within a coarse voxel of it."""
        index = (
            np.minimum(np.arange(part.start, part.stop) // step, n - 1)
            for part, step, n in zip(box, self.steps, self.body.shape, strict=True)
        )
        return self._near[np.ix_(*index)]

    @cached_property
    def _near(self) -> np.ndarray:
        return np.asarray(ndimage.binary_dilation(self.body))


def coarse(volume: np.ndarray, spacing: Sequence[float], *, hu: bool) -> Coarse:
    """Average a volume (D, H, W) in RAS axes over blocks of about 4 mm, and find the body in it."""
    a, b, c = (min(max(1, round(COARSE_MM / mm)), n) for mm, n in zip(spacing, volume.shape, strict=True))
    steps = (a, b, c)
    x, y, z = (n // step for n, step in zip(volume.shape, steps, strict=True))
    blocks = volume[: x * a, : y * b, : z * c].reshape(x, a, y, b, z, c)
    image = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
    sizes = (spacing[0] * a, spacing[1] * b, spacing[2] * c)
    return Coarse(image, _body(image, hu=hu), sizes, steps, hu)


def thumbnail(scan: Coarse) -> np.ndarray | None:
    """Resample the body's bounding box to 16×16×16 grey values (uint8), to compare scans; None without a body."""
    if not scan.body.any():
        return None
    low, high = (-1000.0, 400.0) if scan.hu else np.percentile(scan.image, (1, 99))
    if high <= low:
        return None
    box = scan.image[tuple(_box(scan.body, axis) for axis in range(3))]
    smooth = ndimage.gaussian_filter(box, [max(0.0, n / THUMBNAIL / 2 - 0.3) for n in box.shape])
    centres = [(np.arange(THUMBNAIL) + 0.5) * n / THUMBNAIL - 0.5 for n in box.shape]
    small = ndimage.map_coordinates(smooth, np.meshgrid(*centres, indexing="ij"), order=1, mode="nearest")
    return np.rint(255 * np.clip((small - low) / (high - low), 0, 1)).astype(np.uint8)


def spine_behind(scan: Coarse) -> float | None:
    """Return the share of the midline's bone that lies in the back half of the body; None where no trunk is seen.

    The spine makes the share 0.83 to 0.95 in trunks, whether the patient lies on the back or on the face. A trunk needs
    at least 15 cm of slices whose section is that of a trunk (300 cm²) and lies within the image on all sides; heads
    and limbs are not judged.
    """
    if not scan.hu:
        return None
    shares = []
    for body, image in zip(np.moveaxis(scan.body, 2, 0), np.moveaxis(scan.image, 2, 0), strict=True):
        if _areas(body, scan) < 300 or _touching(body) > 0.25:
            continue
        columns, rows = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
        third = (columns[-1] - columns[0]) / 3
        middle = slice(int(columns[0] + third), int(columns[-1] - third) + 1)
        bone = (image[middle] > BONE_HU) & body[middle]
        if _areas(bone, scan) >= 3:
            shares.append(np.mean(np.nonzero(bone)[1] < (rows[0] + rows[-1]) / 2))
    return float(np.mean(shares)) if len(shares) * scan.spacing[2] >= 150 else None


def lungs_above(scan: Coarse) -> bool | None:
    """Return whether the lungs lie on top in a CT that cuts through them at one end; None where it does not.

    The other end of the CT decides. If it is half as wide as the chest, it is the neck or the head. If it is as wide as
    the chest, and 10 cm or more away from the lungs, where no shoulders are, it is the belly.
    """
    height = scan.image.shape[2] * scan.spacing[2]
    if not scan.hu or not 150 <= height <= 600:
        return None
    inner = ndimage.binary_erosion(scan.body, np.ones((3, 3, 1)), iterations=2)
    lung = inner & (scan.image > LUNG_HU[0]) & (scan.image < LUNG_HU[1])
    bodies, lungs = _areas(scan.body, scan), _areas(lung, scan)
    slices = max(1, round(20 / scan.spacing[2]))
    for above in (True, False):
        chest_first = slice(None, None, -1 if above else 1)
        body, air = bodies[chest_first], lungs[chest_first]
        chest, other = body[:slices].mean(), body[-slices:].mean()
        if chest < 350 or air[:slices].mean() < 40 or air[-slices:].mean() > 0.25 * air[:slices].mean():
            continue
        airless = len(air) - 1 - np.flatnonzero(air > 0.1 * air[:slices].mean())[-1]
        if other >= 0.8 * chest and airless * scan.spacing[2] >= 100:
            return above
        if other <= 0.45 * chest:
            return not above
    return None


def _body(image: np.ndarray, *, hu: bool) -> np.ndarray:
    """Find what stands out from the air, without specks, and fill its holes slice by slice."""
    if hu:
        threshold = SOLID_HU
    else:
        low, high = np.percentile(image, (1, 99))
        threshold = low + 0.1 * (high - low)
    solid = image > threshold
    if hu:
        solid = ndimage.binary_opening(solid)  # cuts the table off
    parts, count = ndimage.label(solid)
    if not count:
        return solid
    sizes = np.bincount(parts.ravel())[1:]
    kept = np.flatnonzero(sizes >= 0.05 * sizes.max()) + 1
    body = np.isin(parts, kept)
    return np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(body, 2, 0)], axis=2)


def _box(body: np.ndarray, axis: int) -> slice:
    """Find the range along one axis that holds 99 % of the body."""
    others = tuple(other for other in range(3) if other != axis)
    share = np.cumsum(body.sum(axis=others)) / body.sum()
    start, stop = np.searchsorted(share, (0.005, 0.995))
    return slice(int(start), int(stop) + 1)


def _areas(mask: np.ndarray, scan: Coarse) -> np.ndarray:
    """Return the area in cm² of an axial section (X, Y), or of each of several sections (X, Y, Z)."""
    return mask.sum(axis=(0, 1)) * (scan.spacing[0] * scan.spacing[1] / 100)


def _touching(section: np.ndarray) -> float:
    """Return the largest share of an image edge that any axial section of the body touches."""
    return float(max(edge.mean() for edge in (section[0], section[-1], section[:, 0], section[:, -1])))
