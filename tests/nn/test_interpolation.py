"""Interpolation with gradients of our own is torch's, and its gradients are the same every time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from anatomask.nn.interpolation import bicubic, doubled

Function = Callable[[Tensor], Tensor]


def results(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient of random weights."""
    x = x.clone().requires_grad_()
    y = function(x)
    generator = torch.Generator().manual_seed(1)
    (grad,) = torch.autograd.grad(y, x, torch.randn(y.shape, dtype=y.dtype, generator=generator).to(y.device))
    return y.detach(), grad


def trilinear(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    factors = tuple(2.0 if axis in axes else 1.0 for axis in (2, 3, 4))
    return functional.interpolate(x, scale_factor=factors, mode="trilinear", align_corners=False)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("axes", [(2, 3, 4), (3, 4)])
@pytest.mark.parametrize("size", [(3, 2, 4), (1, 1, 5), (2, 7, 1)])
def test_doubled_is_torch_s(size: tuple[int, int, int], axes: tuple[int, ...], channels_last: bool) -> None:
    x = torch.randn(2, 3, *size)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    mine, theirs = results(lambda x: doubled(x, axes), x), results(lambda x: trilinear(x, axes), x)
    assert torch.equal(mine[0], theirs[0])
    torch.testing.assert_close(mine[1], theirs[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grid", [(5, 9), (14, 8), (20, 3)])
def test_bicubic_is_torch_s(grid: tuple[int, int]) -> None:
    """But where both sides stay as they are: torch's gradient then is that of a copy, whatever the factors."""
    table = torch.randn(1, 4, 14, 14)
    factors = ((grid[0] + 0.1) / 14, (grid[1] + 0.1) / 14)
    mine = results(lambda table: bicubic(table, factors), table)
    theirs = results(lambda table: functional.interpolate(table, scale_factor=factors, mode="bicubic"), table)
    assert mine[0].shape == (1, 4, *grid)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=3e-6)


def test_no_gradient_is_that_of_torch_s_interpolation() -> None:
    """Torch's own interpolation has no deterministic gradient on a GPU, under whatever setting."""
    x, table = torch.randn(1, 2, 2, 2, 2, requires_grad=True), torch.randn(1, 2, 4, 4, requires_grad=True)
    for y in (doubled(x, (2, 3, 4)), bicubic(table, (2.0, 0.5))):
        pending, names = [y.grad_fn], set[str]()
        while pending:
            if (node := pending.pop()) is not None:
                names.add(node.name())
                pending += [before for before, _ in node.next_functions]
        assert not any("Upsample" in name for name in names), names


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gradients_on_a_gpu_are_those_on_a_cpu_and_the_same_every_time() -> None:
    x = torch.randn(2, 8, 24, 24, 24)
    table = torch.randn(1, 48, 56, 56)
    functions: list[tuple[Function, Tensor]] = [
        (lambda x: doubled(x, (2, 3, 4)), x),
        (lambda table: bicubic(table, (0.57, 0.57)), table),
    ]
    for function, given in functions:
        first, again = (results(function, given.cuda())[1] for _ in range(2))
        assert torch.equal(first, again)
        torch.testing.assert_close(first.cpu(), results(function, given)[1], rtol=1e-3, atol=1e-3)
