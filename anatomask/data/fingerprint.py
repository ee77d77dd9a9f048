"""Intensity statistics of a data set, which normalise its volumes on the device.

Prepared voxels are int16 or float16, so a histogram over their distinct values is exact and small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Scheme = Literal["ct", "quantitative", "zscore", "none"]
"""Kind of a channel's values, which decides how they are stored and normalised:

- ct: HU, stored as integers; clipped and z-scored by the data set's fingerprint.
- quantitative: another unit that means the same in every scan (SUV, a T1 map); as ct, but stored as half floats.
- zscore: in no unit; each scan by its own mean and deviation.
- none: normalised already.
"""

BODY_HU = -500
"""HU above which a CT voxel is counted as body (air and lung are not) where nothing is labelled."""


@dataclass(frozen=True)
class ChannelFingerprint:
    """Intensity statistics of one channel over the foreground of the training cases, in the unit of its voxels."""

    name: str
    scheme: Scheme
    percentile_00_5: float
    percentile_99_5: float
    mean: float
    std: float


@dataclass(frozen=True)
class Fingerprint:
    """Fingerprint of each channel of a data set."""

    channels: tuple[ChannelFingerprint, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"channels": [asdict(channel) for channel in self.channels]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fingerprint:
        return cls(tuple(ChannelFingerprint(**channel) for channel in data["channels"]))

    @classmethod
    def from_histograms(
        cls, names: Sequence[str], schemes: Sequence[Scheme], histograms: Sequence[Histogram]
    ) -> Fingerprint:
        """Compute the fingerprint of a data set from one merged histogram per channel."""
        return cls(
            tuple(
                ChannelFingerprint(
                    name, scheme, histogram.percentile(0.5), histogram.percentile(99.5), *histogram.mean_std()
                )
                for name, scheme, histogram in zip(names, schemes, histograms, strict=True)
            )
        )


@dataclass(frozen=True)
class Histogram:
    """Distinct values, ascending float64, and the number of voxels of each, int64."""

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, voxels: np.ndarray) -> Histogram:
        if voxels.dtype == np.float16:  # which NumPy 2.4 sorts wrongly on some processors with AVX-512
            voxels = voxels.astype(np.float32)
        values, counts = np.unique(voxels, return_counts=True)
        return cls(values.astype(np.float64), counts.astype(np.int64))

    @classmethod
    def merge(cls, histograms: Iterable[Histogram]) -> Histogram:
        parts = list(histograms)
        if not parts:
            return cls(np.empty(0), np.empty(0, np.int64))
        values, inverse = np.unique(np.concatenate([part.values for part in parts]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, inverse, np.concatenate([part.counts for part in parts]))
        return cls(values, counts)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def percentile(self, percent: float) -> float:
        """Compute the percentile of all voxels as `np.percentile` (linear) does; NaN when there are none."""
        if not self.total:
            return float("nan")
        position = percent / 100 * (self.total - 1)
        below, above = np.searchsorted(np.cumsum(self.counts), [np.floor(position), np.ceil(position)], side="right")
        fraction = position - np.floor(position)
        return float(self.values[below] * (1 - fraction) + self.values[above] * fraction)

    def otsu_threshold(self) -> float:
        """Divide the voxels into two groups with the largest variance between them (Otsu, 1979).

        Returns:
            The largest value of the lower group; values above it form the upper group. NaN for fewer than two values.
        """
        if len(self.values) < 2:
            return float("nan")
        counts = self.counts.astype(np.float64)
        below, sums = np.cumsum(counts), np.cumsum(counts * self.values)
        above = below[-1] - below[:-1]
        difference = sums[:-1] / below[:-1] - (sums[-1] - sums[:-1]) / above
        return float(self.values[np.argmax(below[:-1] * above * difference**2)])

    def mean_std(self) -> tuple[float, float]:
        """Compute the mean and (population) standard deviation of all voxels; NaN when there are none."""
        if not self.total:
            return float("nan"), float("nan")
        mean = float(np.average(self.values, weights=self.counts))
        return mean, float(np.sqrt(np.average((self.values - mean) ** 2, weights=self.counts)))


def case_histograms(images: np.ndarray, label: np.ndarray | None, schemes: Sequence[Scheme]) -> list[Histogram]:
    """Compute one case's share of the fingerprint, a histogram per channel.

    Args:
        images: (C, D, H, W) voxels.
        label: (D, H, W); its voxels above 0 are counted. None: the body is counted, which is above `BODY_HU` in CT
            and everything but 0 elsewhere; if the body is empty, all voxels are counted.
        schemes: the normalisation scheme of each channel.
    """
    if label is not None:
        return [Histogram.of(image[label > 0]) for image in images]
    return [Histogram.of(body_voxels(image, scheme)) for image, scheme in zip(images, schemes, strict=True)]


def body_voxels(image: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Select the voxels that are not background, 1-D; all voxels if there are no such voxels."""
    inside = image[image > BODY_HU] if scheme == "ct" else image[image != 0]
    return inside if inside.size else image.reshape(-1)
