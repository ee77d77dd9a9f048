"""Samples over which norms take their statistics; BatchNorm over the samples of all workers, on any device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.nn.distributed import all_reduce, workers

RunningStatistics = tuple[Tensor, Tensor] | None
"""Running mean and variance (C,) after a batch; None outside training."""


NormScope = Literal["sample", "batch"]
"""Samples over which InstanceNorm takes its statistics: each one alone, or the batch, as in the published code."""

Pool = Literal["sample", "batch", "workers"]
"""Samples over which statistics are taken in training: each one alone, a worker's batch, or those of all workers."""


def pooled(total: Tensor, pool: Pool) -> Tensor:
    """Return this worker's sum, or the sum of all workers where `pool` is `workers`."""
    return all_reduce(total) if pool == "workers" else total


def widened(x: Tensor) -> Tensor:
    """Convert to float32 at least: statistics in half precision would be useless."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Synchronisable:
    """Part of a network whose statistics can be those of the samples of all workers.

    All workers then have to compute it at the same time.
    """

    synchronised = False


def synchronise_norms(module: nn.Module, on: bool = True) -> None:
    """Let every part of `module` that can take its statistics over all workers do so, or not."""
    for part in module.modules():
        if isinstance(part, Synchronisable):
            part.synchronised = on


class SynchronisableBatchNorm(Synchronisable, nn.modules.batchnorm._BatchNorm):
    """torch's BatchNorm, with two differences.

    A batch that is not finite leaves the running statistics as they were. Where `synchronised`, the statistics of
    training are over the samples of all workers, who may have unequal numbers.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, …); the shape stays."""
        y, running = self.normalise(x)
        self.track(running)
        return y

    def normalise(self, x: Tensor) -> tuple[Tensor, RunningStatistics]:
        """Compute the forward pass without its side effect, so that it may run twice and `track` once."""
        if not self.training:
            return super().forward(x), None
        if self.synchronised and workers() > 1:
            return self._normalise_over_workers(x)
        mean, variance = self.running_mean.clone(), self.running_var.clone()
        y = functional.batch_norm(x, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)
        return y, (mean, variance)

    @torch.no_grad()
    def track(self, running: RunningStatistics) -> None:
        """Take over the running statistics that `normalise` returned, if they are finite."""
        if running is None:
            return
        mean, variance = running
        finite = (mean.isfinite() & variance.isfinite()).all()
        self.running_mean.copy_(torch.where(finite, mean, self.running_mean))
        self.running_var.copy_(torch.where(finite, variance, self.running_var))
        self.num_batches_tracked.add_(finite)

    def _normalise_over_workers(self, x: Tensor) -> tuple[Tensor, RunningStatistics]:
        dims, per_channel = (0, *range(2, x.dim())), (1, -1, *(1,) * (x.dim() - 2))
        wide = widened(x)
        count = all_reduce(torch.full((), x.numel() / x.shape[1], dtype=wide.dtype, device=x.device))
        mean = all_reduce(wide.sum(dims, keepdim=True)) / count
        centred = wide - mean
        variance = all_reduce(centred.square().sum(dims, keepdim=True)) / count
        scale = self.weight.view(per_channel) * torch.rsqrt(variance + self.eps)
        y = torch.addcmul(self.bias.view(per_channel), centred, scale).to(x.dtype)
        with torch.no_grad():
            unbiased = variance * (count / (count - 1))
            return y, (
                self.running_mean.lerp(mean.flatten().to(self.running_mean.dtype), self.momentum),
                self.running_var.lerp(unbiased.flatten().to(self.running_var.dtype), self.momentum),
            )


class BatchNorm1d(SynchronisableBatchNorm, nn.BatchNorm1d):
    """BatchNorm of (B, C)."""


class BatchNorm3d(SynchronisableBatchNorm, nn.BatchNorm3d):
    """BatchNorm of (B, C, D, H, W)."""
