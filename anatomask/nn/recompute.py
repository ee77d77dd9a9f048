"""Activation checkpointing: memory for time (Chen et al., arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputable:
    """Part of a network that can keep its inputs alone, and compute its activations again for the gradients."""

    recompute = False

    def recomputed(self, compute: Callable[..., Any], *inputs: Any) -> Any:
        """Return `compute(*inputs)`. It may run twice, so it changes nothing and draws no random numbers."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)
        return compute(*inputs)


def recompute_activations(module: nn.Module, on: bool = True) -> None:
    """Let every recomputable part of `module` keep its inputs alone, or not; results and gradients stay the same."""
    for part in module.modules():
        if isinstance(part, Recomputable):
            part.recompute = on
