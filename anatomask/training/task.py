"""Interface between the training loop and what it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anatomask.training.recorder import Recorder


def seed_forward(seed: int, sample: Mapping[str, Any]) -> None:
    """Seed torch's generators for a forward pass from the seed and the number of the first sample.

    So what networks draw (dropout, drop-path) depends only on the update and the worker, and resuming is exact.
    """
    first = int(sample["sample"][0]) if "sample" in sample else 0
    torch.manual_seed(int(np.random.SeedSequence([seed, 4, first]).generate_state(1, np.uint64)[0] >> 1))


class Task(nn.Module, ABC):
    """Network, its loss, and what to record of it.

    It is a module so that distributed wrappers can call it: `task(sample, progress)`.
    """

    header: Mapping[str, Any]
    """Header that describes the weights of `kept`."""
    charts: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Scalars that belong in one chart, by its title."""
    epoch = 0
    """Epoch of the update, from 0, which the loop sets."""
    memory_format = torch.contiguous_format
    """Memory format of the volumes that the networks read; `parallel.distribute` sets it with that of the weights."""

    @abstractmethod
    def trainable(self) -> nn.Module:
        """Return the module whose parameters are updated; every backward pass gives a gradient to all that need one."""

    def networks(self) -> Sequence[nn.Module]:
        """Return the modules that compute, `trainable` first."""
        return [self.trainable()]

    def encoder_depths(self) -> Mapping[nn.Module, int]:
        """Return the depths of the parts of an encoder that may learn later or slower; empty if none does."""
        return {}

    def undecayed(self) -> Sequence[nn.Parameter]:
        """List the parameters of more than one dimension that decay only where all do."""
        return ()

    def frozen(self) -> Iterable[nn.Parameter]:
        """List the parameters that do not learn in this `epoch`. Default: none.

        They have gradients all the same, which are dropped: averaging over workers is set up for all parameters.
        """
        return ()

    def kept(self) -> nn.Module:
        """Return the module whose weights a checkpoint holds."""
        return self.trainable()

    @abstractmethod
    def forward(self, sample: Mapping[str, Any], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Compute the loss of one batch, a mean over its samples, and scalars to record (on the device, detached).

        `progress` is t/T.
        """

    @abstractmethod
    def after_step(self, progress: float) -> None:
        """Act on an update of the weights (EMA)."""

    @abstractmethod
    def validate(self, recorder: Recorder, step: int) -> float | None:
        """Record scalars and pictures; return the score that chooses the best checkpoint, if there is one."""
