"""Time and cost of an update of each pretraining method: `python benchmarks/methods.py [--scale paper] [--quick]`.

Every method trains the network of its recipe of that scale, on random crops of one size and in batches of one size, so
that figures can be compared; methods of two views read two such crops per sample. An update is forward, backward,
clipping, optimiser and what follows it; loading is left out. GFLOP and GiB are those of `--dry-run`; on a GPU, the
peak of the memory is measured, too. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from measure import interleaved, machine, peak_memory_gib, report
from torch import Tensor, nn
from torch.nn.utils.memory_format import convert_conv3d_weight_memory_format

from anatomask.config import PretrainConfig
from anatomask.data.samples import LoaderConfig
from anatomask.recipes import RECIPES
from anatomask.recipes.parts import PAPER, SMALL
from anatomask.stages.costs import pretraining_update, worker_cost
from anatomask.training.optimiser import build_optimiser
from anatomask.training.settings import Precision
from anatomask.training.update import autocast, clip_each_grad_norm_

SCALES = {"small": SMALL, "paper": PAPER}
PROGRESS = 0.5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, help="default: all of the scale that pretrain")
    parser.add_argument("--patch", nargs=3, type=int, help="default: 64 64 64 (small), 128 128 128 (paper)")
    parser.add_argument("--batch", type=int, help="default: 2 (small), 4 (paper)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two small recipes, small crops: within a minute")
    arguments = parser.parse_args()
    large = arguments.scale == "paper"
    arguments.patch = arguments.patch or ([128] * 3 if large else [64] * 3)
    arguments.batch = arguments.batch or (4 if large else 2)
    arguments.recipes = arguments.recipes or [
        name for name, recipe in RECIPES.items() if recipe.method and recipe.scale is SCALES[arguments.scale]
    ]
    if arguments.quick:
        arguments.recipes, arguments.patch, arguments.rounds = ["moco-small", "mae-small"], [32, 32, 64], 1
    precision: Precision = "bf16" if arguments.device == "cuda" else "fp32"
    measured = {name: measure(configured(name, arguments, precision), arguments) for name in arguments.recipes}
    crop = "x".join(map(str, arguments.patch))
    report(
        f"Updates of batch {arguments.batch}, crops of {crop}, {arguments.device}, {precision}",
        ["recipe", "method", "network", "M parameters", "samples/s", "GFLOP/sample", "GiB", "peak GiB"],
        [
            [
                name,
                str(found["method"]),
                str(found["network"]),
                f"{found['million_parameters']:.3g}",
                f"{found['samples_per_second']:.3g}",
                f"{found['gflop_per_sample']:.3g}",
                f"{found['gib']:.3g}",
                "–" if found["peak_gib"] is None else f"{found['peak_gib']:.3g}",
            ]
            for name, found in measured.items()
        ],
        {"methods": measured, "arguments": vars(arguments), "machine": machine(arguments.device)},
    )


def configured(name: str, arguments: argparse.Namespace, precision: Precision) -> PretrainConfig:
    """Return the pretraining of a recipe with the crop and batch that all have."""
    config: PretrainConfig = RECIPES[name].settings("pretrain")
    training = replace(config.training, batch_size=arguments.batch, precision=precision)
    loader = LoaderConfig(patch_size=tuple(arguments.patch))
    positions: dict[str, Any] = {"patch_size": loader.patch_size} if hasattr(config.network, "patch_size") else {}
    return replace(config, network=replace(config.network, **positions), loader=loader, training=training)


def measure(config: PretrainConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure and count the updates of one method."""
    network, loss = pretraining_update(config)
    cost = worker_cost(config, network, loss)
    step, peak = peak_memory_gib(lambda: update(config, arguments.device), arguments.device)
    seconds = interleaved({"": step}, arguments.rounds, arguments.device)[""]
    del step
    gc.collect()
    return {
        "method": config.method.label(),
        "network": config.network.label(),
        "million_parameters": sum(parameter.numel() for parameter in network.trainable().parameters()) / 1e6,
        "samples_per_second": arguments.batch / seconds,
        "gflop_per_sample": cost.flops / arguments.batch / 1e9,
        "gib": cost.memory_bytes / 2**30,
        "peak_gib": peak,
    }


def update(config: PretrainConfig, device: str) -> Callable[[], None]:
    """Build a method on the device; return its update on one random batch."""
    torch.manual_seed(0)
    method = config.method.resolved().build(config.network).to(device)
    method.memory_format = torch.channels_last_3d
    for network in method.networks():
        convert_conv3d_weight_memory_format(network, torch.channels_last_3d)
    optimiser = build_optimiser(method.trainable(), config.optimiser)
    with torch.device(device):
        batch = randomised(method.dummy_batch(config.training.batch_size, config.loader.patch_size))

    clip = clip_each_grad_norm_ if config.optimiser.clip_of == "each" else nn.utils.clip_grad_norm_

    def step() -> None:
        with autocast(config.training.precision, torch.device(device)):
            loss = method.training_step(batch, PROGRESS).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        clip(method.trainable().parameters(), config.optimiser.clip)
        optimiser.step()
        method.after_step(PROGRESS)

    return step


def randomised(batch: Any) -> Any:
    """Fill the tensors of a batch of arbitrary values with random numbers in [0, 1), volumes channels last."""
    if isinstance(batch, Tensor) and batch.is_floating_point():
        values = torch.rand_like(batch)
        return values.contiguous(memory_format=torch.channels_last_3d) if values.dim() == 5 else values
    if isinstance(batch, tuple):
        return tuple(map(randomised, batch))
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{field.name: randomised(getattr(batch, field.name)) for field in fields(batch)})
    return batch


if __name__ == "__main__":
    main()
