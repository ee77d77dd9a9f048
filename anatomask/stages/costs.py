"""What an update of a training costs, found on networks that have shapes and no numbers.

Counting takes PyTorch's compiler, which takes a second to import: the stages import this file when they count.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from anatomask.config import FinetuneConfig, PretrainConfig
from anatomask.data.shards import PreparedDataset
from anatomask.methods.base import Method
from anatomask.nn.backbones.base import Segmenter
from anatomask.training.cost import Loss, StepCost, step_cost
from anatomask.training.finetuning import prepare_gradients
from anatomask.training.losses import segmentation_loss
from anatomask.training.parallel import memory_format


def pretraining_update(config: PretrainConfig) -> tuple[Method, Loss]:
    """Build the method on the meta device; return it with its loss of samples that hold nothing."""
    with torch.device("meta"):
        method = config.method.resolved().countable().build(config.network)
    method.memory_format = memory_format(config.training)
    return method, partial(_last_loss, config=config)


def finetuning_update(config: FinetuneConfig, classes: int | None = None) -> tuple[Segmenter, Loss]:
    """Build the network on the meta device; return it with its loss of samples that hold nothing.

    `classes` counts the structures. Default: those of the data set.
    """
    if classes is None:
        classes = len(PreparedDataset.open(config.data).class_names)
    with torch.device("meta"):
        network = config.network.segmenter(classes)
    prepare_gradients(network, frozen=config.optimiser.freeze == config.training.epochs)
    return network, partial(_any_loss, config=config)


def worker_cost(config: PretrainConfig | FinetuneConfig, network: nn.Module, loss: Loss) -> StepCost:
    """Count what one worker's update takes."""
    return step_cost(network, loss, config.training, config.cluster.workers, config.optimiser.moments)


def _last_loss(method: Method, samples: int, config: PretrainConfig) -> Tensor:
    """Compute the loss at the end of a training: by then the teacher is asked."""
    return method(method.dummy_batch(samples, config.loader.patch_size), 1.0).loss


def _any_loss(network: nn.Module, samples: int, config: FinetuneConfig) -> Tensor:
    volume = torch.empty(samples, config.network.in_channels, *config.loader.patch_size)
    label = torch.empty(samples, 1, *config.loader.patch_size, dtype=torch.uint8)
    return segmentation_loss(network(volume.contiguous(memory_format=memory_format(config.training))), label)
