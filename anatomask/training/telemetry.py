"""Telemetry of a training beside its loss: how busy the device is, and how far an update goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

GIB = 2**30


def device_scalars(device: torch.device) -> dict[str, float]:
    """Measure memory and use of a CUDA device; empty for others, and without use where its driver does not report it.

    gpu_memory_gib: peak memory of this process's tensors; gpu_memory_total_gib: memory of the device; gpu_use: share of
    the last moment (up to a second) in which the device computed, as nvidia-smi shows it.
    """
    if device.type != "cuda":
        return {}
    scalars = {
        "gpu_memory_gib": torch.cuda.max_memory_allocated(device) / GIB,
        "gpu_memory_total_gib": torch.cuda.get_device_properties(device).total_memory / GIB,
    }
    try:
        return {**scalars, "gpu_use": torch.cuda.utilization(device) / 100}
    except Exception:  # of whatever kind: a slice of a GPU has no such figure, a container may hide the driver
        return scalars


@torch.no_grad()
def update_ratio(optimiser: torch.optim.Optimizer) -> Tensor:
    """Compute the norm of the last update over that of the weights before it, over all that learn: () on the device.

    The update is computed from the optimiser's state after its step, so no copy of the weights is kept; a few tensors
    of the largest weight's size are needed. Nothing is read from the device. Call it after a step, while that step's
    learning rates and gradients still exist; with sharded weights, call it on every worker.
    """
    moved, weights = [], []
    for group in optimiser.param_groups:
        lr, decay = group["lr"], group["weight_decay"]
        for weight in group["params"]:
            if weight.grad is None:
                continue
            direction = _direction(weight, optimiser.state[weight], group)
            before = torch.add(weight, direction, alpha=lr).div_(1 - lr * decay)
            weights.append(torch.linalg.vector_norm(before))
            # before - after, without the difference of two numbers that are almost the same
            moved.append(torch.linalg.vector_norm(direction.add_(before, alpha=decay).mul_(lr)))
    ratio = torch.linalg.vector_norm(torch.stack(moved)) / torch.linalg.vector_norm(torch.stack(weights))
    return ratio.full_tensor() if isinstance(ratio, DTensor) else ratio


def _direction(weight: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]) -> Tensor:
    """Compute what the last step subtracted from a weight, per learning rate and without its decay, as a new tensor.

    AdamW's is Algorithm 2 of Loshchilov and Hutter (arXiv 1711.05101), SGD's has Nesterov's momentum.
    """
    if "momentum" in group:
        assert weight.grad is not None
        return weight.grad + group["momentum"] * state["momentum_buffer"] if state else weight.grad.clone()
    beta1, beta2 = group["betas"]
    step = state["step"].double()
    deviation = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
    return (state["exp_avg"] / (1 - beta1**step)).div_(deviation)
