"""Autocast for operations of our own, which PyTorch does not know."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast tensors to the precision in which convolutions compute here: autocast's, where it is on."""
    device = tensors[0].device.type
    if tensors[0].is_meta or not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)
