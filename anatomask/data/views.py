"""Two views of a scan: overlapping crops, each mirrored and changed in intensity on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anatomask.data.augmentation.pipeline import IntensityAugmentation
from anatomask.data.crops import flip, normalised_crops
from anatomask.data.samples import LoaderConfig, Sample, random_origin, stored_crop

if TYPE_CHECKING:
    from anatomask.data.shards import PreparedDataset

FARTHEST = 0.25
"""Distance of the second crop along each axis, as a share of a crop's edge, at most."""
SECOND = "second_"
"""Prefix of the columns of the second view."""


@dataclass(frozen=True)
class TwoViewsDraw:
    """Draw of two `stored_crop`s that overlap, each with a `flip` (3,), and `seeds` (2,) of their intensity changes.

    The columns of the second are named `second_…`.
    """

    loader: LoaderConfig

    def __call__(self, dataset: PreparedDataset, case: str, rng: np.random.Generator) -> Sample:
        """Draw two label-free crops of `case`.

        Raises:
            UserError: as `PreparedDataset.read_crop`.
        """
        size, shape = self.loader.patch_size, dataset.records[case].shape
        first = random_origin(shape, size, rng)
        second = []
        for origin, edge, extent in zip(first, size, shape, strict=True):
            apart = int(FARTHEST * edge)
            moved = origin + int(rng.integers(-apart, apart + 1))
            second.append(min(max(moved, 0), extent - edge) if extent >= edge else origin)
        views = (stored_crop(dataset, case, origin, size, label=False) for origin in (first, tuple(second)))
        flips = rng.random((2, 3)) < 0.5
        one, two = ({**view, "flip": axes} for view, axes in zip(views, flips, strict=True))
        second_view = {f"{SECOND}{name}": column for name, column in two.items()}
        return {**one, **second_view, "seeds": rng.integers(2**32, size=2)}


def two_views(
    sample: Mapping[str, Tensor], augmentation: IntensityAugmentation, memory_format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """Pad, normalise, change and mirror what `TwoViewsDraw` drew: two tensors (B, C, D, H, W)."""
    second = {name.removeprefix(SECOND): column for name, column in sample.items() if name.startswith(SECOND)}
    views = []
    for view, seeds in zip((sample, second), sample["seeds"].unbind(1), strict=True):
        changed = augmentation(normalised_crops(view), seeds)
        views.append(flip(changed, view["flip"]).contiguous(memory_format=memory_format))
    return views[0], views[1]
