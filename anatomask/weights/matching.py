"""Matching of tensors and networks by name and shape: what does not fit is refused, unless it is allowed by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from anatomask.errors import UserError


def find_faults(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Find what keeps `tensors` from being those of the state `own`: a fault by name, nothing where all fit."""
    faults = {name: "missing" for name in own if name not in tensors}
    faults |= {name: "unknown" for name in tensors if name not in own}
    for name in own.keys() & tensors.keys():
        mine, given = own[name], tensors[name]
        if mine.shape != given.shape:
            faults[name] = f"of shape {tuple(given.shape)}, not {tuple(mine.shape)}"
        elif mine.is_floating_point() != given.is_floating_point():
            faults[name] = f"of type {given.dtype}, not {mine.dtype}"
    return faults


def is_named(name: str, patterns: Sequence[str]) -> bool:
    """Return whether one of `patterns` means `name`: itself, its prefix up to a dot, or a wildcard (`heads.*`)."""
    return any(name == p or name.startswith(f"{p}.") or fnmatch.fnmatchcase(name, p) for p in patterns)


def describe_faults(faults: Mapping[str, str]) -> str:
    """Format the first four faults in one line, and count the others."""
    some = "; ".join(f"{name} is {fault}" for name, fault in sorted(faults.items())[:4])
    return some + (f" and {len(faults) - 4} more" if len(faults) > 4 else "")


def count_loaded(module: nn.Module, fresh: Sequence[str]) -> dict[str, int]:
    """Count what was loaded into `module`, except what `fresh` names: `tensors` and `parameters` (single numbers).

    `of_tensors` and `of_parameters` count what it has.
    """
    sizes = {name: tensor.numel() for name, tensor in module.state_dict().items()}
    loaded = [size for name, size in sizes.items() if name not in set(fresh)]
    return {
        "tensors": len(loaded),
        "of_tensors": len(sizes),
        "parameters": sum(loaded),
        "of_parameters": sum(sizes.values()),
    }


def load_matching(module: nn.Module, tensors: Mapping[str, Tensor], allow_missing: Sequence[str] = ()) -> list[str]:
    """Copy `tensors` into `module` by name, all of them or none.

    Args:
        module: its parameters and buffers are overwritten in place.
        tensors: by the module's own names.
        allow_missing: names, prefixes that end at a dot, or patterns (`heads.*`) that need not match.

    Returns:
        The names of the tensors that were not transferred, which was allowed; sorted.

    Raises:
        UserError: tensors are missing, unknown or of another shape; the message names them.
    """
    own = module.state_dict()
    faults = find_faults(own, tensors)
    refused = {name: fault for name, fault in faults.items() if not is_named(name, allow_missing)}
    if refused:
        raise UserError(
            f"the weights do not fit the network: {describe_faults(refused)}. They are incomplete or of another "
            "architecture: choose other weights, or the network that they are of"
        )
    with torch.no_grad():
        for name in own.keys() & tensors.keys() - faults.keys():
            own[name].copy_(tensors[name])
    return sorted(faults)
