"""What a training will cost, found without running it: operations and memory on the meta device, time from a probe."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

SHARE_OF_PEAK = 0.3
"""Share of a matrix product's speed that such a network's training is taken to reach: a rule of thumb."""

ADAMW_BYTES = 16
"""Per trained parameter: weight, gradient and two moments in float32."""


@dataclass(frozen=True)
class StepCost:
    """One update of one worker."""

    flops: int
    """Floating-point operations, forward and backward; a multiplication and an addition count as two."""
    activation_bytes: int
    """Tensors that the backward pass keeps."""
    state_bytes: int
    """Weights, gradients and optimiser state, and networks that are not trained."""

    @property
    def memory_bytes(self) -> int:
        """At least this much is needed on the device."""
        return self.activation_bytes + self.state_bytes


def step_cost(module: nn.Module, step: Callable[[], Tensor]) -> StepCost:
    """Cost of `step`, which gives the loss of one batch; `module` and the batch lie on the meta device."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = step()
        activation_bytes = sum(kept.values())
        loss.backward()
    state_bytes = sum(tensor.numel() * (ADAMW_BYTES if tensor.requires_grad else 4) for tensor in module.parameters())
    return StepCost(counter.get_total_flops(), activation_bytes, state_bytes)


def matrix_speed(device: torch.device, size: int = 2048) -> float:
    """Floating-point operations per second of a float32 matrix product on `device`, the best of three."""
    a, b = torch.rand(2, size, size, device=device)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        (a @ b).sum().item()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


def cost_rows(cost: StepCost, steps: int, workers: int, precision: str) -> list[tuple[str, str]]:
    """Rows of a dry run: operations, memory, and the time that `steps` updates take on devices like this machine's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speed = matrix_speed(device)
    hours = steps * cost.flops / (SHARE_OF_PEAK * speed) / 3600
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    taken = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
    return [
        ("operations", f"{cost.flops / 1e12:.3g} TFLOP per update and worker"),
        (
            "memory",
            f"at least {cost.memory_bytes / 2**30:.2f} GiB per worker, counted in float32 (the run: {precision})",
        ),
        (
            "time",
            f"about {taken} on {workers} x this machine's {name}, at {SHARE_OF_PEAK:.0%} of the "
            f"{speed / 1e12:.3g} TFLOP/s of its float32 matrix product",
        ),
    ]
