"""Number of windows that cover a scan, and the memory of its logits."""

from __future__ import annotations

import math
from collections.abc import Sequence


def window_count(shape: Sequence[int], patch_size: Sequence[int], overlap: float) -> int:
    """Count the windows that cover a volume of `shape` voxels."""
    steps = [max(1, int(window * (1 - overlap))) for window in patch_size]
    return math.prod(
        math.ceil(max(extent - window, 0) / step) + 1
        for extent, window, step in zip(shape, patch_size, steps, strict=True)
    )


def logits_bytes(shape: Sequence[int], classes: int) -> int:
    """Compute the bytes of the logits (classes + 1, D, H, W), float32, of a volume of `shape` voxels."""
    return 4 * (classes + 1) * math.prod(shape)
