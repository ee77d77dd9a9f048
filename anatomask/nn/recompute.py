"""Activation checkpointing: memory for time (Chen et al., arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputable:
    """A part of a network that can keep its inputs alone, and compute the rest again when gradients are wanted."""

    recompute = False

    def recomputed(self, compute: Callable[..., Any], *inputs: Any) -> Any:
        """`compute(*inputs)`. It may run twice, so it changes nothing and draws no random numbers."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)
        return compute(*inputs)


def recompute_activations(module: nn.Module, on: bool = True) -> None:
    """Have every recomputable part of `module` keep its inputs alone. Results and gradients stay the same."""
    for part in module.modules():
        if isinstance(part, Recomputable):
            part.recompute = on
