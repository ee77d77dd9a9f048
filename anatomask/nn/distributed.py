"""Sums over the workers of a distributed run, through which gradients flow, and what all workers hold together.

Worker w minimises its own loss L_w, and gradients are averaged over the W workers, as DistributedDataParallel does: the
objective is (L_1 + ... + L_W) / W. A sum that each worker uses hands each worker's gradient back to all of them, so
its backward is the same sum again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed


def workers() -> int:
    """Return the number of workers that train together; 1 where nothing is distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def rank() -> int:
    """Return the place of this worker among them; 0 where nothing is distributed."""
    return distributed.get_rank() if workers() > 1 else 0


def all_reduce(x: Tensor) -> Tensor:
    """Sum `x`, of one shape and type, over all workers; return `x` itself where there is one worker."""
    return x if workers() == 1 else _AllReduce.apply(x)


def all_gather(x: Tensor) -> Tensor:
    """Concatenate `x`, of one shape and type, of all workers in their order, along its first axis; without gradient."""
    if workers() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(workers())]
    distributed.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def exchanged(compute: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
    """Compute a function of each worker's `samples` on others': all workers, of equally many, exchange them at random.

    The results are those of this worker's samples, in their order; without gradient.
    """
    if workers() == 1:
        return compute(samples)
    everyone = all_gather(samples)
    order = torch.randperm(len(everyone), device=samples.device)
    distributed.broadcast(order, 0)
    results = all_gather(compute(everyone[order.chunk(workers())[rank()]]))
    return results[order.argsort()].chunk(workers())[rank()]


def gather_rows(x: Tensor) -> Tensor:
    """Concatenate `x`, of one shape and type, of all workers in their order, through which gradients flow."""
    if workers() == 1:
        return x
    return all_reduce(torch.cat([x if place == rank() else torch.zeros_like(x) for place in range(workers())]))


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _AllReduce.apply(grads[0])
