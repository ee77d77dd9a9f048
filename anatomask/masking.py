"""Masks: which patches are hidden. Pure functions on tensors, vectorised over the batch, without a copy to the host.

Masks are (B, n) bool over the n patches in raster order, True = hidden. Randomness comes in as noise: (B, n) uniform
numbers, drawn with the sample. Counts are those of the published code. Where masks are drawn among some patches only
(`among`, (B, n) bool), the shares refer to these patches, and samples differ in the number of hidden ones.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Significance = Literal["highest", "lowest"]
HardCount = Literal["text", "algorithm1"]
Among = Literal["all", "body", "foreground"]
"""Patches that may be hidden: all, those with body in them, or those with soft tissue in them."""


def num_hidden(patches: int, mask_ratio: float) -> int:
    """Return the number of hidden patches among `patches`: n - round((1 - γ) n)."""
    return patches - round((1 - mask_ratio) * patches)


def num_hard(patches: int, mask_ratio: float, hard_ratio: float, count: HardCount = "text") -> int:
    """Return the number of hidden patches that are chosen because they are hard.

    `text`: floor(r · hidden), section 3.3 and the code; `algorithm1`: ceil(r n), at most all that are hidden.
    """
    hidden = num_hidden(patches, mask_ratio)
    wanted = math.floor(hard_ratio * hidden) if count == "text" else math.ceil(hard_ratio * patches)
    return min(wanted, hidden)


def hidden_counts(among: Tensor, mask_ratio: float) -> Tensor:
    """Count the hidden patches of each sample, `num_hidden` of its patches that are `among` (B, n) bool: (B, 1)."""
    patches = among.sum(1, keepdim=True)
    return patches - ((1 - mask_ratio) * patches.double()).round().long()


def hard_ratio(progress: float, r0: float, rT: float) -> float:
    """Compute r_t = r_0 + (t/T)(r_T - r_0), masking dynamics; `progress` = t/T is clipped to [0, 1]."""
    return r0 + min(max(progress, 0.0), 1.0) * (rT - r0)


def random_mask(noise: Tensor, mask_ratio: float, among: Tensor | None = None) -> Tensor:
    """Hide the patches of largest noise.

    Args:
        noise: (B, n) uniform numbers.
        mask_ratio: γ, the share of hidden patches.
        among: (B, n) bool, the patches that may be hidden. None: all.

    Returns:
        (B, n) bool, `num_hidden` of each row, or of those among which it is drawn. Ties still give that many.
    """
    if among is None:
        return _largest(noise, num_hidden(noise.shape[1], mask_ratio))
    return _largest(noise.masked_fill(~among, -math.inf), hidden_counts(among, mask_ratio))


def self_mask(
    patch_loss: Tensor,
    hidden: Tensor,
    noise: Tensor,
    hard_ratio: float,
    mask_ratio: float,
    significance: Significance = "highest",
    count: HardCount = "text",
    among: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose the teacher's hard patches, and fill up at random from all others (Algorithm 1).

    Args:
        patch_loss: (B, n) the teacher's loss; read where hidden only.
        hidden: (B, n) bool, what was hidden from the teacher.
        noise: (B, n) uniform numbers that decide the filling.
        hard_ratio: r_t, the share of hard ones.
        mask_ratio: γ, the share of hidden ones.
        significance: high or low, the loss that counts as hard.
        count: rule by which `hard_ratio` becomes a number (`num_hard`).
        among: (B, n) bool, the patches that may be hidden. None: all.

    Returns:
        The final mask and the hard patches in it, both (B, n) bool. Without hard patches: `random_mask(noise)`.
    """
    hard_patches: int | Tensor
    hidden_patches: int | Tensor
    if among is None:
        patches = noise.shape[1]
        hidden_patches = num_hidden(patches, mask_ratio)
        hard_patches = num_hard(patches, mask_ratio, hard_ratio, count)
    else:
        noise = noise.masked_fill(~among, -math.inf)
        hidden_patches = hidden_counts(among, mask_ratio)
        base = hidden_patches if count == "text" else among.sum(1, keepdim=True)
        wanted = hard_ratio * base.double()
        hard_patches = (wanted.floor() if count == "text" else wanted.ceil()).long().minimum(hidden_patches)
    order = patch_loss if significance == "highest" else -patch_loss
    hard = _largest(order.masked_fill(~hidden, -math.inf), hard_patches)
    final = _largest(noise.masked_fill(hard, math.inf), hidden_patches)
    return final, hard


def touched_patches(label: Tensor, patch: int) -> Tensor:
    """Find the patches of `patch`³ voxels in which (D, H, W) `label` has a voxel of any class: (n,) bool."""
    d, h, w = (side // patch for side in label.shape)
    return (label > 0).reshape(d, patch, h, patch, w, patch).any(5).any(3).any(1).flatten()


def share_among(mask: Tensor, patches: Tensor) -> Tensor:
    """Compute the share of each row's masked patches (B, n) that are in `patches` (n,) bool: (B,), NaN without any."""
    return (mask & patches).sum(1) / mask.sum(1)


def _largest(values: Tensor, number: int | Tensor) -> Tensor:
    """Mark the `number` largest of each row of (B, n), one number for all rows or (B, 1) of them."""
    order = values.argsort(dim=1, descending=True, stable=True)
    marked = torch.zeros_like(values, dtype=torch.bool)
    if isinstance(number, int):
        return marked.scatter_(1, order[:, :number], True)
    return marked.scatter_(1, order, torch.arange(values.shape[1], device=values.device) < number)
