"""Sums over the workers of a distributed run, through which gradients flow.

Worker w minimises its own loss L_w, and gradients are averaged over the W workers, as DistributedDataParallel does: the
objective is (L_1 + ... + L_W) / W. A sum that each worker uses hands each worker's gradient back to all of them, so
its backward is the same sum again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def workers() -> int:
    """Return the number of workers that train together; 1 where nothing is distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def all_reduce(x: Tensor) -> Tensor:
    """Sum `x`, of one shape and type, over all workers; return `x` itself where there is one worker."""
    return x if workers() == 1 else _AllReduce.apply(x)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _AllReduce.apply(grads[0])
