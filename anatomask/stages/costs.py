"""Cost of an update of a training, counted on networks on the meta device, which have shapes and no values.

Counting needs PyTorch's compiler, which takes a second to import: the stages import this file when they count.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from anatomask.config import FinetuneConfig, PretrainConfig
from anatomask.data.shards import PreparedDataset
from anatomask.methods.base import Method
from anatomask.nn.backbones.base import Segmenter
from anatomask.training.cost import Loss, StepCost, less_memory, step_cost
from anatomask.training.estimate import cost_rows, device_of
from anatomask.training.finetuning import prepare_gradients
from anatomask.training.losses import segmentation_loss
from anatomask.training.parallel import memory_format


def pretraining_update(config: PretrainConfig) -> tuple[Method, Loss]:
    """Build the method on the meta device; return it with its loss of samples without values."""
    with torch.device("meta"):
        method = config.method.resolved().countable().build(config.network)
    method.memory_format = memory_format(config.training)
    return method, partial(_last_loss, config=config)


def finetuning_update(config: FinetuneConfig, classes: int | None = None) -> tuple[Segmenter, Loss]:
    """Build the network on the meta device; return it with its loss of samples without values.

    `classes` is the number of structures. Default: those of the data set.
    """
    if classes is None:
        classes = len(PreparedDataset.open(config.data).class_names)
    with torch.device("meta"):
        network = config.network.segmenter(classes)
    prepare_gradients(network, frozen=config.optimiser.freeze == config.training.epochs)
    return network, partial(_dummy_loss, config=config)


def worker_cost(config: PretrainConfig | FinetuneConfig, network: nn.Module, loss: Loss) -> StepCost:
    """Count what one worker's update takes."""
    return step_cost(network, loss, config.training, config.cluster.workers, config.optimiser.moments)


def planned(
    config: PretrainConfig | FinetuneConfig, network: nn.Module, loss: Loss, updates: int
) -> tuple[StepCost, list[tuple[str, str]]]:
    """Count what one worker's update takes; return that with the rows of a dry run of `updates` updates."""
    workers = config.cluster.workers
    cost = worker_cost(config, network, loss)
    options = less_memory(network, loss, config.training, workers, config.optimiser.moments)
    return cost, cost_rows(cost, options, updates, workers, config.training.precision, device_of(config.plan))


def _last_loss(method: Method, samples: int, config: PretrainConfig) -> Tensor:
    """Compute the loss at the end of a training, when the teacher computes too."""
    return method(method.dummy_batch(samples, config.loader.patch_size), 1.0).loss


def _dummy_loss(network: nn.Module, samples: int, config: FinetuneConfig) -> Tensor:
    volume = torch.empty(samples, config.network.in_channels, *config.loader.patch_size)
    label = torch.empty(samples, 1, *config.loader.patch_size, dtype=torch.uint8)
    return segmentation_loss(network(volume.contiguous(memory_format=memory_format(config.training))), label)
