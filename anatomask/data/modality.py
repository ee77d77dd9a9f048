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
"""HU above which all voxels of a scan lie only if it is in other units, or masked to an inside: fat is darker."""
MOST_HU = 200
"""HU above which half of what is not background lies only in other units, or in bone."""
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
        if channel.scheme == "ct" and _is_no_hu(volume, channel):
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
    """Check that a volume (D, H, W) is no label map; one that is not stored as whole numbers is taken for a scan.

    Raises:
        UserError: it is one; the message begins with `name`.
    """
    if volume.dtype.kind in "iu" and (values := label_values(volume)) is not None:
        listed = ", ".join(f"{value:g}" for value in values[:4])
        raise UserError(
            f"{name} is a label map, not a scan (its {len(values)} values are whole numbers over whole areas: "
            f"{listed}{', …' if len(values) > 4 else ''}); leave it out, or give the scan "
            "(only a channel of normalisation none may be one)"
        )


def _is_no_hu(volume: np.ndarray, channel: ChannelFingerprint) -> bool:
    """Return whether a scan (D, H, W) has neither air nor fat, though those that a network was trained on have.

    If these have none either, as CTs in which all but the brain is set to 0, it must be brighter than they are.
    """
    if volume.min() < LEAST_HU:
        return False
    if channel.percentile_00_5 < LEAST_HU:
        return True
    inside = volume[volume != 0]
    return bool(inside.size and np.median(inside) > max(MOST_HU, channel.percentile_99_5))


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
