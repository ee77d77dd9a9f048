"""The numbers that normalise a case: of its data set's fingerprint, or of its own voxels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anatomask.data.fingerprint import Fingerprint, Scheme, body_voxels
from anatomask.data.records import ChannelRecord

SMALLEST_STD = 1e-8
"""Deviation that a constant channel is divided by."""


def describe_channel(image: np.ndarray, scheme: Scheme) -> ChannelRecord:
    """Take the statistics of one channel (D, H, W) as it is stored."""
    body = body_voxels(image, scheme).astype(np.float64)
    return ChannelRecord(str(image.dtype), float(image.min()), float(body.mean()), float(body.std()))


def normalisation_rows(
    schemes: Sequence[Scheme], fingerprint: Fingerprint, channels: Sequence[ChannelRecord]
) -> np.ndarray:
    """List what normalises the channels of one case: (C, 4) float32, low, high, mean, std.

    "ct" and "quantitative" use the fingerprint; "zscore" does not clip and uses the case's own mean and std; "none"
    changes nothing. The device computes (clamp(x, low, high) - mean) / std.

    Args:
        schemes: per channel.
        fingerprint: of the data set by which the case is normalised.
        channels: the case's own statistics.
    """
    rows = []
    for scheme, channel, own in zip(schemes, fingerprint.channels, channels, strict=True):
        if scheme in ("ct", "quantitative"):
            std = max(channel.std, SMALLEST_STD)
            rows.append((channel.percentile_00_5, channel.percentile_99_5, channel.mean, std))
        elif scheme == "zscore":
            spread = own.std if own.std > SMALLEST_STD else max(abs(own.mean), 1.0)  # a mask's 1 in a background of 0
            rows.append((-np.inf, np.inf, own.mean, spread))
        else:
            rows.append((-np.inf, np.inf, 0.0, 1.0))
    return np.array(rows, np.float32)
