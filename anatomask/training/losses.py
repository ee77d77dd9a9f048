"""Segmentation loss: Dice and cross-entropy, at every level of deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.loss import _Loss

from anatomask.nn.distributed import all_reduce
from anatomask.nn.norms import widened

SMOOTHING = 1e-5


class DiceCrossEntropy(_Loss):
    """Soft Dice of the foreground classes + cross-entropy.

    It equals MONAI's DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True), except that Dice
    pools its voxels over the batch of all workers, as nnU-Net's does.
    """

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Compute a scalar from logits (B, K, …) and class indices (B, 1, …)."""
        voxels = (0, *range(2, logits.dim()))
        probabilities = logits.softmax(1)
        truth = probabilities.new_zeros(probabilities.shape).scatter_(1, label.long(), 1)
        sums = torch.stack([part.sum(voxels) for part in (probabilities * truth, probabilities, truth)])
        shared, predicted, present = all_reduce(sums)[:, 1:]
        dice = 1 - (2 * shared + SMOOTHING) / (predicted + present + SMOOTHING)
        return dice.mean() + functional.cross_entropy(logits, label[:, 0].long())


def level_weights(levels: int) -> list[float]:
    """Return deep supervision's weights, highest resolution first: halved per level, sum 1 (nnU-Net).

    The lowest of several levels has weight 0.
    """
    if levels == 1:
        return [1.0]
    raw = [0.5**level for level in range(levels - 1)]
    return [weight / sum(raw) for weight in raw] + [0.0]


def segmentation_loss(logits: Sequence[Tensor], label: Tensor) -> Tensor:
    """Compute Dice + cross-entropy, summed over levels with `level_weights`, in float32 at least.

    Args:
        logits: one (B, K, …) tensor per level, highest resolution first.
        label: (B, 1, D, H, W) class indices; resized to each level by nearest neighbour.
    """
    loss, truth = DiceCrossEntropy(), label.float()
    parts = []
    for level, weight in zip(logits, level_weights(len(logits)), strict=True):
        if not weight:
            continue
        resized = functional.interpolate(truth, level.shape[2:], mode="nearest-exact")
        parts.append(weight * loss(widened(level), resized))
    return torch.stack(parts).sum()
