"""Common parts of masked methods: their batches, and the examination of a scan."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anatomask.data.body import body_shares, bounds_of_body
from anatomask.data.crops import pad_to
from anatomask.data.masked_draw import MaskedDraw
from anatomask.errors import UserError
from anatomask.masking import num_hidden
from anatomask.methods.base import Method

if TYPE_CHECKING:
    from anatomask.data.scans import PreparedScan


def check_patches(size: Sequence[int], patch: int, mask_ratio: float) -> None:
    """Check that a crop of `size` voxels divides into patches some of which are hidden, some visible.

    Raises:
        ValueError: it does not; the message names the remedy.
    """
    if any(edge % patch for edge in size):
        raise ValueError(f"loader.patch_size {tuple(size)} must be three multiples of method.patch {patch}")
    patches = math.prod(edge // patch for edge in size)
    hidden = num_hidden(patches, mask_ratio)
    if not 0 < hidden < patches:
        raise ValueError(
            f"method.mask_ratio {mask_ratio} hides {hidden} of the {patches} patches of {patch} voxels in a crop of "
            f"{tuple(size)}: choose a larger loader.patch_size, a smaller method.patch or another ratio"
        )


@dataclass(frozen=True)
class MaskedBatch:
    """Batch of samples on the device."""

    volume: Tensor
    """Voxels (B, C, D, H, W), normalised."""
    noise: Tensor
    """Uniform numbers (B, 2, n), drawn with each sample: one row per mask of n patches."""
    among: Tensor | None = None
    """Patches that may be hidden, (B, n) bool. None: all."""
    fewest: int = 0
    """Lower bound, known to the host, of the number of patches of a sample that may be hidden. Read with `among`."""


@dataclass(frozen=True)
class Picture:
    """Fig. 1 of the paper for one volume: voxels (C, D, H, W), patches (D/patch, H/patch, W/patch)."""

    volume: Tensor
    """The input."""
    random_mask: Tensor
    """Random mask, bool, True = hidden."""
    reconstruction: Tensor
    """Reconstruction under that mask, in the input's intensities; visible patches are the input's own."""
    patch_loss: Tensor
    """Mean loss over the random masks in which a patch was hidden; NaN where it never was."""
    self_mask: Tensor
    """Mask to which this loss leads, bool, True = hidden."""

    @property
    def patch(self) -> int:
        """Edge of a patch in voxels."""
        return self.volume.shape[1] // self.self_mask.shape[0]


@dataclass(frozen=True)
class Examination:
    """Results of a method for one volume of n patches under M fixed random masks."""

    random_masks: Tensor
    """Random masks (M, n) bool, True = hidden."""
    student_loss: Tensor
    """Student's loss of each patch (M, n), in eval mode; NaN where visible."""
    teacher_loss: Tensor | None
    """Teacher's loss of each patch (M, n), where there is a teacher."""
    self_masks: Tensor
    """Mask (M, n) bool that follows from each random one where hardness counts most."""
    hard: Tensor
    """Patches (M, n) bool of this mask that are hidden because they are hard."""
    picture: Picture


class MaskedMethod(Method):
    """Method that hides patches. Its training is watched by masks, patch losses and reconstructions."""

    @abstractmethod
    def examine(self, volume: Tensor, noise: Tensor, among: Tensor | None = None) -> Examination:
        """Show one volume under M random masks to the networks, in eval mode.

        Args:
            volume: (1, C, D, H, W), normalised.
            noise: (M, 2, n) as in training, a sample per mask.
            among: (1, n) bool, the patches that may be hidden. None: all.
        """


def self_mask_of(method: MaskedMethod, draw: MaskedDraw, scan: PreparedScan, masks: int, seed: int) -> Picture:
    """Examine a whole scan: what a trained method reconstructs, finds hard, and would hide.

    Args:
        method: with its trained weights, on the CPU.
        draw: how the method draws masks.
        scan: prepared; it is padded at its end to whole patches, with each channel's minimum.
        masks: number of random masks, over which patch losses are averaged.
        seed: decides the masks.

    Raises:
        UserError: the method does not work on a scan of this size, or no patch of it may be hidden.
    """
    shape = [-(-edge // draw.patch) * draw.patch for edge in scan.stored.shape[1:]]
    patches = math.prod(edge // draw.patch for edge in shape)
    noise = torch.from_numpy(np.random.default_rng([seed]).random((masks, 2, patches), dtype=np.float32))
    among = None
    if draw.among != "all":
        channel, lowest, highest = bounds_of_body(scan.schemes, scan.otsu_threshold, draw.among, scan.name)
        image = pad_to(torch.from_numpy(scan.stored[channel : channel + 1]), shape)[0].numpy()
        inside = np.array([(0, edge) for edge in scan.stored.shape[1:]])
        among = torch.from_numpy(body_shares(image, inside, lowest, highest, draw.patch) >= draw.body_share)[None]
        if not among.any():
            raise UserError(f"{scan.name}: no patch of it is {draw.among} enough to be hidden; take another scan")
    return method.examine(pad_to(scan.volume, shape)[None], noise, among).picture
