"""Memory and operations of an update, found on tensors that hold nothing, against updates that are computed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.utils.memory_format import convert_conv3d_weight_memory_format
from torch.profiler import ProfilerActivity, profile

from anatomask.methods.anatomask import AnatoMask, AnatoMaskConfig
from anatomask.methods.masked import MaskedBatch
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig
from anatomask.nn.live_bytes import LiveBytes
from anatomask.nn.norms import BatchNorm3d
from anatomask.nn.recompute import recompute_activations
from anatomask.training.cost import StepCost, less_memory, state_bytes, step_cost
from anatomask.training.losses import segmentation_loss
from anatomask.training.scaling import Exchange
from anatomask.training.settings import TrainingConfig

CONFIG = TrainingConfig(batch_size=2)
NETWORK = STUNetConfig(base=8)


def pretraining() -> AnatoMask:
    return AnatoMask(AnatoMaskConfig(decoder_width=128), NETWORK)


def volumes(samples: int) -> Tensor:
    return torch.rand(samples, 1, 32, 32, 32).contiguous(memory_format=torch.channels_last_3d)


def pretraining_loss(method: nn.Module, samples: int) -> Tensor:
    loss: Tensor = method(MaskedBatch(volumes(samples), torch.rand(samples, 2, 8)), 1.0).loss
    return loss


def segmentation() -> STUNet:
    network = STUNet(NETWORK, classes=2)
    network.heads[0].requires_grad_(False)
    return network


def segmentation_loss_of(network: nn.Module, samples: int) -> Tensor:
    return segmentation_loss(network(volumes(samples)), torch.zeros(samples, 1, 32, 32, 32, dtype=torch.uint8))


KINDS = {"pretrain": (pretraining, pretraining_loss), "finetune": (segmentation, segmentation_loss_of)}


def pretraining_cost(workers: int = 1, **changes: object) -> StepCost:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    with torch.device("meta"):
        method = pretraining()
    return step_cost(method, pretraining_loss, config, workers)


def profiled_peak(profiler: profile) -> int:
    """The most bytes that PyTorch's allocator had given away at a time, as the profiler saw it."""
    changes: list[tuple[int, int]] = []

    def collect(events: list) -> None:
        for event in events:
            if event.tag == torch._C._profiler._EventType.Allocation:
                changes.append((event.start_time_ns, event.extra_fields.alloc_size))
            collect(event.children)

    finished: Any = profiler.profiler
    collect(finished.kineto_results.experimental_event_tree())
    live = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        live += change
        peak = max(peak, live)
    return peak


def test_a_layer_that_can_be_counted_by_hand() -> None:
    def loss(layer: nn.Module, samples: int) -> Tensor:
        return layer(torch.empty(samples, 4, 10, 10, 10)).sum()

    with torch.device("meta"):
        layer = nn.Conv3d(4, 8, 3, padding=1, bias=False)
    cost = step_cost(layer, loss, CONFIG, 1)
    forward = 2 * (27 * 4 * 8) * (2 * 1000)
    assert cost.flops == 2 * forward  # forward and the weight's gradient; the input needs none
    assert cost.state_bytes == 16 * 27 * 4 * 8
    # Most lives after the forward pass: weight and moments, input, output and loss, and no gradient yet.
    assert cost.memory_bytes == 12 * 27 * 4 * 8 + 4 * (2 * 4 * 1000 + 2 * 8 * 1000 + 1)
    assert layer.weight.is_meta and layer.weight.grad is None


def test_what_workers_exchange_can_be_counted_by_hand() -> None:
    def loss(layers: nn.Module, samples: int) -> Tensor:
        return layers(torch.empty(samples, 3, 4, 4, 4)).square().sum()

    with torch.device("meta"):
        layers = nn.Sequential(nn.Conv3d(3, 4, 1), BatchNorm3d(4))
    weights = 4 * (3 * 4 + 4 + 4 + 4)
    config = replace(CONFIG, batch_size=8)
    assert step_cost(layers, loss, config, 1).exchange == Exchange()
    # Of a norm, the number of voxels, sum and squares, and the gradients of the latter two.
    assert step_cost(layers, loss, config, 2).exchange == Exchange(weights, 5, 4 * (1 + 4 * 4))
    in_parts = step_cost(layers, loss, replace(config, accumulate=2), 2).exchange
    assert in_parts == Exchange(weights, 10, 8 * (1 + 4 * 4))
    assert step_cost(layers, loss, replace(config, synchronise_norms=False), 2).exchange == Exchange(weights)
    layers[0].requires_grad_(False)
    sharded = step_cost(layers, loss, replace(config, shard_weights=True), 2).exchange
    assert sharded.gradient_bytes == (2 * 4 * (4 + 4) + weights) // 2  # as much as an all-reduce of so many


def test_views_store_nothing_and_what_is_freed_is_gone() -> None:
    before = torch.zeros(1000)
    with LiveBytes([before]) as live:
        first = torch.zeros(100)
        view = first[10:].view(9, 10)
        before.add_(1)
        del first, view
        second = torch.zeros(150)
    assert live.peak == 600 and len(second) == 150


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_peak_is_that_of_a_real_update(kind: str, recompute: bool) -> None:
    """To the byte by our own counting; within a tenth by the profiler, which also sees what kernels use inside."""
    build, loss = KINDS[kind]
    with torch.device("meta"):
        imagined = build()
    cost = step_cost(imagined, loss, replace(CONFIG, recompute_activations=recompute), 1)
    torch.manual_seed(0)
    module = build()
    convert_conv3d_weight_memory_format(module, torch.channels_last_3d)
    recompute_activations(module, recompute)
    with LiveBytes([*module.parameters(), *module.buffers()]) as live:
        loss(module, 2).backward()
    gradients = sum(4 * parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    assert cost.activation_bytes + gradients == live.peak
    module.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss(module, 2).backward()
    assert live.peak == pytest.approx(profiled_peak(profiler), rel=0.1)


def test_settings_that_save_memory_do() -> None:
    plain, again = pretraining_cost(batch_size=4), pretraining_cost(batch_size=4, recompute_activations=True)
    assert again.activation_bytes < 0.9 * plain.activation_bytes
    assert plain.flops < again.flops < 4 / 3 * plain.flops  # the teacher has no backward pass
    assert again.state_bytes == plain.state_bytes

    parts = pretraining_cost(batch_size=4, accumulate=2)
    assert parts.activation_bytes < 0.7 * plain.activation_bytes
    assert parts.flops == plain.flops

    half = pretraining_cost(batch_size=4, precision="bf16")
    assert 0.4 * plain.activation_bytes < half.activation_bytes < 0.8 * plain.activation_bytes
    assert pretraining_cost(batch_size=4, precision="fp16").activation_bytes == half.activation_bytes
    assert pretraining_cost(batch_size=4, precision="tf32") == plain


def test_several_workers() -> None:
    """Norms over all workers keep more; sharding divides what one worker holds."""
    plain = pretraining_cost(workers=2, batch_size=4)
    assert plain.flops == pretraining_cost().flops  # of two samples
    alone = pretraining_cost(workers=2, batch_size=4, synchronise_norms=False)
    assert plain.activation_bytes > alone.activation_bytes
    assert pretraining_cost(workers=2, batch_size=3).flops == plain.flops  # of the worker that has more
    sharded = pretraining_cost(workers=2, batch_size=4, shard_weights=True)
    assert sharded.activation_bytes == pretraining_cost(workers=2, batch_size=4).activation_bytes
    parts = pretraining_cost(workers=2, batch_size=4, shard_weights=True, accumulate=2)
    assert parts.state_bytes > sharded.state_bytes  # gradients are whole until the last part
    assert not distributed.is_initialized()


def test_sharding_divides_the_state() -> None:
    """But for the buffers, and for the part that is gathered."""
    with torch.device("meta"):
        method = pretraining()
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in method.buffers())
    whole = state_bytes(method, 1) - buffers
    trained = sum(parameter.numel() for parameter in method.student.parameters())
    assert whole == (16 + 4) * trained
    held = {divided_by: state_bytes(method, divided_by) - buffers for divided_by in (2, 4)}
    assert math.isclose(held[2] - held[4], whole / 4, rel_tol=0.01)
    largest = sum(parameter.numel() for parameter in method.student.decoder.levels[0].parameters())
    assert math.isclose(held[2], whole / 2 + 16 * largest, rel_tol=0.01)


def test_only_what_would_help_is_offered() -> None:
    with torch.device("meta"):
        network = segmentation()

    def offered(workers: int, **changes: object) -> dict[str, StepCost]:
        return less_memory(network, segmentation_loss_of, replace(CONFIG, **changes), workers)  # type: ignore[arg-type]

    recompute, shard = "--training.recompute-activations", "--training.shard-weights"
    assert list(offered(1)) == [recompute]
    assert list(offered(2)) == [recompute, shard, "both"]
    assert list(offered(2, recompute_activations=True)) == [shard]
    assert list(offered(2, precision="fp16")) == [recompute]
    assert list(offered(2, synchronise_norms=False)) == [recompute]
    assert offered(1, recompute_activations=True) == {}
    costs = offered(2)
    assert costs["both"].state_bytes == costs[shard].state_bytes
    assert costs["both"].activation_bytes == costs[recompute].activation_bytes


def test_interpolation_is_as_under_the_autocast_of_gpus() -> None:
    types = []

    def loss(layer: nn.Module, samples: int) -> Tensor:
        small = layer(torch.empty(samples, 1, 4, 4, 4))
        large = nn.functional.interpolate(small, scale_factor=2)
        types.extend([small.dtype, large.dtype])
        return large.sum()

    with torch.device("meta"):
        layer = nn.Conv3d(1, 2, 1)
    step_cost(layer, loss, replace(CONFIG, precision="bf16"), 1)
    assert set(zip(types[::2], types[1::2], strict=True)) == {(torch.bfloat16, torch.float32)}
