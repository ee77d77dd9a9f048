"""Optimisers, and the groups of parameters that learn later or slower than others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.sgd import sgd

from anatomask.training.settings import OptimiserConfig

Depths = Mapping[nn.Module, int]
"""Depths of the parts of an encoder by part, counted from the output (`Encoder.depths`)."""
NO_ENCODER: Depths = MappingProxyType({})


def parameter_groups(
    module: nn.Module, config: OptimiserConfig, depths: Depths = NO_ENCODER, undecayed: Collection[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Divide the parameters of `module` that need a gradient by when and how fast they learn, and whether they decay.

    A group's `start` is the first epoch in which it learns, its `factor` multiplies its learning rate. That of a part
    of the encoder at depth d of `depths` is encoder_lr_factor · layer_decay^d, as in BEiT (arXiv 2106.08254) and MAE
    (2111.06377); that of everything else (decoder and heads) is 1. Where matrices alone decay, these do not: what is
    `undecayed`, and all parameters of one dimension.
    """
    of_encoder = {
        parameter: (config.encoder_start, config.encoder_lr_factor * config.layer_decay**depth)
        for part, depth in depths.items()
        for parameter in part.parameters()
    }
    exempt = {id(parameter) for parameter in undecayed}
    groups: dict[tuple[int, float, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            spared = config.decayed == "matrices" and (parameter.ndim < 2 or id(parameter) in exempt)
            key = (*of_encoder.get(parameter, (0, 1.0)), 0.0 if spared else config.weight_decay)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": group, "start": start, "factor": factor, "weight_decay": decay}
        for (start, factor, decay), group in groups.items()
    ]


def build_optimiser(
    module: nn.Module, config: OptimiserConfig, depths: Depths = NO_ENCODER, undecayed: Collection[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Build the optimiser of `module`, in the groups of `parameter_groups`; learning rates are set before every update.

    The optimisers are fused: they are fast, and skip an update on the device when told there that the gradient is not
    finite.
    """
    groups = parameter_groups(module, config, depths, undecayed)
    if config.name == "sgd":
        return FusedSGD(groups, config.lr, config.momentum, config.weight_decay)
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )


class FusedSGD(torch.optim.SGD):
    """Fused SGD with Nesterov momentum, which also works where weights are divided among workers.

    Torch 2.13 cannot shard its fused SGD, so each worker's own part is updated here: elements do not depend on each
    other. The momentum starts as zeros, which the first update replaces by its gradient. Torch would allocate it
    without initialising it, and keep the uninitialised numbers if the first update is skipped.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(groups, lr, momentum, 0.0, weight_decay, nesterov=momentum > 0, fused=True)
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if momentum > 0:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is not called."""
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            moments = [self.state[parameter].get("momentum_buffer") for parameter in learning]
            sgd(
                [_own(parameter) for parameter in learning],
                [_own(parameter.grad) for parameter in learning],
                [None if moment is None else _own(moment) for moment in moments],
                fused=True,
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=getattr(self, "found_inf", None),
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
            )


def _own(tensor: Tensor) -> Tensor:
    """Return this worker's part of a tensor, as a view: all of it unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
