"""What a pretraining method is to the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class PretrainBatch:
    """Samples on the device."""

    volume: Tensor
    """(B, C, D, H, W) float, normalised."""
    noise: Tensor
    """(B, 2, n) uniform numbers, drawn with each sample: one row per mask of n patches."""
    among: Tensor | None = None
    """(B, n) bool, the patches that may be hidden. None: all."""
    fewest: int = 0
    """Lower bound, known to the host, of the number of patches of a sample that may be hidden. Read with `among`."""


@dataclass(frozen=True)
class StepResult:
    """What one training step answers."""

    loss: Tensor
    """The scalar to be minimised."""
    scalars: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars on the device, for the logs."""


@dataclass(frozen=True)
class Picture:
    """Fig. 1 of the paper for one volume: voxels (C, D, H, W), patches (D/patch, H/patch, W/patch)."""

    volume: Tensor
    """The input."""
    random_mask: Tensor
    """bool, True = hidden."""
    reconstruction: Tensor
    """Under that mask, in the input's intensities; visible patches are the input's own."""
    patch_loss: Tensor
    """Mean over the random masks in which a patch was hidden; NaN where it never was."""
    self_mask: Tensor
    """bool, True = hidden: the mask that this loss leads to."""


@dataclass(frozen=True)
class Examination:
    """What a method makes of one volume of n patches under M fixed random masks."""

    random_masks: Tensor
    """(M, n) bool, True = hidden."""
    student_loss: Tensor
    """(M, n) loss of each patch, in eval mode; NaN where visible."""
    teacher_loss: Tensor | None
    """(M, n) the same of the teacher, where there is one."""
    self_masks: Tensor
    """(M, n) bool: the mask that follows from each random one where hardness counts most."""
    hard: Tensor
    """(M, n) bool: the patches in it that are there because they are hard."""
    picture: Picture
