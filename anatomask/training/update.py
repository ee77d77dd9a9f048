"""One update of the weights: forward and backward in the chosen precision; updates that are not finite are left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from anatomask.training.parallel import Workers, accumulating
from anatomask.training.settings import TrainingConfig
from anatomask.training.state import TrainingState

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_arithmetic(precision: str) -> None:
    """Turn TF32 matrix products on or off for this process (NVIDIA only), and select deterministic cuDNN algorithms."""
    tf32 = precision == "tf32"
    torch.backends.cudnn.deterministic = True
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a network computes in that precision."""
    return torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)


class Update:
    """Forward, backward and an update of the weights by one worker's share of a batch.

    An update whose gradient is not finite is left out on the device, without synchronising with the host: the weights
    and the optimiser's moments stay unchanged. So do those of parameters that do not learn yet: their gradients are
    dropped after the backward pass, before the norm is computed. (They still require gradients, because averaging over
    workers is set up for all parameters that do.)
    """

    def __init__(
        self,
        state: TrainingState,
        model: nn.Module,
        workers: Workers,
        config: TrainingConfig,
        clip: float,
        device: torch.device,
        clip_of: Literal["all", "each"] = "all",
    ) -> None:
        """Set up the update, which calls `model` instead of the state's task.

        `clip` is the largest norm of the gradient of all parameters together, or of each.
        """
        self.state = state
        self.model = model
        self.workers = workers
        self.config = config
        self.clip = clip
        self.clip_of = clip_of
        self.device = device
        self.parameters = [parameter for parameter in state.task.trainable().parameters() if parameter.requires_grad]

    def __call__(self, sample: Mapping[str, Any], progress: float, rates: Sequence[float | None]) -> dict[str, Tensor]:
        """Update the weights at `progress` = t/T with a learning rate per group of the optimiser; None skips a group.

        Returns:
            Scalars on the device: the loss and what the task records, means over this worker's samples, and the norm of
            the gradient of all that learns, which is that of the whole batch.
        """
        optimiser, scaler = self.state.optimiser, self.state.scaler
        optimiser.zero_grad(set_to_none=True)
        scalars = self._backward(sample, progress)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate or 0.0
            if rate is None:
                for parameter in group["params"]:
                    parameter.grad = None
        for parameter in self.state.task.frozen():
            parameter.grad = None
        scaler.unscale_(optimiser)
        clip = clip_each_grad_norm_ if self.clip_of == "each" else nn.utils.clip_grad_norm_
        norm = clip(self.parameters, self.clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not scaler.is_enabled():  # it finds infinities itself
            optimiser.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # fused optimisers read it
        scaler.step(optimiser)
        scaler.update()
        self.state.task.after_step(progress)
        return {**scalars, "gradient_norm": norm.detach()}

    def _backward(self, sample: Mapping[str, Any], progress: float) -> dict[str, Tensor]:
        """Compute gradients of the mean loss over the whole batch, which workers and parts may divide unevenly."""
        whole, accumulate = self.config.batch_size, self.config.accumulate
        share = self.workers.share(whole)
        parts = {name: _split(column, accumulate) for name, column in sample.items()}
        means: dict[str, Tensor] = {}
        for index in range(accumulate):
            part = {name: columns[index] for name, columns in parts.items()}
            samples = len(next(iter(part.values())))
            with accumulating(self.model, last=index == accumulate - 1):
                with autocast(self.config.precision, self.device):
                    loss, scalars = self.model(part, progress)
                weight = samples * self.workers.count / whole  # gradients become their mean over the workers
                self.state.scaler.scale(loss * weight).backward()
            for name, value in {"loss": loss.detach(), **scalars}.items():
                mean = value * (samples / share)
                means[name] = means[name] + mean if name in means else mean
        return means


@torch.no_grad()
def clip_each_grad_norm_(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scale the gradient of each parameter on its own to a norm of at most `most`; return the norm of all before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    whole = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms])
    for gradient, factor in zip(gradients, (most / (whole + 1e-6)).clamp(max=1), strict=True):
        own = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        own.mul_(factor)
    return torch.linalg.vector_norm(whole)


def _split(column: Tensor | list[Tensor], parts: int) -> Sequence[Tensor | list[Tensor]]:
    """Split a column of a batch into parts that differ by one sample at most; the first are the larger ones."""
    if isinstance(column, Tensor):
        return column.tensor_split(parts)
    return [[column[index] for index in part] for part in np.array_split(range(len(column)), parts)]
