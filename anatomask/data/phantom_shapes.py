"""Solid shapes painted on a voxel grid with partial volume.

A shape is a *depth*: the depth in mm at which a voxel's centre lies inside it, negative outside. Depth gives the label
(depth above 0) and the share of the voxel that the shape fills, so that an edge is as soft as in a scan.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float32]
Point = tuple[float, float, float]
Region = tuple[slice, slice, slice]

EVERYWHERE: Region = (slice(None), slice(None), slice(None))
AIR = -1000.0


class Canvas:
    """CT numbers and labels on a grid whose voxels know where in the reference anatomy they lie.

    Attributes:
        points: (3, D, H, W) anatomical coordinates of each voxel, in mm: right, anterior, superior.
        hu: (D, H, W) CT numbers in HU.
        label: (D, H, W) class ids, 0 where there is none.
    """

    def __init__(self, axes: Sequence[Array], displacement: Array, softness: float) -> None:
        """Start with air.

        Args:
            axes: anatomical coordinates along each axis before deformation, in mm.
            displacement: (3, D, H, W) what the deformation adds to them, in mm.
            softness: width over which an edge fades, in mm: about a voxel.
        """
        self.axes = tuple(axes)
        self.points = displacement + np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
        self.reach = float(np.abs(displacement).max()) + softness
        self.softness = softness
        self.hu: Array = np.full(self.points.shape[1:], AIR, dtype=np.float32)
        self.label: NDArray[np.uint8] = np.zeros(self.points.shape[1:], dtype=np.uint8)

    def region(self, low: ArrayLike, high: ArrayLike) -> Region | None:
        """Select the part of the grid that a box from `low` to `high` (mm) may touch; None when it lies outside."""
        slices = []
        for axis, a, b in zip(self.axes, np.asarray(low), np.asarray(high), strict=True):
            start, stop = np.searchsorted(axis, [a - self.reach, b + self.reach])
            if start == stop:
                return None
            slices.append(slice(int(start), int(stop)))
        return slices[0], slices[1], slices[2]

    def paint(self, depth: Array, hu: float | Array, label: int | None = None, region: Region = EVERYWHERE) -> None:
        """Fill a shape with `hu`. A label of 0 clears the old label, None keeps it."""
        cover = np.clip(0.5 + depth / self.softness, 0, 1)
        self.hu[region] += cover * (hu - self.hu[region])
        if label is not None:
            self.label[region][depth > 0] = label

    def ellipsoid(
        self, centre: Point, radii: Point, turn: float = 0.0, tilt: float = 0.0
    ) -> tuple[Array, Region] | None:
        """Compute the depth in an ellipsoid, turned about the long axis of the body, then tilted sideways (degrees)."""
        reach = max(radii)
        region = self.region([c - reach for c in centre], [c + reach for c in centre])
        if region is None:
            return None
        x, y, z = (self.points[i][region] - np.float32(centre[i]) for i in range(3))
        x, y = _rotate(x, y, turn)
        x, z = _rotate(x, z, tilt)
        scaled = [u / np.float32(r) for u, r in zip((x, y, z), radii, strict=True)]
        rho = np.sqrt(sum(u * u for u in scaled)) + 1e-4
        slope = np.sqrt(sum((u / np.float32(r)) ** 2 for u, r in zip(scaled, radii, strict=True))) / rho + 1e-4
        return np.asarray((1 - rho) / slope, dtype=np.float32), region

    def tube(self, points: Sequence[Point], radii: Sequence[float] | float) -> tuple[Array, Region] | None:
        """Compute the depth in a chain of capsules through `points`, whose radius varies linearly between them."""
        widths = [float(radii)] * len(points) if isinstance(radii, int | float) else [float(r) for r in radii]
        wide = max(widths)
        low, high = np.min(points, axis=0) - wide, np.max(points, axis=0) + wide
        region = self.region(low, high)
        if region is None:
            return None
        depth = np.full([s.stop - s.start for s in region], -1e3, dtype=np.float32)
        for a, b, ra, rb in zip(points[:-1], points[1:], widths[:-1], widths[1:], strict=True):
            box = self.region(np.minimum(a, b) - max(ra, rb), np.maximum(a, b) + max(ra, rb))
            if box is None:
                continue
            inner = tuple(slice(s.start - r.start, s.stop - r.start) for s, r in zip(box, region, strict=True))
            depth[inner] = np.maximum(depth[inner], _capsule(self.points[(slice(None), *box)], a, b, ra, rb))
        return depth, region


def smooth_field(rng: np.random.Generator, shape: Sequence[int], knots: Sequence[int]) -> Array:
    """Draw a random field of unit variance, (D, H, W): random at `knots` places per axis, cubic between them."""
    field = rng.standard_normal(tuple(knots))
    for count, size in zip(knots, shape, strict=True):
        weights = CubicSpline(np.arange(count), np.eye(count))(np.linspace(0, count - 1, size))
        field = np.tensordot(field, weights, axes=(0, 1))  # the next axis comes first
    return np.ascontiguousarray(field / field.std(), dtype=np.float32)


def correlated_noise(rng: np.random.Generator, shape: Sequence[int], sigma: Sequence[float] | float) -> Array:
    """Draw white noise, blur it by a Gaussian of `sigma` voxels, and scale it to unit variance: (D, H, W)."""
    noise = gaussian_filter(rng.standard_normal(tuple(shape), dtype=np.float32), sigma, mode="wrap", truncate=3)
    return np.asarray(noise / noise.std(), dtype=np.float32)


def _rotate(a: Array, b: Array, degrees: float) -> tuple[Array, Array]:
    if degrees == 0:
        return a, b
    cosine, sine = np.float32(np.cos(np.radians(degrees))), np.float32(np.sin(np.radians(degrees)))
    return cosine * a + sine * b, cosine * b - sine * a


def _capsule(points: Array, a: Point, b: Point, ra: float, rb: float) -> Array:
    """Compute the depth in one capsule; `points` is (3, d, h, w)."""
    start = np.asarray(a, dtype=np.float32)
    along = np.asarray(b, dtype=np.float32) - start
    offset = points - start[:, None, None, None]
    share = np.clip(np.tensordot(along, offset, axes=1) / max(float(along @ along), 1e-6), 0, 1)
    offset -= along[:, None, None, None] * share
    return np.asarray(ra + (rb - ra) * share - np.sqrt(np.einsum("i...,i...->...", offset, offset)), dtype=np.float32)
