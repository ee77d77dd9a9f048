"""Scans that a network cannot have been trained for, by their values: label maps, and other modalities."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from anatomask.data.datasets.folder import AIR_HU, looks_like_ct
from anatomask.data.fingerprint import ChannelFingerprint
from anatomask.errors import UserError

NOT_CT = re.compile(r"\b(mri?|t[12]\w*|flair|dwi|adc|pet|pt|suv)\b", re.IGNORECASE)
"""Pattern of the names of channels that are no CT, or not CT alone."""
CT = re.compile(r"\bct\b", re.IGNORECASE)
"""Pattern of the names of channels that may be CT, as "CT or MR"."""
LEAST_HU = -50
"""HU above which all voxels of a scan lie only if it is in other units: fat is darker."""
FEW = 256
"""Number of values from which on a scan is no label map."""
STRIDE = 4
"""Distance in voxels between those that are looked at first."""


def require_kind(name: str, volumes: Sequence[np.ndarray], channels: Sequence[ChannelFingerprint]) -> None:
    """Check by their values that channels (D, H, W) can be what a network was trained on.

    The evidence must be clear: what cannot be decided is accepted. A channel of scheme "none" may be a label map.

    Raises:
        UserError: a channel is a label map, or of another modality; the message begins with `name`.
    """
    for volume, channel in zip(volumes, channels, strict=True):
        if channel.scheme != "none":
            refuse_label_map(name, volume)
        if channel.scheme == "ct" and volume.min() >= LEAST_HU:
            raise UserError(
                f"{name} is no CT in HU (no voxel is below {LEAST_HU}, where air and fat lie; the smallest is "
                f"{float(volume.min()):g}), and the network reads {channel.name}; give a CT, with the rescale slope "
                "and intercept applied, or leave it out"
            )
        other = NOT_CT.search(channel.name) and not CT.search(channel.name)
        if channel.scheme != "ct" and other and looks_like_ct(volume):
            raise UserError(
                f"{name} is a CT in HU (it has air below {AIR_HU}), and the network reads {channel.name}; leave it "
                "out, or name a run that was trained on CT"
            )


def refuse_label_map(name: str, volume: np.ndarray) -> None:
    """Check that a volume (D, H, W) is no label map.

    Raises:
        UserError: it is one; the message begins with `name`.
    """
    if (values := label_values(volume)) is not None:
        listed = ", ".join(f"{value:g}" for value in values[:4])
        raise UserError(
            f"{name} is a label map, not a scan (its {len(values)} values are whole numbers over whole areas: "
            f"{listed}{', …' if len(values) > 4 else ''}); leave it out, or give the scan "
            "(only a channel of normalisation none may be one)"
        )


def label_values(volume: np.ndarray) -> np.ndarray | None:
    """List the values of a label map (D, H, W); None for a scan.

    A label map has few values, all whole and none negative, and neighbours inside are mostly equal.
    """
    sampled = np.unique(volume[::STRIDE, ::STRIDE, ::STRIDE])
    if len(sampled) > FEW or not _whole(sampled):
        return None
    values = np.unique(volume)
    if len(values) > FEW or not _whole(values):
        return None
    one, other = volume[1:], volume[:-1]
    inside = (one != values[0]) & (other != values[0])
    flat = len(values) == 2 or (bool(inside.any()) and float(np.mean(one[inside] == other[inside])) > 0.8)
    return values if len(values) > 1 and flat else None


def _whole(values: np.ndarray) -> bool:
    return bool(values.min() >= 0 and values.max() < 2**16 and np.array_equal(values, np.rint(values)))
