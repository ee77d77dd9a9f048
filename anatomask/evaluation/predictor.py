"""Prediction by a finetuned network: windows slide over a volume, and the label map lies on the scan's grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel import orientations
from torch import Tensor, nn

from anatomask.data.crops import pad_to
from anatomask.data.resampling import resample_logits_to_label
from anatomask.data.scans import PreparedScan
from anatomask.errors import UserError
from anatomask.evaluation.network import build_network
from anatomask.evaluation.settings import InferenceConfig
from anatomask.evaluation.windows import logits_bytes
from anatomask.weights.tensor_files import Weights

GPU_SHARE = 0.25
"""Share of a GPU's free memory that the logits of a whole case may take there."""


class Predictor:
    """Segmentation network whose windows slide over a scan. It calls no Ray and keeps nothing between scans."""

    def __init__(
        self,
        network: nn.Module,
        patch_size: Sequence[int],
        classes: int,
        mirror_axes: Sequence[int] = (),
        inference: InferenceConfig | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Take a network as it is; `of` builds the one that weights describe.

        Args:
            network: a segmentation network on `device`; it is called in eval mode.
            patch_size: voxels of a window; a smaller scan is padded as training crops are.
            classes: number of classes without the background.
            mirror_axes: axes (0 R, 1 A, 2 S) over all of whose mirrorings the logits are averaged.
            inference: how windows slide. Default: the settings of `anatomask evaluate`.
            device: where the network computes. Default: the CPU.
        """
        self.network = network
        self.patch_size = tuple(patch_size)
        self.classes = classes
        self.mirror_axes = tuple(mirror_axes)
        self.inference = inference or InferenceConfig()
        self.device = device or torch.device("cpu")

    @classmethod
    def of(
        cls, weights: Weights, inference: InferenceConfig | None = None, device: torch.device | None = None
    ) -> Predictor:
        """Build the network of finetuned weights, with the windows and mirrorings of its training.

        Raises:
            UserError: tensors do not fit the header.
        """
        inference = inference or InferenceConfig()
        header = weights.header
        network = build_network(weights).to(device or torch.device("cpu"))
        classes = header["architecture"]["classes"]
        return cls(network, header["patch_size"], classes, mirror_axes(header, inference), inference, device)

    def logits(self, volume: Tensor, name: str = "the scan") -> Tensor:
        """Predict a whole volume.

        Args:
            volume: (C, D, H, W) at the network's spacing, RAS axes, normalised.
            name: name of the scan in messages.

        Returns:
            (classes + 1, D, H, W) float32, on `device`, or on the CPU where they would fill too much of a GPU; channel
            0 is the background.

        Raises:
            UserError: a logit is not finite.
        """
        # Importing MONAI takes seconds, which every command would pay that knows this class.
        from monai.inferers import SlidingWindowInferer

        shape = volume.shape[1:]
        padded = [max(extent, window) for extent, window in zip(shape, self.patch_size, strict=True)]
        before = [(outer - extent) // 2 for outer, extent in zip(padded, shape, strict=True)]
        windowed = pad_to(volume.to(self.device), padded, before)
        inferer = SlidingWindowInferer(
            self.patch_size,
            self.inference.batch,
            self.inference.overlap,
            mode="gaussian",
            sw_device=self.device,
            device=_stitching_device(logits_bytes(padded, self.classes), self.device),
        )
        training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                logits = inferer(windowed[None], _mirrored(self.network, self.mirror_axes))[0]
        finally:
            self.network.train(training)
        if not all(bool(torch.isfinite(scores).all()) for scores in logits):  # class by class: no mask of all of them
            raise UserError(
                f"{name}: the network predicts values that are not finite; its weights or this scan are broken. "
                "Try the run's other checkpoint, or look at the training loss"
            )
        inside = tuple(slice(margin, margin + extent) for margin, extent in zip(before, shape, strict=True))
        return logits[:, *inside]

    def label_map(self, scan: PreparedScan) -> nib.Nifti1Image:
        """Predict a scan: its label map (uint8, 0 background) on the grid and affine on which it came.

        Raises:
            UserError: as `logits`.
        """
        logits = self.logits(scan.normalised(self.device), scan.name)
        to_ras = orientations.io_orientation(scan.original_affine)
        ras_axis = to_ras[:, 0].astype(int)  # of each axis of the source
        ras_shape = [scan.original_shape[axis] for axis in np.argsort(ras_axis)]
        label = resample_logits_to_label(logits, ras_shape).cpu().numpy()
        from_ras = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), to_ras)
        return nib.Nifti1Image(orientations.apply_orientation(label, from_ras), scan.original_affine)


def mirror_axes(header: Mapping[str, Any], inference: InferenceConfig) -> list[int]:
    """Return the axes to mirror in inference: those of the training, or none where the settings say so."""
    return list(header["mirror_axes"]) if inference.mirror else []


def _stitching_device(needed: int, device: torch.device) -> torch.device:
    """Choose where windows are put together: on the device, or on the CPU where that fills too much of it.

    The rest is for the network's own activations, and for what resampling takes.
    """
    if device.type == "cuda" and needed > torch.cuda.mem_get_info(device)[0] * GPU_SHARE:
        return torch.device("cpu")
    return device


def _mirrored(network: nn.Module, axes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Return a function from windows (B, C, d, h, w) to logits averaged over all mirrorings of `axes`."""
    mirrorings = [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]

    def predict(windows: Tensor) -> Tensor:
        total = network(windows)[0]
        for chosen in mirrorings[1:]:  # the first is none
            dims = [axis + 2 for axis in chosen]
            total = total + network(windows.flip(dims))[0].flip(dims)
        return total / len(mirrorings)

    return predict
