"""Operations of a convolutional encoder: an argument of its forward pass, so that backends can replace them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.nn.norm_activation import norm_activation

NEGATIVE_SLOPE = 0.01
"""Slope of the leaky ReLU below zero."""


class Operations(ABC):
    """Operations that convolutional encoders are made of, on maps in the backend's own form."""

    @abstractmethod
    def convolve(
        self, x: Tensor, convolution: nn.Conv3d, norm: nn.InstanceNorm3d, skip: Tensor | None = None
    ) -> Tensor:
        """Compute a 3x3x3 convolution of stride 1 or 2 and InstanceNorm, add `skip`, then apply leaky ReLU."""

    @abstractmethod
    def project(self, x: Tensor, convolution: nn.Conv3d) -> Tensor:
        """Compute a 1x1x1 convolution of stride 1 or 2."""

    @abstractmethod
    def pool(self, x: Tensor) -> Tensor:
        """Average each cube of 2x2x2 voxels."""

    @abstractmethod
    def normalise(self, x: Tensor, norm: nn.InstanceNorm3d) -> Tensor:
        """Compute InstanceNorm alone."""


class DenseOperations(Operations):
    """Operations on whole maps (B, C, D, H, W), nothing of which is hidden."""

    def convolve(
        self, x: Tensor, convolution: nn.Conv3d, norm: nn.InstanceNorm3d, skip: Tensor | None = None
    ) -> Tensor:
        """Convolve without the bias, which the norm cancels, and compute the rest in one operation."""
        y = _convolved(x, convolution, None)
        rows = norm_activation(
            _rows(y), norm, convolution.bias, None if skip is None else _rows(skip), slope=NEGATIVE_SLOPE
        )
        return rows.view(len(y), *y.shape[2:], -1).permute(0, 4, 1, 2, 3)

    def project(self, x: Tensor, convolution: nn.Conv3d) -> Tensor:
        """Call the convolution."""
        return _convolved(x, convolution, convolution.bias)

    def pool(self, x: Tensor) -> Tensor:
        """Average each cube of 2x2x2 voxels."""
        return functional.avg_pool3d(x, 2)

    def normalise(self, x: Tensor, norm: nn.InstanceNorm3d) -> Tensor:
        """Call the norm."""
        return norm(x)


DENSE = DenseOperations()


def _convolved(x: Tensor, convolution: nn.Conv3d, bias: Tensor | None) -> Tensor:
    """Convolve by oneDNN's kernel where PyTorch 2.13 would take its own, up to 18 times as slow, on a CPU.

    `conv3d` does so for one sample whose channels times D times H are at most 20,480 (`use_mkldnn` in Convolution.cpp),
    so for windows of inference. Where gradients are needed it is left the choice, which it makes again for them.
    """
    padding = convolution.padding
    assert not isinstance(padding, str)
    if not torch.is_grad_enabled() and len(x) == 1 and _onednn_takes(x):
        return torch.mkldnn_convolution(x, convolution.weight, bias, padding, convolution.stride, (1, 1, 1), 1)
    return functional.conv3d(x, convolution.weight, bias, convolution.stride, padding)


def _onednn_takes(x: Tensor) -> bool:
    """Return whether oneDNN convolves this tensor: a real one of float32 in the host's memory."""
    here = type(x) is Tensor and x.device.type == "cpu" and x.dtype == torch.float32
    return here and torch.backends.mkldnn.is_available() and not torch.compiler.is_compiling()


def _rows(x: Tensor) -> Tensor:
    """View (B, C, D, H, W) as (B, 1, D·H·W, C)."""
    return x.permute(0, 2, 3, 4, 1).flatten(1, 3)[:, None]
