"""The transposed convolution with gradients of our own is torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anatomask.nn.upsampling import Upsampling3d, upsample


def _results(layer: Upsampling3d, x: Tensor, grad: Tensor, *, ours: bool) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    assert layer.bias is not None
    y = upsample(x, layer.weight, layer.bias, layer.stride[0]) if ours else layer(x)
    return y, *torch.autograd.grad(y, (x, layer.weight, layer.bias), grad)


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("channels_last", [False, True])
def test_outputs_and_gradients_are_those_of_torch(stride: int, channels_last: bool) -> None:
    torch.manual_seed(0)
    layer = Upsampling3d(6, 5, stride).double()
    x, grad = (torch.randn(2, c, 3 * s, 2 * s, 4 * s, dtype=torch.float64) for c, s in ((6, 1), (5, stride)))
    if channels_last:
        x, grad = (tensor.contiguous(memory_format=torch.channels_last_3d) for tensor in (x, grad))
    for mine, theirs in zip(*(_results(layer, x, grad, ours=ours) for ours in (True, False)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("autocast", [False, True])
def test_many_channels_on_a_gpu(autocast: bool) -> None:
    """Where the layer itself chooses our gradients."""
    torch.manual_seed(0)
    layer, x, grad = Upsampling3d(256, 16, 2), torch.randn(1, 256, 3, 4, 5), torch.randn(1, 16, 6, 8, 10)
    expected = _results(layer, x, grad, ours=False)
    layer, x, grad = layer.cuda(), x.cuda(), grad.cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        y = layer(x.requires_grad_())
    assert y.grad_fn is not None and "_Upsample" in y.grad_fn.name()
    assert layer.bias is not None
    results = y, *torch.autograd.grad(y, (x, layer.weight, layer.bias), grad.to(y.dtype))
    for mine, theirs in zip(results, expected, strict=True):
        assert (mine.cpu() - theirs).norm() <= (1e-2 if autocast else 1e-3) * theirs.norm()
