"""Which patches are hidden: pure functions on tensors, vectorised over the batch, without a copy to the host.

Masks are (B, n) bool over the n patches in raster order, True = hidden. Randomness comes in as noise: (B, n) uniform
numbers, drawn with the sample. Counts are those of the published code.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Significance = Literal["highest", "lowest"]
HardCount = Literal["text", "algorithm1"]


def num_hidden(patches: int, mask_ratio: float) -> int:
    """Number of hidden patches among `patches`: n - round((1 - γ) n)."""
    return patches - round((1 - mask_ratio) * patches)


def num_hard(patches: int, mask_ratio: float, hard_ratio: float, count: HardCount = "text") -> int:
    """Number of hidden patches that are chosen because they are hard.

    `text`: floor(r · hidden), section 3.3 and the code; `algorithm1`: ceil(r n), at most all that are hidden.
    """
    hidden = num_hidden(patches, mask_ratio)
    wanted = math.floor(hard_ratio * hidden) if count == "text" else math.ceil(hard_ratio * patches)
    return min(wanted, hidden)


def hard_ratio(progress: float, r0: float, rT: float) -> float:
    """r_t = r_0 + (t/T)(r_T - r_0), masking dynamics; `progress` = t/T is clipped to [0, 1]."""
    return r0 + min(max(progress, 0.0), 1.0) * (rT - r0)


def random_mask(noise: Tensor, mask_ratio: float) -> Tensor:
    """Hide the `num_hidden` patches of largest noise: (B, n) to (B, n) bool. Ties still give that many."""
    return _largest(noise, num_hidden(noise.shape[1], mask_ratio))


def self_mask(
    patch_loss: Tensor,
    hidden: Tensor,
    noise: Tensor,
    hard_ratio: float,
    mask_ratio: float,
    significance: Significance = "highest",
    count: HardCount = "text",
) -> tuple[Tensor, Tensor]:
    """The teacher's hard patches, filled up at random from all others (Algorithm 1).

    Args:
        patch_loss: (B, n) the teacher's loss; read where hidden only.
        hidden: (B, n) bool, what was hidden from the teacher.
        noise: (B, n) uniform numbers that decide the filling.
        hard_ratio: r_t, the share of hard ones.
        mask_ratio: γ, the share of hidden ones.
        significance: whether high or low loss is hard.
        count: how `hard_ratio` becomes a number.

    Returns:
        The final mask and the hard patches in it, both (B, n) bool. Without hard patches: `random_mask(noise)`.
    """
    patches = noise.shape[1]
    hard_patches = num_hard(patches, mask_ratio, hard_ratio, count)
    order = patch_loss if significance == "highest" else -patch_loss
    hard = _largest(order.masked_fill(~hidden, -math.inf), hard_patches)
    final = _largest(noise.masked_fill(hard, math.inf), num_hidden(patches, mask_ratio))
    return final, hard


def touched_patches(label: Tensor, patch: int) -> Tensor:
    """The patches of `patch`³ voxels in which (D, H, W) `label` has a voxel of any class: (n,) bool."""
    d, h, w = (side // patch for side in label.shape)
    return (label > 0).reshape(d, patch, h, patch, w, patch).any(5).any(3).any(1).flatten()


def share_among(mask: Tensor, patches: Tensor) -> Tensor:
    """Share of the masked patches of each row of (B, n) that are among `patches` (n,) bool: (B,), NaN without any."""
    return (mask & patches).sum(1) / mask.sum(1)


def _largest(values: Tensor, number: int) -> Tensor:
    """Mark the `number` largest of each row of (B, n)."""
    order = values.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order[:, :number], True)
