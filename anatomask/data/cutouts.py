"""Views of Tang et al. (CVPR 2022): a crop is rotated, and boxes of it become noise or parts of another sample.

Source: Project-MONAI/research-contributions, `SwinUNETR/Pretrain/utils/ops.py`, commit 21ed8e5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anatomask.data.crops import normalised_crops
from anatomask.data.samples import LoaderConfig, Sample, random_origin, stored_crop

if TYPE_CHECKING:
    from anatomask.data.shards import PreparedDataset

MOST_CUT = 0.3
"""Share of a view that the boxes of one pass cover at most, overlaps counted twice."""
SMALLEST_EDGE, LARGEST_EDGE = 0.05, 0.25
"""Edge of a box as a share of the view's edge; the largest itself is not reached."""
VIEWS = 2

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class TurnedViewsDraw:
    """Draw of a `stored_crop` and the `seeds` (2,) of its two views."""

    loader: LoaderConfig

    def __call__(self, dataset: PreparedDataset, case: str, rng: np.random.Generator) -> Sample:
        """Draw one label-free crop of `case`.

        Raises:
            UserError: as `PreparedDataset.read_crop`.
        """
        size = self.loader.patch_size
        origin = random_origin(dataset.records[case].shape, size, rng)
        return {**stored_crop(dataset, case, origin, size, label=False), "seeds": rng.integers(2**32, size=VIEWS)}


@dataclass(frozen=True)
class Plan:
    """Random numbers of one view."""

    seed: int
    turns: int
    """Number of quarter turns, 0 to 3."""
    noise: list[Box]
    """Boxes that become noise."""
    partner: int
    """Place in the batch of the sample from which other boxes are filled. Its own place: none are."""
    foreign: list[Box]
    """Boxes that are filled from the partner's view, at the same place."""

    @classmethod
    def of(cls, seed: int, size: Sequence[int], samples: int) -> Plan:
        """Draw the plan of a view of `size` voxels in a batch of `samples`."""
        rng = np.random.default_rng(seed)
        return cls(
            seed, int(rng.integers(4)), random_boxes(size, rng), int(rng.integers(samples)), random_boxes(size, rng)
        )


def random_boxes(size: Sequence[int], rng: np.random.Generator) -> list[Box]:
    """Draw boxes in a volume of `size` voxels, at least 20 per axis, until their volumes reach a random total."""
    smallest, largest = (np.array([int(share * edge) for edge in size]) for share in (SMALLEST_EDGE, LARGEST_EDGE))
    wanted = rng.uniform(0, MOST_CUT) * math.prod(size)
    boxes: list[Box] = []
    covered = 0
    while covered < wanted:
        first = rng.integers(0, np.array(size) - smallest)
        last = np.minimum(first + rng.integers(smallest, largest), size)
        covered += int((last - first).prod())
        d, h, w = (slice(start, stop) for start, stop in zip(first.tolist(), last.tolist(), strict=True))
        boxes.append((d, h, w))
    return boxes


def turned(volume: Tensor, turns: int) -> Tensor:
    """Rotate (C, D, H, W) by quarter turns in the plane of its last two axes, which are equally long."""
    return torch.rot90(volume, turns, (2, 3))


def cut(views: Sequence[Tensor], plans: Sequence[Plan], which: Sequence[int]) -> list[Tensor]:
    """Cut boxes out of copies of the views (C, D, H, W) whose places in the batch are `which`.

    The published loop runs through the batch in place: a partner that comes before a sample is cut already, one that
    comes after it is whole.
    """
    done: dict[int, Tensor] = {}

    def one(place: int) -> Tensor:
        if place not in done:
            view, plan = views[place].clone(), plans[place]
            for box, content in zip(plan.noise, _noise(view, plan), strict=True):
                view[:, *box] = content
            if plan.partner != place:
                source = one(plan.partner) if plan.partner < place else views[plan.partner]
                for box in plan.foreign:
                    view[:, *box] = source[:, *box]
            done[place] = view
        return done[place]

    return [one(place) for place in which]


def _noise(view: Tensor, plan: Plan) -> list[Tensor]:
    """Draw normal noise for each box of a plan, scaled to exactly 0 … 1 in each."""
    shapes = [(len(view), *(side.stop - side.start for side in box)) for box in plan.noise]
    sizes = [math.prod(shape) for shape in shapes]
    generator = torch.Generator(view.device).manual_seed(plan.seed)
    drawn = torch.randn(sum(sizes), generator=generator, device=view.device).split(sizes)
    contents = []
    for flat, shape in zip(drawn, shapes, strict=True):
        low, high = flat.aminmax()
        contents.append(((flat - low) / (high - low).clamp(min=1e-6)).view(shape))  # a single voxel has no range
    return contents


def unit_crops(sample: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad what `TurnedViewsDraw` drew, and scale it to 0 … 1 between the bounds at which normalisation clips.

    Where it does not clip (MR), the crop's own extremes are the bounds.

    Returns:
        The crops (B, C, D, H, W); the lower bound and the range (B, C, 1, 1, 1), in the units of a normalised crop.
    """
    crops = normalised_crops(sample)
    below, above, mean, std = sample["normalisation"][..., None, None, None].unbind(-4)
    low, high = (below - mean) / std, (above - mean) / std
    low = torch.where(low.isfinite(), low, crops.amin((2, 3, 4), keepdim=True))
    high = torch.where(high.isfinite(), high, crops.amax((2, 3, 4), keepdim=True))
    extent = (high - low).clamp(min=1e-6)
    return (crops - low) / extent, low, extent
