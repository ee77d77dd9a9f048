"""Body masks: which voxels are body, and which patches of a crop hold enough of them to be worth hiding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from anatomask.data.fingerprint import BODY_HU, Scheme
from anatomask.errors import UserError

if TYPE_CHECKING:  # what trains on a machine without NIfTI and Parquet imports this
    from anatomask.data.shards import PreparedDataset
    from anatomask.masking import Among

SOFT_TISSUE_HU = (-175.0, 250.0)
"""Lowest and highest HU of the foreground of SubFore (Lee et al., arXiv 2509.07534): neither air and lung nor bone."""


def body_shares(image: np.ndarray, inside: np.ndarray, lowest: float, highest: float, patch: int) -> np.ndarray:
    """Compute the share of each patch's voxels that lie in the scan and between two values.

    Args:
        image: (D, H, W) voxels of one channel; sides are multiples of `patch`.
        inside: (3, 2) of each axis the first voxel that lies in the scan, and the first after those.
        lowest: value that body exceeds.
        highest: value that body does not exceed.
        patch: edge of a patch in voxels.

    Returns:
        (n,) float32, patches in raster order.
    """
    body = np.zeros(image.shape, bool)
    scan = tuple(slice(first, stop) for first, stop in inside.tolist())
    body[scan] = (image[scan] > lowest) & (image[scan] <= highest)
    d, h, w = (side // patch for side in image.shape)
    return body.reshape(d, patch, h, patch, w, patch).mean((1, 3, 5), dtype=np.float32).ravel()


def body_bounds(dataset: PreparedDataset, case: str, among: Among) -> tuple[int, float, float]:
    """Return what counts as body in a case. Returns and raises as `bounds_of_body`."""
    return bounds_of_body(dataset.info.schemes, partial(dataset.otsu_threshold, case), among, dataset.shown)


def bounds_of_body(
    schemes: Sequence[Scheme], otsu_threshold: Callable[[int], float], among: Among, name: str
) -> tuple[int, float, float]:
    """Return what counts as body in a scan.

    Args:
        schemes: what the values of each channel are.
        otsu_threshold: computes Otsu's threshold of a channel.
        among: patches that may be hidden.
        name: what messages call the scan or its data set.

    Returns:
        A channel (the first CT channel or, if there is none, the first), the value that its body voxels exceed, and
        their largest value.

    Raises:
        UserError: the foreground, which is defined in HU, is requested and there is no CT.
    """
    channel = schemes.index("ct") if "ct" in schemes else 0
    if among == "foreground":
        if schemes[channel] != "ct":
            raise UserError(
                f"--method.among foreground is defined in HU, and {name} has no CT; choose --method.among body"
            )
        return (channel, *SOFT_TISSUE_HU)
    return channel, BODY_HU if schemes[channel] == "ct" else otsu_threshold(channel), math.inf
