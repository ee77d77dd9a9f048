"""Training on several workers, each of which computes a share of every batch; it uses torch.distributed only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.memory_format import convert_conv3d_weight_memory_format

from anatomask.data.samples import worker_share
from anatomask.nn.masked_autoencoder import Densify
from anatomask.nn.norms import synchronise_norms
from anatomask.nn.recompute import Recomputable, recompute_activations
from anatomask.training.settings import TrainingConfig
from anatomask.training.task import Task


@dataclass(frozen=True)
class Workers:
    """Rank of this worker, and the number of workers."""

    rank: int = 0
    count: int = 1

    def share(self, batch_size: int) -> int:
        """Return the number of samples of a batch of `batch_size` that this worker computes."""
        return len(worker_share(batch_size, self.rank, self.count))

    def total(self, values: Tensor) -> Tensor:
        """Sum a tensor over the workers."""
        if self.count > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def agree(self, number: int, device: torch.device) -> int:
        """Return the first worker's number: on shared storage, others may see an older file than it does."""
        if self.count == 1:
            return number
        agreed = torch.tensor(number, device=device)
        distributed.broadcast(agreed, 0)
        return int(agreed)

    def any(self, here: Sequence[bool], device: torch.device) -> list[bool]:
        """Return, for each condition, whether it holds at any worker, after waiting for all of them."""
        if self.count == 1:
            return list(here)
        found: list[bool] = (self.total(torch.tensor(here, dtype=torch.float32, device=device)) > 0).tolist()
        return found


def memory_format(config: TrainingConfig) -> torch.memory_format:
    """Return the memory format of the volumes that the networks read."""
    return torch.channels_last_3d if config.channels_last else torch.contiguous_format


def distribute(task: Task, config: TrainingConfig, workers: Workers) -> nn.Module:
    """Set up the networks of `task` on these workers as `config` says; return what to call in place of `task`.

    After its backward pass, gradients are the mean over all workers. Load weights before this.
    """
    sharded = config.shard_weights and workers.count > 1
    task.memory_format = memory_format(config)
    for network in task.networks():
        if config.channels_last and not sharded:  # FSDP needs contiguous weights
            convert_conv3d_weight_memory_format(network, torch.channels_last_3d)
        synchronise_norms(network, config.synchronise_norms)
        recompute_activations(network, config.recompute_activations)
        if config.compile:
            network.compile()
        if sharded:
            shard(network)
    if workers.count == 1 or sharded:
        return task
    return DistributedDataParallel(
        task,
        # Statistics that workers do not share become the first one's before each update: those that a checkpoint has.
        forward_sync_buffers=not config.synchronise_norms,
        gradient_as_bucket_view=True,
    )


def shard(network: nn.Module) -> None:
    """Divide the weights of `network`, and what belongs to them, among all workers (FSDP2).

    Each block, level and densification is gathered on its own when it is computed.
    """
    kind = next(network.parameters()).device.type
    mesh = init_device_mesh(kind, (distributed.get_world_size(),))
    for part in sharded_parts(network):
        fully_shard(part, mesh=mesh)
    # Also after the forward pass of the root, which would keep its own whole until a backward pass: a teacher has none.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def sharded_parts(network: nn.Module) -> list[nn.Module]:
    """List the modules that are gathered on their own where weights are divided; the rest is gathered together."""
    return [part for part in network.modules() if isinstance(part, Recomputable | Densify)]


@contextmanager
def accumulating(model: nn.Module, last: bool) -> Iterator[None]:
    """Add up gradients at each worker within the block; the `last` part of a batch averages them over the workers."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(last, recurse=False)
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield
