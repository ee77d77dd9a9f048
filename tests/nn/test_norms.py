"""Our BatchNorm is torch's, and its running statistics are spared what is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from anatomask.nn.norms import BatchNorm3d


def _norm(kind: type[nn.BatchNorm3d], dtype: torch.dtype) -> nn.BatchNorm3d:
    norm = kind(3).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, -3.0]))
    return norm


def _volume(seed: int, dtype: torch.dtype) -> Tensor:
    x = 5 * torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 7
    return x.requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_as_torch(dtype: torch.dtype) -> None:
    """Bit for bit: outputs, gradients and buffers of three training steps, then outputs in eval mode."""
    mine, theirs = _norm(BatchNorm3d, dtype), _norm(nn.BatchNorm3d, dtype)
    theirs.load_state_dict(mine.state_dict())
    for step in range(3):
        results = []
        for norm in (mine, theirs):
            x = _volume(step, dtype)
            y = norm(x)
            gradients = torch.autograd.grad((y * _volume(9, dtype)).sum(), [x, *norm.parameters()])
            results.append([y, *gradients, *norm.buffers()])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert mine.num_batches_tracked is not None and int(mine.num_batches_tracked) == 3
    assert torch.equal(mine.eval()(_volume(4, dtype)), theirs.eval()(_volume(4, dtype)))
    assert int(mine.num_batches_tracked) == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])  # the square of 1e30 is infinite
def test_a_batch_that_is_not_finite_leaves_the_running_statistics(bad: float) -> None:
    norm = _norm(BatchNorm3d, torch.float32)
    norm(_volume(0, torch.float32))
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    spoilt = _volume(1, torch.float32).detach()
    spoilt[0, 1, 2, 2, 2] = bad
    norm(spoilt)
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
    norm(_volume(1, torch.float32))
    assert not any(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())


def test_normalising_changes_nothing_until_it_is_tracked() -> None:
    norm, other = _norm(BatchNorm3d, torch.float64), _norm(BatchNorm3d, torch.float64)
    assert isinstance(norm, BatchNorm3d)
    before = norm.running_mean.clone()
    for _ in range(2):
        y, running = norm.normalise(_volume(0, torch.float64))
    assert torch.equal(norm.running_mean, before) and int(norm.num_batches_tracked) == 0
    norm.track(running)
    assert torch.equal(y, other(_volume(0, torch.float64)))
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), other.buffers(), strict=True))


def test_half_precision_keeps_its_type_and_wide_statistics() -> None:
    norm = _norm(BatchNorm3d, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(_volume(0, torch.float32).bfloat16())
    assert y.dtype == torch.bfloat16
    assert norm.running_mean is not None and norm.running_mean.dtype == torch.float32
    reference = _norm(BatchNorm3d, torch.float32)
    reference(_volume(0, torch.float32).bfloat16().float())
    torch.testing.assert_close(norm.running_var, reference.running_var, rtol=1e-4, atol=0)
