"""Prediction by a finetuned network: windows slide over a volume, and the label map lies on the scan's grid.

A network's last convolution often reads fewer channels than there are classes, such as 32 for 105. As it is linear and
sees one voxel at a time, means over windows and mirrorings are then taken of what it reads, and it is computed once per
voxel of the scan, on finished planes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel import orientations
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from anatomask.data.resampling import resampled_planes
from anatomask.data.scans import PreparedScan
from anatomask.errors import UserError
from anatomask.evaluation.label_names import label_image
from anatomask.evaluation.network import build_network
from anatomask.evaluation.settings import InferenceConfig
from anatomask.evaluation.windows import WindowGrid, slide
from anatomask.nn.backbones.base import Segmenter
from anatomask.weights.tensor_files import Weights

GPU_SHARE = 0.25
"""Share of a GPU's free memory that the means over windows may take."""


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
            inference: settings of the sliding windows. Default: those of `anatomask evaluate`.
            device: where the network computes. Default: the CPU.
        """
        self.network = network
        self.patch_size = tuple(patch_size)
        self.classes = classes
        self.mirror_axes = tuple(mirror_axes)
        self.inference = inference or InferenceConfig()
        self.device = device or torch.device("cpu")
        head = _last_head(network)
        self.head = head if head is not None and head.in_channels <= classes else None

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
        grid = self.windows(volume.shape[1:])
        with evaluating(self.network):
            planes = [
                self._logits_of(plane, name).to(plane.device, copy=True)
                for finished in self._regions(volume, grid)
                for plane in finished.unbind(grid.axis + 1)
            ]
        return torch.stack(planes, grid.axis + 1)

    def labels(self, volume: Tensor, shape: Sequence[int], name: str = "the scan") -> np.ndarray:
        """Predict a volume's label map, whose logits are never all in memory.

        Args:
            volume: as of `logits`.
            shape: voxels (D', H', W') of a grid with the same outer edges, to which the logits are resampled.
            name: name of the scan in messages.

        Returns:
            (D', H', W') uint8, 0 for the background.

        Raises:
            UserError: as `logits`.
        """
        found = np.empty(tuple(shape), np.uint8)
        self._fill(volume, found, None, name)
        return found

    def label_map(self, scan: PreparedScan, probabilities: np.ndarray | None = None) -> nib.Nifti1Image:
        """Predict a scan: its label map (uint8, 0 background) on the grid and affine on which it came.

        Args:
            scan: scan at the network's spacing.
            probabilities: (classes + 1, D, H, W) float on the grid on which the scan came, which is filled.

        Raises:
            UserError: as `logits`.
        """
        label = np.empty(scan.original_shape, np.uint8)
        to_ras = orientations.io_orientation(scan.original_affine)
        classes_last = None if probabilities is None else np.moveaxis(probabilities, 0, -1)
        self._fill(
            self.normalised(scan),
            orientations.apply_orientation(label, to_ras),  # a view, as that of the probabilities
            None if classes_last is None else orientations.apply_orientation(classes_last, to_ras),
            scan.name,
        )
        return label_image(label, scan.original_affine, scan.original_header)

    def windows(self, shape: Sequence[int]) -> WindowGrid:
        """Lay windows over a volume (D, H, W)."""
        return WindowGrid(tuple(shape), self.patch_size, self.inference.overlap)

    def normalised(self, scan: PreparedScan) -> Tensor:
        """Normalise a scan as the network reads it: (C, D, H, W) float32 on `device`."""
        return scan.normalised(self.device)

    @property
    def channels(self) -> int:
        """Number of numbers per voxel whose means are taken: what the last convolution reads, or logits."""
        return self.classes + 1 if self.head is None else self.head.in_channels

    def predict_windows(self, windows: Tensor) -> Tensor:
        """Turn normalised windows (B, C, d, h, w) into (B, `channels`, d, h, w), averaged over mirrorings."""
        if self.head is None:
            return self.window_logits(windows)
        assert isinstance(self.network, Segmenter)
        return _mirrored(self.network.before_head, self.mirror_axes)(windows)

    def window_logits(self, windows: Tensor) -> Tensor:
        """Turn normalised windows (B, C, d, h, w) into logits (B, classes + 1, d, h, w), averaged over mirrorings."""
        return _mirrored(lambda volume: self.network(volume)[0], self.mirror_axes)(windows)

    def _logits_of(self, means: Tensor, name: str) -> Tensor:
        """Turn means (`channels`, …) into logits (classes + 1, …) float32 on `device`.

        Raises:
            UserError: a logit is not finite.
        """
        logits = means.to(self.device, torch.float32)
        if self.head is not None:
            logits = torch.tensordot(self.head.weight.flatten(1), logits, 1)
            if self.head.bias is not None:
                logits += self.head.bias.view(-1, *[1] * (logits.dim() - 1))
        if not bool(torch.isfinite(logits).all()):
            raise UserError(
                f"{name}: the network predicts values that are not finite; its weights or this scan are broken. "
                "Try the run's other checkpoint, or look at the training loss"
            )
        return logits

    def _regions(self, volume: Tensor, grid: WindowGrid) -> Iterator[Tensor]:
        """Predict as `slide` does."""
        store = _stitching_device(grid.kept_bytes(self.channels), self.device)
        batch = 1 if self.device.type == "cpu" else self.inference.batch
        return slide(volume.to(self.device), grid, self.predict_windows, batch, store)

    def _fill(self, volume: Tensor, label: np.ndarray, probabilities: np.ndarray | None, name: str) -> None:
        """Write the label map (D', H', W'), and the softmax (D', H', W', classes + 1), plane by plane."""
        grid = self.windows(volume.shape[1:])
        with evaluating(self.network):
            planes = resampled_planes(self._regions(volume, grid), grid.axis, grid.shape, label.shape)
            for index, plane in enumerate(planes):
                logits = self._logits_of(plane, name)
                there: tuple[slice | int, ...] = (*[slice(None)] * grid.axis, index)
                label[there] = logits.argmax(0).to(torch.uint8).cpu().numpy()
                if probabilities is not None:
                    probabilities[there] = logits.softmax(0).movedim(0, -1).cpu().numpy()


def _last_head(network: nn.Module) -> nn.Conv3d | None:
    """Return the convolution that may be computed apart from the network, once per voxel of the scan; None: none may.

    A network whose weights are divided among workers has them whole within its forward pass alone.
    """
    return network.last_head if isinstance(network, Segmenter) and not isinstance(network, FSDPModule) else None


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode within the block, and compute no gradients."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


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


def _mirrored(compute: Callable[[Tensor], Tensor], axes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Return a function from windows (B, C, d, h, w) to what `compute` makes of them, averaged over mirrorings."""
    mirrorings = [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]

    def predict(windows: Tensor) -> Tensor:
        total = compute(windows)
        for chosen in mirrorings[1:]:  # the first is none
            dims = [axis + 2 for axis in chosen]
            total = total + compute(windows.flip(dims)).flip(dims)
        return total / len(mirrorings) if len(mirrorings) > 1 else total

    return predict
