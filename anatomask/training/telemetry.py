"""What is worth knowing about a training beside its loss: how busy the device is, how far an update goes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

GIB = 2**30


def device_scalars(device: torch.device) -> dict[str, float]:
    """Memory and use of a CUDA device; nothing of another, and no use where its driver does not tell.

    gpu_memory_gib: the most that this process's tensors held at once; gpu_memory_total_gib: what the device has;
    gpu_use: the share of the last moment (up to a second) in which the device computed, as nvidia-smi shows it.
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
def update_ratio(optimiser: torch.optim.AdamW) -> Tensor:
    """Norm of the last update over the norm of the weights before it, over all that are trained: () on the device.

    The update is worked out from the optimiser's state after its step (Loshchilov and Hutter, Algorithm 2), so no copy
    of the weights is kept; beside them, a few tensors of the largest weight's size are needed. Nothing is read from
    the device. Call it after a step, with the learning rate of that step still set; with sharded weights, everywhere.
    """
    moved, weights = [], []
    for group in optimiser.param_groups:
        lr, decay, eps, (beta1, beta2) = group["lr"], group["weight_decay"], group["eps"], group["betas"]
        for weight in group["params"]:
            if weight not in optimiser.state:
                continue
            state = optimiser.state[weight]
            step = state["step"].double()
            deviation = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(eps)
            direction = (state["exp_avg"] / (1 - beta1**step)).div_(deviation)
            before = torch.add(weight, direction, alpha=lr).div_(1 - lr * decay)
            weights.append(torch.linalg.vector_norm(before))
            # before - after, without the difference of two numbers that are almost the same
            moved.append(torch.linalg.vector_norm(direction.add_(before, alpha=decay).mul_(lr)))
    ratio = torch.linalg.vector_norm(torch.stack(moved)) / torch.linalg.vector_norm(torch.stack(weights))
    return ratio.full_tensor() if isinstance(ratio, DTensor) else ratio
