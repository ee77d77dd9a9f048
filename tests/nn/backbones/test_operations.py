"""Operations on whole maps: what they compute does not depend on the kernel that computes it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from anatomask.nn.backbones.operations import DENSE, NEGATIVE_SLOPE
from anatomask.nn.backbones.stunet import STUNetConfig


def kernels_of(network: nn.Module, windows: torch.Tensor) -> set[str]:
    """Name the kernels that a network's inference takes on a CPU."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        network(windows)
    return {str(event.key) for event in seen.key_averages()}


def test_a_window_is_not_convolved_by_the_slow_kernel() -> None:
    """PyTorch itself takes it for all of this network but the 1x1x1 convolutions of the decoder."""
    encoder = STUNetConfig(base=8).encoder().eval()
    window = torch.randn(1, 1, 32, 32, 32)
    assert "aten::slow_conv3d_forward" not in kernels_of(encoder, window)
    assert "aten::slow_conv3d_forward" in kernels_of(nn.Conv3d(8, 8, 3, padding=1), torch.randn(1, 8, 32, 32, 32))


@pytest.mark.parametrize("stride", [1, 2, (1, 2, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_one_sample_is_convolved_as_many_are(stride: int | tuple[int, int, int], channels_last: bool) -> None:
    convolution = nn.Conv3d(4, 8, 3, stride=stride, padding=1)
    projection = nn.Conv3d(4, 8, 1, stride=stride)
    norm = nn.InstanceNorm3d(8, affine=True)
    x = torch.randn(1, 4, 8, 10, 12)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        one = DENSE.convolve(x, convolution, norm), DENSE.project(x, projection)
        expected = functional.leaky_relu(norm(convolution(x)), NEGATIVE_SLOPE), projection(x)
    for found, wanted in zip(one, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    x.requires_grad_()
    DENSE.convolve(x, convolution, norm).sum().backward()
    assert convolution.weight.grad is not None and x.grad is not None, "with gradients as ever"
