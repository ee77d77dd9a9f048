"""Cost of one update of one worker, found by running it on tensors that have shapes and types but no numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.utils.memory_format import convert_conv3d_weight_memory_format
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from anatomask.data.samples import worker_share
from anatomask.nn.live_bytes import LiveBytes
from anatomask.nn.norms import synchronise_norms
from anatomask.nn.recompute import recompute_activations
from anatomask.training.parallel import sharded_parts
from anatomask.training.scaling import Exchange
from anatomask.training.settings import TrainingConfig
from anatomask.training.update import autocast

ADAMW_MOMENTS = 2
GATHERED_TENSORS = 4
"""Number of tensors as large as the part that FSDP has gathered: weights, gradients, a copy of these that is summed
over the workers, and the weights of the next part."""


@dataclass(frozen=True)
class StepCost:
    """Cost of one update of the worker that has the largest share of a batch."""

    flops: int
    """Floating-point operations, including recomputation; a multiplication and an addition count as two."""
    state_bytes: int
    """Bytes of weights, gradients, moments, untrained networks, and the part that FSDP gathers at a time."""
    activation_bytes: int
    """Bytes of all other tensors at the peak: inputs, what the backward pass keeps, and temporaries. Gradients that do
    not exist yet at the peak, but are counted in `state_bytes`, are subtracted."""
    exchange: Exchange = field(default_factory=Exchange)
    """What the worker exchanges with the others; nothing where it is alone."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of tensors at the peak; the allocator and the libraries of a GPU take more."""
        return self.state_bytes + self.activation_bytes


Loss = Callable[[nn.Module, int], Tensor]
"""Function that makes the given number of samples and returns the loss of a module on them."""


def step_cost(
    module: nn.Module, loss: Loss, config: TrainingConfig, workers: int, moments: int = ADAMW_MOMENTS
) -> StepCost:
    """Compute the cost of an update of `module`, left unchanged, by one of `workers` workers, on the meta device.

    The optimiser keeps `moments` tensors per trained parameter. Compilation is left out.
    """
    share = len(worker_share(config.batch_size, workers - 1, workers))  # no worker's is larger
    part = -(-share // config.accumulate)
    sharded = config.shard_weights and workers > 1
    module = copy.deepcopy(module)
    synchronise_norms(module, config.synchronise_norms)
    recompute_activations(module, config.recompute_activations)
    gradients = sum(_bytes(parameter) for parameter in module.parameters() if parameter.requires_grad)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"), _AutocastOfGpus(), _one_of(workers):
        module.to_empty(device="cpu")
        if config.channels_last and not sharded:
            convert_conv3d_weight_memory_format(module, torch.channels_last_3d)
        kept = workers > 1 or config.accumulate > 1  # by the buckets of DDP, or from one part to the next
        with FlopCounterMode(display=False) as counter:  # on its own: it keeps tensors alive that are computed again
            _backward(module, loss, part, config.precision)
        for parameter in module.parameters():
            parameter.grad = torch.empty_like(parameter) if kept and parameter.requires_grad else None
        with LiveBytes(_tensors(module)) as live, _Collectives() as collectives:
            _backward(module, loss, part, config.precision)
    state = state_bytes(module, workers if sharded else 1, moments)
    if sharded and config.accumulate > 1:  # gradients are whole until the last part
        state += gradients
    return StepCost(
        counter.get_total_flops() * share // part,
        state,
        live.peak - (0 if kept else gradients),
        Exchange(
            _exchanged_weights(module, sharded) if workers > 1 else 0,
            config.accumulate * collectives.count,
            config.accumulate * collectives.bytes,
        ),
    )


def _backward(module: nn.Module, loss: Loss, samples: int, precision: str) -> None:
    with autocast(precision, torch.device("cpu")):
        value = loss(module, samples)
    value.backward()


def state_bytes(module: nn.Module, divided_by: int, moments: int = ADAMW_MOMENTS) -> int:
    """Count the bytes of weights, gradients and `moments` on one worker, if `divided_by` workers divide the weights."""
    total = sum(map(_bytes, module.buffers()))
    for parameter in module.parameters():
        rows = len(parameter) if parameter.dim() else 1
        own = _bytes(parameter) // rows * -(-rows // divided_by)  # FSDP divides along the first dimension
        total += own * (2 + moments if parameter.requires_grad else 1)
    if divided_by > 1:
        parts = [sum(map(_bytes, part.parameters())) for part in sharded_parts(module)]
        rest = sum(map(_bytes, module.parameters())) - sum(parts)
        total += GATHERED_TENSORS * max([*parts, rest])
    return total


def less_memory(
    module: nn.Module, loss: Loss, config: TrainingConfig, workers: int, moments: int = ADAMW_MOMENTS
) -> dict[str, StepCost]:
    """Compute the costs with the memory-saving settings that `config` leaves off, by the flag that sets each."""
    changes: dict[str, TrainingConfig] = {}
    if not config.recompute_activations:
        changes["--training.recompute-activations"] = replace(config, recompute_activations=True)
    if workers > 1 and not config.shard_weights and config.precision != "fp16" and config.synchronise_norms:
        changes["--training.shard-weights"] = replace(config, shard_weights=True)
    if len(changes) > 1:
        changes["both"] = replace(config, recompute_activations=True, shard_weights=True)
    return {name: step_cost(module, loss, changed, workers, moments) for name, changed in changes.items()}


class _AutocastOfGpus(TorchFunctionMode):
    """Autocast of CUDA on the CPU: of the operations of the networks, the two differ only in interpolation."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Interpolate in float32 where autocast is on."""
        if func is functional.interpolate and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


class _Collectives(TorchDispatchMode):
    """Counter of the operations in which the workers take part together."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute, and count the operation if it is one of them."""
        if func.namespace == "c10d":
            self.count += 1
            self.bytes += sum(_bytes(leaf) for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def _exchanged_weights(module: nn.Module, sharded: bool) -> int:
    """Count the bytes of an all-reduce that moves as much as the averaging of gradients and the gathering of weights.

    An all-reduce sums and gathers. Where weights are divided, gradients are summed alone, and weights are gathered for
    the forward pass and again for the backward pass; untrained ones for a forward pass alone.
    """
    trained = sum(_bytes(parameter) for parameter in module.parameters() if parameter.requires_grad)
    if not sharded:
        return trained
    return (2 * trained + sum(map(_bytes, module.parameters()))) // 2


@contextmanager
def _one_of(workers: int) -> Iterator[None]:
    """Make this process, within the block, one of `workers` workers whose sums are not reduced."""
    if workers == 1:
        yield
        return
    distributed.init_process_group("fake", rank=0, world_size=workers)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for tensor in chain(module.parameters(), module.buffers()):
        yield tensor
        if tensor.grad is not None:
            yield tensor.grad


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
